"""The line at the bottom: the keys that do something now; each can be clicked."""

from collections.abc import Sequence
from typing import NamedTuple

from rich.cells import cell_len
from textual import events
from textual.app import App
from textual.dom import DOMNode
from textual.screen import Screen

from sapflow.sanctum.spans import Line, Span
from sapflow.sanctum.widgets.span_view import SpanView

LAST = ("help", "quit")  # actions that stand at the end and are never left out


class Key(NamedTuple):
    """A key that works now, as it is shown, and what it does where."""

    shown: str
    word: str
    action: str
    node: DOMNode

    @property
    def width(self) -> int:
        """Its cells, with two blanks behind it."""
        return cell_len(self.shown) + 1 + cell_len(self.word) + 2


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
        keys = self._keys()
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
            spans += [(key.shown, "bold"), (f" {key.word}  ", "")]
        return [tuple(spans)]

    def _keys(self) -> list[Key]:
        """A key for each action that is bound and enabled, in the order in which they are bound."""
        seen: dict[tuple[DOMNode, str], Key] = {}
        for active in self.screen.active_bindings.values():
            binding = active.binding
            if binding.show and binding.description and active.enabled:
                key = Key(self.app.get_key_display(binding), binding.description, binding.action, active.node)
                seen.setdefault((active.node, binding.action), key)
        return list(seen.values())

    async def on_click(self, event: events.Click) -> None:
        """Does what the key does."""
        x = event.x - self.styles.padding.left
        for key in self._shown:
            if 0 <= x < key.width - 2:
                app: App[object] = self.app
                await app.run_action(key.action, key.node)
            x -= key.width
