"""Asks the person, then the trainer, and shows what comes of it."""

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen

from sapflow.errors import InputError
from sapflow.sanctum.glyphs import VERMILLION
from sapflow.sanctum.hand import (
    Standing,
    answer_to,
    new_request,
    question_lines,
    standing_lines,
    standing_of,
    why_not,
)
from sapflow.sanctum.schema import EnvState
from sapflow.sanctum.spans import Line, clean, labelled
from sapflow.sanctum.widgets.key_bar import KeyBar
from sapflow.sanctum.widgets.panel import TallPanel
from sapflow.sanctum.widgets.shell import Subject, shell
from sapflow.telemetry.events import RequestAnswered
from sapflow.telemetry.mailbox import Mailbox, Request
from sapflow.telemetry.source import RunState

LOOK_SECONDS = 0.25


class RequestDialog(ModalScreen[None]):
    """One request: a question first; once it is confirmed, its standing. Closed, it stays with the trainer."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "confirm", "yes, ask the trainer", tooltip="Ask the trainer"),
        Binding("escape,n", "app.back", "close", key_display="esc", tooltip="Close; what was asked stays asked"),
    ]

    def __init__(self, action: str, subject: Subject) -> None:
        super().__init__()
        assert subject.env_id is not None  # the app asks about something only
        self.request_action = action
        self.subject = subject
        self.env_id = subject.env_id
        self.request: Request | None = None
        self.answer: RequestAnswered | None = None
        self._failure = ""  # of asking
        self._obstacle = ""  # why it cannot be asked any more

    def compose(self) -> ComposeResult:
        """The question, its standing, and the keys."""
        with Vertical():
            yield TallPanel(id="question")
            yield TallPanel(id="standing")
            yield KeyBar()

    def on_mount(self) -> None:
        """Looks now, and again and again."""
        self.look()
        self.set_interval(LOOK_SECONDS, self.look)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """It is asked once."""
        return action != "confirm" or (self.request is None and not self._failure and not self._obstacle)

    def action_confirm(self) -> None:
        """Posts the request; where that cannot be done, says so at once."""
        app = shell(self)
        request = new_request(self.request_action, self.env_id, *self.subject[1:], app.clock())
        try:
            Mailbox(app.source.run_dir).post(request)
            self.request = request
        except InputError as error:
            self._failure = str(error)
        self.refresh_bindings()
        self.look()

    def look(self) -> None:
        """Draws how things stand."""
        app = shell(self)
        env = app.snapshot.envs.get(self.env_id, EnvState(env_id=self.env_id))
        if self.request is None:  # what was asked about stays as it was
            self._ask(env)
        standing = self._standing()
        now = app.clock()
        self.query_one("#standing", TallPanel).show(
            (self.request, self._failure, self._obstacle, standing, self.answer, env.epoch, int(now)),
            lambda width, _: self._standing_lines(standing, env, now, width),
        )

    def _ask(self, env: EnvState) -> None:
        """Draws the question; once it cannot be asked any more, as it was last."""
        app = shell(self)
        obstacle = why_not(
            self.request_action, self.env_id, self.subject.seed_id, app.snapshot, app.moment, app.read_only
        )
        if obstacle != self._obstacle:
            self._obstacle = obstacle
            self.refresh_bindings()
        if not obstacle:
            seed = None if self.request_action == "stop" else env.seeds.get(self.subject.slot_id)
            self.query_one("#question", TallPanel).show(
                (env.epoch, env.status, seed),
                lambda width, _: question_lines(self.request_action, env, seed, width),
            )

    def _standing(self) -> Standing:
        app = shell(self)
        if self.request is not None and self.answer is None:
            with app.look_up(self):
                self.answer = answer_to(self.request, app.source)
        status = app.snapshot.status
        return standing_of(self.answer, status.state if status else RunState.LIVE)

    def _standing_lines(self, standing: Standing, env: EnvState, now: float, width: int) -> list[Line]:
        if self._failure:
            return [(), *labelled(("✕ ", f"bold {VERMILLION}"), f"not asked: {clean(self._failure, 500)}", "", width)]
        if self.request is None and self._obstacle:
            return [(), *labelled(("✕ ", f"bold {VERMILLION}"), f"it cannot be asked: {self._obstacle}", "", width)]
        if self.request is None:
            return [()]
        return [(), *standing_lines(self.request, self.answer, standing, env, now, width)]
