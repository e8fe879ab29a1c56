"""What is said and done about alerts: the actions that their rules ask for, carried out once, in step."""

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from sapflow.control.actions import SlotActions
from sapflow.growth.slot import SeedSlot
from sapflow.health.rules import Outcome
from sapflow.telemetry.events import ActionTaken, Alert, AlertCleared, AlertRaised
from sapflow.telemetry.stream import EventStream

log = logging.getLogger("sapflow.control")

Numbered = tuple[int, Alert]
"""An alert, and the number of the event that it was raised by."""


class Notifying(Protocol):
    """Who tells people: never blocks and never raises; whether it arrived is said later, from another thread."""

    def notify(self, epoch: int, sequence: int, alert: Alert) -> None:
        """Take the alert that was raised in this epoch, and with this number."""


class Responses:
    """Carries out the actions of alerts on the slots of an env; one that fails is an event, never an exception.

    Args:
        actions: prune, hold and slow down.
        stream: where it is said.
        functions: that a rule may call, by name, with the alert.
        notifier: tells people; without one, a rule that asks for it fails.
    """

    def __init__(
        self,
        actions: SlotActions,
        stream: EventStream,
        functions: Mapping[str, Callable[[Alert], object]] | None = None,
        notifier: Notifying | None = None,
    ) -> None:
        self.stop_reason = ""  # why the env is to end after this epoch
        self.total_alerts = 0
        self._actions = actions
        self._stream = stream
        self._functions = functions or {}
        self._notifier = notifier

    def say(self, epoch: int, outcome: Outcome) -> list[Numbered]:
        """Say what the rules found, let go what they held, and give the alerts that are new, to be carried out."""
        raised: list[Numbered] = []
        for alert in outcome.raised:
            raised.append((self._stream.next_sequence, alert))
            self._stream.emit(AlertRaised(epoch=epoch, alert=alert))
        for alert in outcome.cleared:
            self._stream.emit(AlertCleared(epoch=epoch, alert=alert, reason="back to normal"))
        for alert in outcome.orphaned:
            self._stream.emit(AlertCleared(epoch=epoch, alert=alert, reason="its rule is there no more"))
        self._let_go(epoch, (*outcome.cleared, *outcome.orphaned))
        self.total_alerts += len(raised)
        return raised

    def carry_out(self, epoch: int, raised: Iterable[Numbered]) -> None:
        """Do what these alerts ask for, which have just been raised."""
        for sequence, alert in raised:
            for action in alert.actions:
                self._respond(epoch, sequence, alert, action)

    def _let_go(self, epoch: int, alerts: Iterable[Alert]) -> None:
        """What these alerts held, which have just been cleared, unless another still holds it, or somebody else."""
        for alert in alerts:
            slot = self._slot_of(alert)
            if "hold" not in alert.actions or slot is None or not slot.state.paused:
                continue
            others = ("hold" in other.actions and other.seed_id == alert.seed_id for other in self._open_alerts())
            if alert.seed_id not in self._actions.held and not any(others):
                self._actions.resume(slot)
                self._say(epoch, alert, "resume", True, "the alert was cleared")

    def _respond(self, epoch: int, sequence: int, alert: Alert, action: str) -> None:
        kind, _, argument = action.partition(":")
        if kind == "notify" and self._notifier is not None:
            self._notifier.notify(epoch, sequence, alert)
            return
        try:
            outcome = self._perform(epoch, alert, kind, argument)
        except Exception as error:  # training comes first, whatever a function of the user's raises
            log.warning("the action %r of rule %r failed: %s: %s", action, alert.rule, type(error).__name__, error)
            self._say(epoch, alert, action, False, f"{type(error).__name__}: {error}")
        else:
            self._say(epoch, alert, action, True, outcome)

    def _perform(self, epoch: int, alert: Alert, kind: str, argument: str) -> str:
        """Do it, and say how in words."""
        if kind == "call":
            self._functions[argument](alert)
            return f"{argument} was called"
        if kind == "notify":
            raise LookupError("nobody to notify: give the rules a [notify] section with urls")
        if kind == "stop":
            self.stop_reason = f"{alert.rule}: {alert.evidence}"
            return "the env ends after this epoch"
        slot = self._slot_of(alert)
        if slot is None:
            return "the seed is gone already"
        if kind == "prune":
            self._actions.prune(epoch, slot, rule=alert.rule, evidence=alert.evidence)
            return "pruned"
        if kind == "hold":
            self._actions.hold(slot, by_rule=True)
            return f"held in {slot.state.stage}"
        if kind == "slow_down":
            return f"its learning rate is {self._actions.slow_down(slot, float(argument)):.3g}"
        raise LookupError(f"no action is named {kind!r}")

    def _slot_of(self, alert: Alert) -> SeedSlot | None:
        """The slot, while the seed of the alert still lives in it."""
        slot = self._actions.slots[alert.slot_id]
        return slot if slot.alive and slot.state.seed_id == alert.seed_id else None

    def _open_alerts(self) -> list[Alert]:
        return self._actions.rules.open_alerts

    def _say(self, epoch: int, alert: Alert, action: str, done: bool, outcome: str) -> None:
        self._stream.emit(ActionTaken(epoch=epoch, alert=alert, action=action, done=done, outcome=outcome))
