"""What a person searches for: words, an env, a slot; and which kinds of entries and alerts are wanted."""

import re
from collections.abc import Iterable

from msgspec import Struct

from sapflow.sanctum.alert_history import AlertLife
from sapflow.sanctum.schema import LogLine
from sapflow.telemetry.vocabulary import EventType

KINDS: dict[str, tuple[EventType, ...]] = {
    "all": (
        EventType.RUN_STARTED, EventType.RUN_RESUMED, EventType.RUN_COMPLETED, EventType.ENV_STARTED,
        EventType.ENV_COMPLETED, EventType.ENV_FAILED, EventType.SEED_GERMINATED, EventType.SEED_STAGE_CHANGED,
        EventType.SEED_FOSSILIZED, EventType.SEED_PRUNED, EventType.NON_FINITE_FOUND, EventType.ALERT_RAISED,
        EventType.ALERT_CLEARED, EventType.ACTION_TAKEN, EventType.REQUEST_ANSWERED,
    ),
    "growth": (EventType.SEED_GERMINATED, EventType.SEED_STAGE_CHANGED, EventType.SEED_FOSSILIZED),
    "pruned": (EventType.SEED_PRUNED,),
    "alerts": (EventType.ALERT_RAISED, EventType.ALERT_CLEARED),
    "actions": (EventType.ACTION_TAKEN, EventType.REQUEST_ANSWERED),
    "faults": (EventType.NON_FINITE_FOUND, EventType.ENV_FAILED),
}  # fmt: skip
"""The kinds of entries, in the order of their keys, from 1 on."""

STATES = ("all", "open", "closed")
"""Those of alerts, likewise."""

_TERM = re.compile(r'(?:(env|slot):)?(?:"([^"]*)"|(\S+))', re.IGNORECASE)


class Query(Struct, frozen=True, kw_only=True):
    """Finds what is of the env (None: of any) and has the slot and all the words as parts, in any case of letters."""

    env_id: int | None = None
    slot: str = ""
    words: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str, env_id: int | None = None) -> "Query":
        """What `text` asks for, such as `slot:mid exploding env:3 "out of memory"`."""
        slot, words = "", list[str]()
        for name, quoted, plain in _TERM.findall(text):
            value = quoted or plain
            if name.lower() == "env" and value.isdecimal():
                env_id = int(value)
            elif name.lower() == "slot":
                slot = value.casefold()
            elif value:
                words.append((f"{name}:{value}" if name else value).casefold())
        return cls(env_id=env_id, slot=slot, words=tuple(words))

    def finds(self, env_id: int | None, slot_id: str, texts: Iterable[str]) -> bool:
        """Whether something of that env and slot, with these texts, is found."""
        if self.env_id not in (None, env_id) or self.slot not in slot_id.casefold():
            return False
        if not self.words:
            return True
        text = " ".join((slot_id, *texts)).casefold()
        return all(word in text for word in self.words)


class LogFilter(Struct, frozen=True, kw_only=True):
    """Entries of one of the KINDS that the query finds."""

    query: Query = Query()
    kind: str = "all"

    @property
    def types(self) -> tuple[EventType, ...]:
        """The types of events that it lets through."""
        return KINDS[self.kind]

    def lets_through(self, entry: LogLine) -> bool:
        """Whether the entry is shown."""
        return entry.kind in self.types and self.query.finds(entry.env_id, entry.slot_id, entry.parts)


class AlertFilter(Struct, frozen=True, kw_only=True):
    """Alerts in one of the STATES that the query finds."""

    query: Query = Query()
    state: str = "all"

    def lets_through(self, life: AlertLife) -> bool:
        """Whether the alert is shown."""
        if self.state != "all" and life.is_open != (self.state == "open"):
            return False
        alert = life.alert
        done = (part for taken in life.actions for part in (taken.action, taken.outcome))
        texts = (alert.rule, alert.blueprint_id, alert.seed_id, alert.severity, alert.evidence, *alert.actions, *done)
        return self.query.finds(life.env_id, alert.slot_id, texts)
