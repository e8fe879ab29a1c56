"""Follows a record's value through the whole house: a real network, a real backward pass, a real journal, the card.

A small host trains for three epochs with seeds whose gain is known, since each is an orthogonal matrix times a
constant: healthy (0.85), vanishing (0.1), exploding (5), one that is poisoned with NaN once the host sees it, and one
that learns. A record is tested when a value of its field that is not the default comes unchanged through every station.
"""

import math
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from msgspec.structs import replace
from torch import Tensor, nn

from sapflow.control.actions import SlotActions
from sapflow.control.controller import EpochOutcome
from sapflow.gradients.gradient_monitor import GradientMonitor
from sapflow.growth.blueprints import Blueprint
from sapflow.growth.randomness import single_threaded
from sapflow.growth.slot import SeedSlot, SeedState
from sapflow.health.policy import HealthPolicy, Need
from sapflow.sanctum import schema
from sapflow.sanctum.aggregator import SanctumAggregator
from sapflow.sanctum.widgets.env_detail_screen import SeedCard
from sapflow.telemetry.events import EpochCompleted, GradientHealth, SeedTelemetry
from sapflow.telemetry.journal import Journal
from sapflow.telemetry.records import Record, all_records, record
from sapflow.telemetry.source import Source
from sapflow.telemetry.stream import EventStream
from sapflow.telemetry.vocabulary import Fault, SeedStage
from sapflow.training.env import Env, EnvPlan
from sapflow.training.tasks.task import Data, Task

