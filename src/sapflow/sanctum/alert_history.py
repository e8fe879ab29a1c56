"""Alerts from the moment they were raised until they were cleared, with what was done about them."""

from collections.abc import Hashable, Iterable

from msgspec import Struct
from msgspec.structs import replace

from sapflow.telemetry.events import ActionTaken, Alert, AlertCleared, AlertRaised, TelemetryEvent
from sapflow.telemetry.vocabulary import EventType

ALERT_EVENTS = (EventType.ALERT_RAISED, EventType.ALERT_CLEARED, EventType.ACTION_TAKEN)

Key = tuple[int | None, str, str, str]


class AlertLife(Struct, frozen=True, kw_only=True):
    """One alert of an env; `raised_epoch` is None where that event is not at hand, `cleared_epoch` while it is open.

    `lost`: it no longer stands, and when that ended is not known.
    """

    env_id: int | None
    alert: Alert
    raised_epoch: int | None = None
    raised_at: float | None = None
    cleared_epoch: int | None = None
    cleared_reason: str = ""
    lost: bool = False
    actions: tuple[ActionTaken, ...] = ()

    @property
    def key(self) -> Hashable:
        """What tells it from every other alert."""
        return (self.env_id, self.alert.rule, self.alert.slot_id, self.alert.seed_id, self.alert.since_epoch)

    @property
    def is_open(self) -> bool:
        """Whether the rule still holds."""
        return self.cleared_epoch is None and not self.lost


def alert_lives(events: Iterable[TelemetryEvent], open_now: Iterable[tuple[int, Alert]] = ()) -> list[AlertLife]:
    """The alerts that the events tell of: the open ones first, and of each kind the newest first.

    Args:
        events: in the order they were written; those of other types are passed over.
        open_now: the alerts that are known to be open; no other is, whatever the events say.
    """
    lives: list[AlertLife] = []
    newest: dict[Key, int] = {}
    for event in events:
        _tell(event, lives, newest)
    standing = {_key(env_id, alert): alert for env_id, alert in open_now}
    for key, alert in standing.items():
        if key not in newest or not lives[newest[key]].is_open:
            newest[key] = len(lives)
            lives.append(AlertLife(env_id=key[0], alert=alert))
    latest = set(newest.values())
    known = [
        life
        if not life.is_open or (n in latest and _key(life.env_id, life.alert) in standing)
        else replace(life, lost=True)
        for n, life in enumerate(lives)
    ]
    newest_first = known[::-1]
    return [
        *(life for life in newest_first if life.is_open),
        *(life for life in newest_first if not life.is_open),
    ]


def _tell(event: TelemetryEvent, lives: list[AlertLife], newest: dict[Key, int]) -> None:
    payload = event.payload
    if not isinstance(payload, AlertRaised | AlertCleared | ActionTaken):
        return
    key = _key(event.env_id, payload.alert)
    at = newest.get(key)
    if isinstance(payload, AlertRaised) or at is None:
        newest[key] = at = len(lives)
        lives.append(AlertLife(env_id=event.env_id, alert=payload.alert))
    life = lives[at]
    if isinstance(payload, AlertRaised):
        lives[at] = replace(life, raised_epoch=payload.epoch, raised_at=event.time)
    elif isinstance(payload, AlertCleared):
        lives[at] = replace(life, cleared_epoch=payload.epoch, cleared_reason=payload.reason)
    else:
        lives[at] = replace(life, actions=(*life.actions, payload))


def _key(env_id: int | None, alert: Alert) -> Key:
    return (env_id, alert.rule, alert.slot_id, alert.seed_id)
