"""The keys that work on every screen, in one table: the key bar, the palette and the help are made from it."""

from typing import NamedTuple

from textual.binding import Binding


class Command(NamedTuple):
    """A key of the app: what it does, in a word for the key bar and in a sentence for the palette and the help.

    What is not `shown` is left out of the key bar.
    """

    key: str
    action: str
    word: str
    sentence: str
    display: str = ""
    shown: bool = True

    @property
    def binding(self) -> Binding:
        """As Textual takes it."""
        return Binding(
            self.key, self.action, self.word, show=self.shown, key_display=self.display or None, tooltip=self.sentence
        )


COMMANDS = (
    Command("e", "events", "events", "Events: of the run, or of the env that is looked at"),
    Command("a", "alerts", "alerts", "Alerts, open and closed"),
    Command("c", "compare", "compare", "Two envs or two runs side by side", shown=False),
    Command("p", "request('prune')", "prune", "Prune the seed in focus"),
    Command("o", "request('hold')", "hold", "Hold the seed in focus where it stands"),
    Command("r", "request('resume')", "resume", "Let the held seed in focus go on"),
    Command("x", "request('stop')", "stop", "Stop the env in focus"),
    Command("t", "time_bar", "time", "The time bar: any moment of the run"),
    Command("comma", "step(-1)", "earlier", "One epoch back", ",", shown=False),
    Command("full_stop", "step(1)", "later", "One epoch on", ".", shown=False),
    Command("space", "play", "play", "Play the run from the moment shown, or pause", "space", shown=False),
    Command("L", "live", "live", "Back to what happens now", shown=False),
    Command("y", "copy", "copy", "Copy the card in focus as text", shown=False),
    Command("S", "save", "save", "Save a picture of the screen (SVG)", shown=False),
    Command("T", "theme", "theme", "The next theme: dark, light, colour-blind-safe", shown=False),
    Command("question_mark", "help", "help", "What the glyphs, the numbers and the keys mean", display="?"),
    Command("q", "quit", "quit", "Leave Sanctum; the run goes on"),
)

HAND = {command.key: command.word for command in COMMANDS if command.action.startswith("request(")}
"""The keys of the operator's hand, and what they ask for."""