WIDTH = 16
CLASSES = 4
SAMPLES = 256
CARD_CELLS = 120
_FRAME = str.maketrans("", "", "╭─╮│╰╯")
GAINS = {"healthy": 0.85, "vanishing": 0.1, "exploding": 5.0, "poisoned": 1.0, "learning": 1.0}
EPOCHS = 3
BLENDED_AFTER = 2
# What is known before anything is measured: the first station must agree, to the precision of fp32 norms.
TRUTHS: Mapping[str, Mapping[str, object]] = {
    "grad_ratio": {"healthy": 0.85, "vanishing": 0.1, "exploding": 5.0},
    "has_vanishing": {"vanishing": True},
    "has_exploding": {"exploding": True},
    "seed_params": {"healthy": WIDTH * WIDTH},
    "passes": {"healthy": SAMPLES // 32},
    "slot_id": {"healthy": "healthy"},
    "output_input_rms": {"healthy": 0.85},
    "parameter_liveness": {"learning": 1.0},
    "paused": {"learning": True},
    "fault": {"vanishing": Fault.VANISHING, "exploding": Fault.EXPLODING},
}


class Station(NamedTuple):
    """One stop of a value on its way: what was found there, and whether it is what had to be found."""

    name: str
    value: str
    holds: bool


@dataclass(frozen=True)
class Trace:
    """The way of one record's value."""

    record_id: str
    field: str
    stations: tuple[Station, ...]

    @property
    def broken(self) -> bool:
        """Whether the value was lost or changed on its way."""
        return not all(station.holds for station in self.stations)


@dataclass(frozen=True)
class _Street:
    """What each station holds of each slot at the end of the run."""

    monitor: Mapping[str, GradientHealth]
    state: Mapping[str, SeedState]
    telemetry: Mapping[str, SeedTelemetry]
    journal: Mapping[str, SeedTelemetry]
    moment: Mapping[str, SeedTelemetry]
    snapshot: Mapping[str, schema.SeedState]


def verify(record_ids: Iterable[str]) -> list[Trace]:
    """Follow the values of these records, all through one run.

    Raises:
        InputError: there is no such record.
    """
    wanted = [record(record_id) for record_id in record_ids]
    street = _drive()
    return [_follow(entry, street) for entry in wanted]


def verify_all() -> dict[str, bool]:
    """By record id: whether a value was followed and came through every station."""
    return {trace.record_id: not trace.broken for trace in verify(entry.id for entry in all_records())}


def is_tested(record_id: str) -> bool:
    """Whether this record's value comes through every station."""
    return not verify([record_id])[0].broken


def _drive() -> _Street:
    """Train the host and collect what every station holds."""
    with single_threaded(), tempfile.TemporaryDirectory() as folder:
        return _drive_in(Path(folder))


def _drive_in(run_dir: Path) -> _Street:
    journal = Journal(run_dir)
    plan = EnvPlan(env_id=0, epochs=EPOCHS, rng_seed=557, blending_epochs=2, blending="linear")
    env = Env(_TASK, plan, _Gardener(), EventStream(journal, "verification", 0), _NeedyPolicy(), rules=())
    seen_by_monitor = _tap(env.monitor)
    env.start()
    for _ in range(EPOCHS):
        env.run_epoch()
    journal.close()
    aggregator = SanctumAggregator()
    with Source(run_dir) as source:
        events = source.read()
        moment = source.moment(0)
    for event in events:
        aggregator.apply(event)
    last = next(event.payload for event in reversed(events) if isinstance(event.payload, EpochCompleted))
    assert moment is not None
    assert isinstance(moment.payload, EpochCompleted)
    return _Street(
        monitor=seen_by_monitor,
        state={slot_id: slot.state for slot_id, slot in env.slots.items()},
        telemetry={slot_id: slot.state.telemetry() for slot_id, slot in env.slots.items()},
        journal={seed.slot_id: seed for seed in last.seeds},
        moment={seed.slot_id: seed for seed in moment.payload.seeds},
        snapshot=aggregator.snapshot().envs[0].seeds,
    )


def _tap(monitor: GradientMonitor) -> dict[str, GradientHealth]:
    """What the monitor hands out at the end of each epoch, the newest of each slot."""
    seen: dict[str, GradientHealth] = {}
    close_epoch = monitor.close_epoch

    def tapped() -> dict[str, GradientHealth]:
        health = close_epoch()
        seen.update(health)
        return health

    monitor.close_epoch = tapped  # type: ignore[method-assign]
    return seen


def _follow(entry: Record, street: _Street) -> Trace:
    slot_id = _telling_slot(entry, street)
    ways: list[tuple[str, Callable[[], object]]] = [
        ("SeedState", lambda: _attribute(street.state[slot_id], entry.state_field)),
        ("SeedTelemetry", lambda: getattr(street.telemetry[slot_id], entry.field)),
        ("EPOCH_COMPLETED", lambda: getattr(street.journal[slot_id], entry.field)),
        ("journal by index", lambda: getattr(street.moment[slot_id], entry.field)),
        ("snapshot", lambda: getattr(street.snapshot[slot_id], entry.field)),
    ]
    if entry.field in GradientHealth.__struct_fields__:
        ways.insert(0, ("GradientMonitor", lambda: getattr(street.monitor[slot_id], entry.field)))
    stations = []
    expected = TRUTHS.get(entry.field, {}).get(slot_id, ways[0][1]())
    for name, value_at in ways:
        value = value_at()
        stations.append(Station(name, _shown(value), _same(value, expected)))
        expected = value
    stations.append(_not_default(entry, expected))
    stations.append(_card(entry, street.snapshot[slot_id]))
    return Trace(entry.id, entry.field, tuple(stations))


def _telling_slot(entry: Record, street: _Street) -> str:
    """The slot whose value says most: one with a known truth, else one that differs from the default."""
    known = list(TRUTHS.get(entry.field, {}))
    telling = [
        slot_id
        for slot_id, seed in street.telemetry.items()
        if entry.data.required or not _same(getattr(seed, entry.field), entry.data.default)
    ]
    return [*known, *telling, *GAINS][0]


def _not_default(entry: Record, value: object) -> Station:
    """A value that is the default could as well have been lost on the way."""
    differs = entry.data.required or not _same(value, entry.data.default)
    return Station("not the default", "required" if entry.data.required else _shown(entry.data.default), differs)


def _card(entry: Record, seed: schema.SeedState) -> Station:
    """The card shows the value: it looks different with another one, and where the record has rules, as they say."""
    other = "elsewhere" if entry.data.required else getattr(SeedTelemetry(slot_id=""), entry.field)
    pairs = zip(_drawn(seed), _drawn(replace(seed, **{entry.field: other})), strict=True)
    changed = [line for line, before in pairs if line != before]
    if not changed:
        return Station("SeedCard", "the card does not show it", False)
    frame, *body = ("".join(text for text, _style in line) for line in changed)
    text = next((text for text in body if entry.display.text in text), body[0] if body else frame)
    spans = [(rule.text.format(seed=seed), rule.style) for rule in entry.display.rules]
    as_ruled = not spans or any(span in line for span in spans for line in changed)
    return Station("SeedCard", " ".join(text.translate(_FRAME).split()), as_ruled)


def _drawn(seed: schema.SeedState) -> list[tuple[tuple[str, str], ...]]:
    return [tuple(line) for line in SeedCard(seed).build(CARD_CELLS)]


def _attribute(state: object, path: str) -> object:
    for name in path.split("."):
        state = getattr(state, name)
    return state


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-6) or (math.isnan(one) and math.isnan(other))
    return bool(one == other)


