"""Which exporters with which options: from a TOML file, and from the command line on top of it."""

import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sapflow.errors import InputError, MissingExtraError
from sapflow.exporters import registry

MAX_FILE_BYTES = 64 * 2**10

Tables = dict[str, dict[str, Any]]
"""Options by the name of the exporter."""


def read_config(path: Path) -> Tables:
    """The tables [exporters.NAME] of a file, whose other tables are somebody else's.

    Raises:
        InputError: it cannot be read, is no TOML, or [exporters] holds anything but tables of exporters that there are.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise InputError(f"{path} is too large for a configuration: {MAX_FILE_BYTES // 1024} KiB is the limit")
        tables = tomllib.loads(data.decode()).get("exporters", {})
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no TOML ({error})") from error
    if not isinstance(tables, dict) or not all(isinstance(table, dict) for table in tables.values()):
        raise InputError(f"{path}: [exporters] holds tables, one for each exporter, such as [exporters.prometheus]")
    for name, options in tables.items():
        try:
            registry.check(name, options)
        except MissingExtraError:  # perhaps this exporter is not asked for
            continue
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
    return tables


def chosen(names: Iterable[str], config: Path | None, options: Iterable[str]) -> Tables:
    """The exporters that are asked for, each with its options; all those of `config` if `names` is empty.

    Args:
        names: of exporters.
        config: the file, if there is one.
        options: further ones, as NAME.OPTION=VALUE; a value is read as one of TOML, and as a string if it is none.

    Raises:
        InputError: there is no such exporter, or it has no such option, or nothing is asked for.
        MissingExtraError: what an exporter needs is not installed.
    """
    tables = read_config(config) if config is not None else {}
    wanted = list(dict.fromkeys(names)) or list(tables)
    if not wanted:
        raise InputError(f"say where to export to, with --export: {', '.join(registry.names())}")
    found = {name: dict(tables.get(name, {})) for name in wanted}
    for text in options:
        name, key, value = _parsed(text)
        if name not in found:
            raise InputError(f"the option {text!r} is for an exporter that was not asked for: add --export {name}")
        found[name][key] = value
    for name, table in found.items():
        registry.check(name, table)
    return found


def _parsed(text: str) -> tuple[str, str, Any]:
    path, equals, value = text.partition("=")
    name, dot, key = path.partition(".")
    if not (equals and dot and name and key):
        raise InputError(f"{text!r} is no option: write NAME.OPTION=VALUE, such as prometheus.port=9465")
    try:
        return name, key, tomllib.loads(f"value = {value}")["value"]
    except (ValueError, RecursionError):
        return name, key, value
