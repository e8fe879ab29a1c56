"""What the widgets may ask of the app that they live in."""

from collections.abc import Callable
from typing import Protocol, cast

from textual.dom import DOMNode


class Shell(Protocol):
    """The app as its widgets see it.

    `clock` gives Unix seconds: the one clock of all screens.
    """

    clock: Callable[[], float]


def shell(node: DOMNode) -> Shell:
    """The app that `node` lives in."""
    return cast(Shell, node.app)