def _shown(value: object) -> str:
    return f"{value:.9g}" if isinstance(value, float) else str(value) or '""'


@dataclass(frozen=True, kw_only=True)
class _NeedyPolicy(HealthPolicy):
    """The record's band, by a policy that needs everything that can be measured."""

    needs = frozenset(Need)


class _Gardener:
    """Plants a seed of each kind before the first epoch; after BLENDED_AFTER two of them blend, and one is held."""

    def decide(self, outcome: EpochOutcome, actions: SlotActions) -> None:
        """As the controller of an env."""
        epoch = outcome.epoch
        for slot_id, slot in actions.slots.items():
            if epoch == 0:
                build = partial(_orthogonal, gain=GAINS[slot_id], learns=slot_id == "learning")
                blueprint = Blueprint(slot_id, 1, build, calibrated=False)
                actions.germinate(epoch, slot, blueprint)
                actions.advance(epoch, slot, SeedStage.TRAINING, "planted")
            elif epoch == BLENDED_AFTER and slot_id in ("healthy", "poisoned"):
                actions.advance(epoch, slot, SeedStage.BLENDING, "two sound epochs")
        if epoch == BLENDED_AFTER:
            actions.hold(actions.slots["learning"])
            poisoned = actions.slots["poisoned"].seed
            assert poisoned is not None
            for parameter in poisoned.parameters():
                parameter.fill_(math.nan)

    def state_dict(self) -> dict[str, Any]:
        """It remembers nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """It remembers nothing."""


def _orthogonal(shape: tuple[int, ...], gain: float, learns: bool) -> nn.Module:
    """Its gain is `gain` for every gradient, and stays so unless it learns."""
    (width,) = shape
    layer = nn.Linear(width, width, bias=False).requires_grad_(learns)
    nn.init.orthogonal_(layer.weight, gain=gain)
    return layer


class _Host(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for slot_id in GAINS:
            layers += [nn.Linear(WIDTH, WIDTH), nn.Tanh(), SeedSlot(slot_id, (WIDTH,))]
        self.body = nn.Sequential(*layers, nn.Linear(WIDTH, CLASSES))
        for layer in self.body:
            if isinstance(layer, nn.Linear):
                nn.init.orthogonal_(layer.weight, gain=1.5)  # so that its answers depend on its inputs from the start

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)  # type: ignore[no-any-return]


def _make_data() -> Data:
    """Labels that a random network of the same kind gave: something to learn, the same on every machine."""
    generator = torch.Generator().manual_seed(557)
    inputs = torch.randn(2 * SAMPLES, WIDTH, generator=generator)
    labels = (inputs @ torch.randn(WIDTH, CLASSES, generator=generator)).argmax(-1)
    return Data(inputs[:SAMPLES], labels[:SAMPLES], inputs[SAMPLES:], labels[SAMPLES:])


_TASK = Task("verification", _make_data, _Host, batch_size=32)
