"""The keys that work on every screen, in one table: the key bar, the palette and the help are made from it.

What opens a screen of its own is named by module and class and is imported when it is first asked for:

| key | module, class | is called with |
| --- | --- | --- |
| e | event_screen.EventScreen | the subject's env_id; None, for the whole run, from the overview |
| a | alert_screen.AlertScreen | the subject's env_id; None, for the whole run, from the overview |
| c | compare_screen.CompareScreen | the subject's env_id, or None |
| p o r x | request_dialog.RequestDialog | the action ("prune", "hold", "resume", "stop") and the Subject |
| t | time_bar.TimeBar | nothing; it is mounted on the active SnapshotScreen, above the key bar |

A TimeBar has `show(snapshot)`, which is called after the screen's own, and asks `shell(self)` for `moment` and `speed`.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import NamedTuple, cast

from textual.binding import Binding
from textual.screen import Screen
from textual.widget import Widget

from sapflow.sanctum.widgets.shell import Subject

_WIDGETS = "sapflow.sanctum.widgets"
_REWIND = "sapflow.sanctum.rewind"


class Command(NamedTuple):
    """A key of the app: what it does, in a word for the key bar and in a sentence for the palette and the help.

    `needs` are the modules without which there is nothing to do; what is not `shown` is left out of the key bar.
    """

    key: str
    action: str
    word: str
    sentence: str
    needs: tuple[str, ...] = ()
    display: str = ""
    shown: bool = True

    @property
    def binding(self) -> Binding:
        """As Textual takes it."""
        return Binding(
            self.key, self.action, self.word, show=self.shown, key_display=self.display or None, tooltip=self.sentence
        )


def _screen(name: str) -> tuple[str]:
    return (f"{_WIDGETS}.{name}",)


_TIME = (_REWIND, f"{_WIDGETS}.time_bar")
ALL = (
    Command("e", "events", "events", "Events: of the run, or of the env that is looked at", _screen("event_screen")),
    Command("a", "alerts", "alerts", "Alerts, open and closed", _screen("alert_screen")),
    Command("c", "compare", "compare", "Two envs or two runs side by side", _screen("compare_screen"), shown=False),
    Command("p", "request('prune')", "prune", "Prune the seed in focus", _screen("request_dialog")),
    Command("o", "request('hold')", "hold", "Hold the seed in focus where it stands", _screen("request_dialog")),
    Command("r", "request('resume')", "resume", "Let the held seed in focus go on", _screen("request_dialog")),
    Command("x", "request('stop')", "stop", "Stop the env in focus", _screen("request_dialog")),
    Command("t", "time_bar", "time", "The time bar: any moment of the run", _TIME),
    Command("comma", "step(-1)", "earlier", "One epoch back", _TIME, ",", shown=False),
    Command("full_stop", "step(1)", "later", "One epoch on", _TIME, ".", shown=False),
    Command("space", "play", "play", "Play the run from the moment shown, or pause", _TIME, "space", shown=False),
    Command("L", "live", "live", "Back to what happens now", _TIME, shown=False),
    Command("y", "copy", "copy", "Copy the card in focus as text", shown=False),
    Command("S", "save", "save", "Save a picture of the screen (SVG)", shown=False),
    Command("T", "theme", "theme", "The next theme: dark, light, colour-blind-safe", shown=False),
    Command("question_mark", "help", "help", "What the glyphs, the numbers and the keys mean", display="?"),
    Command("q", "quit", "quit", "Leave Sanctum; the run goes on"),
)
COMMANDS = tuple(command for command in ALL if all(find_spec(module) for module in command.needs))

HAND = {command.key: command.word for command in ALL if command.action.startswith("request(")}
"""The keys of the operator's hand, and what they ask for."""


def screen_for(module: str, name: str, *arguments: int | str | Subject | None) -> Screen[None]:
    """The screen of that name, made with `arguments`."""
    return cast(Screen[None], getattr(import_module(f"{_WIDGETS}.{module}"), name)(*arguments))


def time_bar() -> Widget:
    """A new time bar."""
    return cast(Widget, import_module(f"{_WIDGETS}.time_bar").TimeBar())
