"""Values of Arrow in Python, those too of which Python has none: times beyond its calendar are text."""

from datetime import date, timedelta
from typing import Any

from sapflow.history.arrow import pa

UNITS_A_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
DAYS_IN_400_YEARS = 146_097  # after which the calendar repeats
ENDLESS = (2**31 - 1, 2**63 - 1)  # what DuckDB calls infinity, of dates and of timestamps


def values_of(column: pa.Array) -> list[Any]:
    """What is in the column; a date, timestamp or time that Python cannot hold as it is written in SQL."""
    try:
        return list(column.to_pylist(maps_as_pydicts="strict"))
    except (ValueError, OverflowError):
        return [_value(scalar) for scalar in column]


def _value(scalar: Any) -> Any:
    if not scalar.is_valid:
        return None
    try:
        return scalar.as_py(maps_as_pydicts="strict")
    except (ValueError, OverflowError):
        return _beyond_python(scalar)


def _beyond_python(scalar: Any) -> Any:
    kind = scalar.type
    if pa.types.is_map(kind):
        return {_value(entry["key"]): _value(entry["value"]) for entry in scalar.values}
    if pa.types.is_struct(kind):
        return {field.name: _value(scalar[number]) for number, field in enumerate(kind)}
    if pa.types.is_nested(kind):
        return list(map(_value, scalar.values))
    if abs(scalar.value) in ENDLESS:
        return "infinity" if scalar.value > 0 else "-infinity"
    if pa.types.is_date32(kind):
        return _day(scalar.value)
    a_second = UNITS_A_SECOND[kind.unit]
    if pa.types.is_time(kind):
        return _clock(scalar.value, a_second)
    days, clock = divmod(scalar.value, 86_400 * a_second)
    return f"{_day(days)} {_clock(clock, a_second)}" + ("" if kind.tz is None else "+00:00")


def _day(days: int) -> str:
    """The date so many days after 1970-01-01."""
    cycles, rest = divmod(days, DAYS_IN_400_YEARS)
    day = date(1970, 1, 1) + timedelta(days=rest)
    return f"{day.year + 400 * cycles:04}-{day.month:02}-{day.day:02}"


def _clock(value: int, a_second: int) -> str:
    seconds, rest = divmod(value, a_second)
    text = f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"
    return f"{text}.{rest:0{len(str(a_second)) - 1}}" if rest else text
