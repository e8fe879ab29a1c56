"""The line at the bottom: the keys that do something now; each can be clicked."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from rich.cells import cell_len
from textual import events
from textual.app import App
from textual.dom import DOMNode
from textual.screen import Screen

from sapflow.sanctum.spans import Line, Span
from sapflow.sanctum.widgets.span_view import SpanView

LAST = ("help", "quit")  # actions that stand at the end and are never left out
# What Textual binds on every screen or every scrolling widget, and what is of no use here.
_TEXTUALS_OWN = frozenset(("app.focus_next", "app.focus_previous", "screen.copy_text", "page_left", "page_right"))
_TEXTUALS_KEYS = frozenset(("ctrl+q",))  # does what q does


class Key(NamedTuple):
    """Something that works now: the keys that do it, what it is in a word and in a sentence, and what it does where."""

    keys: tuple[str, ...]
    word: str
    sentence: str
    action: str
    node: DOMNode
    in_bar: bool

    @property
    def width(self) -> int:
        """Its cells in the bar, with two blanks behind it."""
        return cell_len(self.keys[0]) + 1 + cell_len(self.word) + 2


def working_keys(screen: Screen[Any]) -> list[Key]:
    """What works on `screen` now, in the order in which it is bound; keys that do the same are one."""
    found: dict[tuple[DOMNode, str], Key] = {}
    for active in screen.active_bindings.values():
        binding = active.binding
        if not active.enabled or not binding.description:
            continue
        if binding.action in _TEXTUALS_OWN or binding.key in _TEXTUALS_KEYS:
            continue
        place = (active.node, binding.action)
        shown = screen.app.get_key_display(binding)
        if place in found:
            found[place] = found[place]._replace(keys=tuple(dict.fromkeys((*found[place].keys, shown))))
        else:
            sentence = active.tooltip or binding.tooltip or binding.description
            found[place] = Key((shown,), binding.description, sentence, binding.action, active.node, binding.show)
    return list(found.values())


class KeyBar(SpanView):
    """Made from the bindings that are active, so that nothing is shown that does not work."""

    def __init__(self) -> None:
        super().__init__()
        self._shown: list[Key] = []

    def on_mount(self) -> None:
        """Follows what is bound: that changes with the focus and with the app's state."""
        self.screen.bindings_updated_signal.subscribe(self, self._changed)

    def _changed(self, _: Screen[object]) -> None:
        self.redraw()

    def build(self, width: int) -> Sequence[Line]:
        """The keys at `width` cells; where they do not all fit, those of the screen itself stay longest."""
        keys = [key for key in working_keys(self.screen) if key.in_bar]
        last = [key for key in keys if key.action.removeprefix("app.") in LAST]
        room = width - sum(key.width for key in last)
        self._shown = []
        for key in keys:
            if key not in last and key.width <= room:
                self._shown.append(key)
                room -= key.width
        self._shown += last
        spans: list[Span] = []
        for key in self._shown:
            spans += [(key.keys[0], "bold"), (f" {key.word}  ", "")]
        return [tuple(spans)]

    async def on_click(self, event: events.Click) -> None:
        """Does what the key does."""
        x = event.x - self.styles.padding.left
        for key in self._shown:
            if 0 <= x < key.width - 2:
                app: App[object] = self.app
                await app.run_action(key.action, key.node)
            x -= key.width
