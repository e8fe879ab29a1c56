"""What a person searches for: words, an env, a slot, a blueprint; and which kinds of entries and alerts are wanted."""

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

HINT = 'words  "some words"  env:3 or 3  slot:mid  blueprint:conv'

_TERM = re.compile(r'(?:(env|slot|blueprint):)?(?:"([^"]*)"|(\S*))', re.IGNORECASE)
_MOST_DIGITS = 9  # of an env's number


class Query(Struct, frozen=True, kw_only=True):
    """Finds what is of the env (None: of any) and has the slot, the blueprint and all the words as parts.

    Upper and lower case are the same.
    """

    env_id: int | None = None
    slot: str = ""
    blueprint: str = ""
    words: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str, env_id: int | None = None) -> "Query":
        """What `text` asks for, such as `slot:mid exploding env:3 "out of memory"`; a bare number is an env's."""
        slot, blueprint, words = "", "", list[str]()
        for field, quoted, plain in _TERM.findall(text.casefold()):
            value = quoted or plain
            if field == "slot":
                slot = value
            elif field == "blueprint":
                blueprint = value
            elif plain.isdecimal() and len(plain) <= _MOST_DIGITS:
                env_id = int(plain)
            elif value:
                words.append(f"{field}:{value}" if field else value)
        return cls(env_id=env_id, slot=slot, blueprint=blueprint, words=tuple(words))

    def names(self, env_id: int | None, slot_id: str, blueprint_id: str) -> bool:
        """Whether that is the env, the slot and the blueprint asked for."""
        return (
            self.env_id in (None, env_id)
            and self.slot in slot_id.casefold()
            and self.blueprint in blueprint_id.casefold()
        )

    def reads(self, texts: Iterable[str]) -> bool:
        """Whether all the words occur in the texts."""
        if not self.words:
            return True
        text = " ".join(texts).casefold()
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
        return (
            entry.kind in self.types
            and self.query.names(entry.env_id, entry.slot_id, entry.blueprint_id)
            and self.query.reads((entry.slot_id, *entry.parts))
        )


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
        seed = (alert.slot_id, alert.blueprint_id, alert.seed_id)
        texts = (*seed, alert.rule, alert.severity, alert.evidence, *alert.actions, *done)
        return self.query.names(life.env_id, alert.slot_id, alert.blueprint_id) and self.query.reads(texts)
