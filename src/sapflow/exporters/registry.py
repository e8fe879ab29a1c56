"""The exporters by name: those that come with Sapflow, and those of installed packages."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from typing import Any

import msgspec

from sapflow.errors import InputError, MissingExtraError
from sapflow.exporters.exporter import Exporter, Open, Setting, read_options

ENTRY_POINTS = "sapflow.exporters"
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,40}", re.ASCII)


@dataclass(frozen=True)
class _BuiltIn:
    """A module of this room with `Options` and `open_exporter`; `package` is what its extra brings, if it has one."""

    module: str
    package: str = ""


BUILT_IN = {
    "jsonlines": _BuiltIn("jsonlines"),
    "mlflow": _BuiltIn("mlflow", "mlflow"),
    "otel": _BuiltIn("otel", "opentelemetry.proto"),
    "prometheus": _BuiltIn("prometheus", "prometheus_client"),
    "tensorboard": _BuiltIn("tensorboard", "tensorboard"),
    "wandb": _BuiltIn("wandb", "wandb"),
    "webhook": _BuiltIn("webhook"),
}


def names() -> list[str]:
    """All exporters that can be asked for, those of installed packages included."""
    return sorted({*BUILT_IN, *_own()})


def check(name: str, options: Mapping[str, Any]) -> None:
    """Make sure that the exporter can be opened, as far as that shows without a backend; imports nothing heavy.

    Raises:
        InputError: there is no such exporter, or an option is wrong.
        MissingExtraError: what it needs is not installed.
    """
    built_in = BUILT_IN.get(name)
    if built_in is None:
        _entry_point(name)
        return
    if built_in.package and not _is_installed(built_in.package):
        raise MissingExtraError(f"the exporter {name}", name)
    kind: type[msgspec.Struct] = _module(built_in).Options
    read_options(name, options, kind)


def open_exporter(setting: Setting) -> Exporter:
    """Open the exporter that is named in `setting`.

    Raises:
        InputError: a person has to change something first; the message says what.
    """
    check(setting.name, setting.options)
    if setting.name in BUILT_IN:
        opened: Exporter = _module(BUILT_IN[setting.name]).open_exporter(setting)
        return opened
    entry_point = _entry_point(setting.name)
    try:
        opening: Open = entry_point.load()
        return opening(setting)
    except InputError:
        raise
    except Exception as error:  # a stranger's module may fail in any way
        raise InputError(
            f"the exporter {setting.name} of {entry_point.value} cannot be opened: {type(error).__name__}: {error}"
        ) from error


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # not even the package that it is a part of
        return False


def _module(built_in: _BuiltIn) -> Any:
    return import_module(f"sapflow.exporters.{built_in.module}")


def _entry_point(name: str) -> EntryPoint:
    found = _own().get(name)
    if found is None:
        close = get_close_matches(name, names(), 1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(names())}"
        raise InputError(f"there is no exporter {name!r}: {hint}")
    return found


def _own() -> dict[str, EntryPoint]:
    """Of installed packages, by name; the name of a built-in one is taken, and a name is a file's name, too."""
    found = entry_points(group=ENTRY_POINTS)
    return {one.name: one for one in found if one.name not in BUILT_IN and NAME.fullmatch(one.name)}
