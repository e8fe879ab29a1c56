"""`sapflow.grow`: seeds in anybody's model and loop, which stay what they are to the bit while nothing blends."""

import copy
import subprocess
import sys
from functools import reduce

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from sapflow import grow
from sapflow.control.actions import SlotActions
from sapflow.control.controller import EpochOutcome
from sapflow.control.controllers import ScheduledController
from sapflow.control.life_cycle import GrowthPlan
from sapflow.errors import BlueprintError, IllegalTransitionError, InputError
from sapflow.exporters.run_identity import identity_of
from sapflow.gradients.gradient_monitor import GradientMonitor
from sapflow.growth.blueprints import Blueprint, blueprint, catalogue
from sapflow.growth.export import export
from sapflow.growth.host import ConvHost, DenseHost, slots_of
from sapflow.growth.seed_trainer import SeedTraining
from sapflow.growth.slot import SeedSlot
from sapflow.health.rules import Condition, Rule
from sapflow.telemetry.codec import decode, encode
from sapflow.telemetry.events import AlertCleared, EpochCompleted, SeedPruned
from sapflow.telemetry.source import RunState, Source
from sapflow.telemetry.vocabulary import Measurement, SeedStage

S = SeedStage


def through(parts, x):
    return reduce(lambda h, part: part(h), parts, x)


class Checkpointed(nn.Sequential):
    """Computes its activations anew in the backward pass."""

    def forward(self, x):
        first, rest = list(self)[:3], list(self)[3:]
        return checkpoint(through, rest, checkpoint(through, first, x, use_reentrant=False), use_reentrant=False)


class HalfFrozen(nn.Sequential):
    """Computes its first half without gradients."""

    def forward(self, x):
        with torch.no_grad():
            h = through(list(self)[:4], x)
        return through(list(self)[4:], h)


def make_model(kind=nn.Sequential):
    torch.manual_seed(2)
    return kind(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(inplace=True), nn.Dropout(0.3), nn.Linear(8, 8), nn.Tanh(),
        nn.Linear(8, 3),
    )  # fmt: skip


def healthy(shape):
    return nn.Sequential(nn.Linear(*shape, *shape), nn.BatchNorm1d(*shape), nn.Dropout(0.4), nn.Linear(*shape, *shape))


class Poison(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(shape))

    def forward(self, h):
        return h * self.weight * torch.nan


class Script:
    """A controller that germinates one blueprint everywhere before the first epoch, then does what it is told to."""

    def __init__(self, build=healthy, **then):
        self.build, self.then = build, then

    def decide(self, outcome: EpochOutcome, actions: SlotActions) -> None:
        for slot in actions.slots.values():
            if outcome.epoch == 0:
                actions.germinate(0, slot, Blueprint("scripted", len(slot.shape), self.build, calibrated=False))
                actions.advance(0, slot, S.TRAINING, "scripted")
            for target in self.then.get(f"after_{outcome.epoch}", ()):
                slot.state.sound_epochs = 2
                if target is S.PRUNED:
                    actions.prune(outcome.epoch, slot, rule="scripted", evidence="")
                else:
                    actions.advance(outcome.epoch, slot, target, "scripted")


class Nobody:
    """A controller that lets everything be."""

    def decide(self, outcome: EpochOutcome, actions: SlotActions) -> None:
        pass


def batches(steps):
    generator = torch.Generator().manual_seed(5)
    inputs = torch.randn(steps, 12, 6, generator=generator)
    return list(zip(inputs, (inputs.sum(-1) > 0).long() + (inputs[..., 0] > 1), strict=True))


def trained(slots=None, build=healthy, *, steps=6, micro=1, fp16=False, clip=False, checkpointed=False, watched=()):
    """Everything that belongs to the model, step by step: losses, gradients, buffers, random state."""
    model = make_model(Checkpointed if checkpointed else nn.Sequential)
    for monitor in watched:
        monitor.attach("last", model[-1])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**14, growth_interval=3) if fp16 else None
    growth = None
    if slots is not None:
        growth = grow(model, slots, optimizer=optimizer, controller=Script(build), grad_scaler=scaler)
    seen = []
    torch.manual_seed(9)
    for x, y in batches(steps):
        optimizer.zero_grad()
        for part_x, part_y in zip(x.chunk(micro), y.chunk(micro), strict=True):

            def closure(net, x=part_x, y=part_y):
                with torch.autocast("cpu", torch.float16, enabled=fp16):
                    return F.cross_entropy(net(x).float(), y) / micro

            loss = growth.loss(closure) if growth is not None else closure(model)
            (scaler.scale(loss) if scaler is not None else loss).backward()
            seen.append(loss.detach())
        if scaler is not None:
            scaler.unscale_(optimizer)
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        seen += [parameter.grad.clone() for parameter in model.parameters()]
        if scaler is not None:
            scaler.step(optimizer)
            scaler.update()
        else:
            optimizer.step()
        seen += [buffer.clone() for buffer in model.buffers()] + [torch.get_rng_state()]
    return seen, growth


@pytest.mark.parametrize("build", [healthy, Poison])
@pytest.mark.parametrize(
    "options",
    [
        {}, {"clip": True}, {"micro": 3}, {"fp16": True, "clip": True}, {"fp16": True, "micro": 2},
        {"checkpointed": True},
    ],
    ids=str,
)  # fmt: skip
def test_what_incubates_changes_no_bit_of_the_model(build, options):
    alone, _ = trained(**options)
    grown, growth = trained({"2": "after", "4": "before", "5": "after"}, build, **options)
    assert len(alone) == len(grown)
    assert all(torch.equal(one, other) for one, other in zip(alone, grown, strict=True))
    seeds = growth.epoch().seeds
    assert {seed.stage for seed in seeds} == {S.TRAINING}
    expected = Measurement.MEASURED if build is healthy else Measurement.NON_FINITE
    assert {seed.measurement for seed in seeds} == {expected}


class Idle:
    """A controller that leaves everything to the test."""

    def decide(self, outcome: EpochOutcome, actions: SlotActions) -> None:
        pass


@pytest.mark.parametrize("build", [healthy, Poison])
def test_what_incubates_changes_no_bit_of_a_fossil_nor_of_what_is_counted_of_it(build):
    def fossil(beside):
        model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        growth = grow(model, {"1": "after", "3": "after"}, optimizer=optimizer, controller=Idle())
        growth.loss(lambda net: net(batches(1)[0][0]).sum())
        first, second = growth.actions.slots.values()
        growth.actions.germinate(0, first, Blueprint("old", 1, build, calibrated=False))
        for target in (S.TRAINING, S.BLENDING, S.HOLDING, S.FOSSILIZED):
            first.state.sound_epochs, first.state.alpha = 2, 1.0
            growth.actions.advance(0, first, target, "test")
        if beside:
            growth.actions.germinate(0, second, Blueprint("new", 1, healthy, calibrated=False))
            growth.actions.advance(0, second, S.TRAINING, "test")
        torch.manual_seed(9)
        for x, y in batches(3):
            growth.loss(lambda net, x=x, y=y: F.cross_entropy(net(x), y)).backward()
            optimizer.step()
        return growth.epoch().seeds[0].masked_values, first.seed.state_dict()

    torch.manual_seed(2)
    masked, alone = fossil(beside=False)
    torch.manual_seed(2)
    masked_beside, accompanied = fossil(beside=True)
    assert masked == masked_beside
    assert (masked > 0) == (build is Poison)
    torch.testing.assert_close(accompanied, alone, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("options", [{}, {"micro": 3}, {"checkpointed": True}], ids=str)
def test_who_watches_the_model_sees_its_own_gradients_and_none_of_a_shadow(options):
    seen = []
    for slots in (None, {"2": "after", "5": "after"}):
        monitor = GradientMonitor()
        trained(slots, watched=[monitor], **options)
        seen.append(monitor.close_epoch()["last"])
    assert seen[0].measurement is Measurement.MEASURED
    assert seen[0] == seen[1]


@pytest.mark.parametrize("fp16", [False, True])
def test_micro_batches_give_the_gradients_of_the_whole_batch(fp16):
    """Without BatchNorm and dropout, in the seed and before it: the seed's weights are the same but for rounding."""

    def linear(shape):
        return nn.Linear(*shape, *shape)

    weights = []
    for micro in (1, 3):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler("cpu", enabled=fp16, init_scale=1024.0)
        growth = grow(
            model, {"1": "after"}, optimizer=optimizer, controller=Script(linear), grad_scaler=scaler,
            training=SeedTraining(make_optimizer=lambda seed: torch.optim.SGD(seed.parameters(), lr=0.1)),
        )  # fmt: skip
        for x, y in batches(5):
            optimizer.zero_grad()
            for part_x, part_y in zip(x.chunk(micro), y.chunk(micro), strict=True):
                scaler.scale(
                    growth.loss(lambda net, x=part_x, y=part_y, n=micro: F.cross_entropy(net(x), y) / n)
                ).backward()  # fmt: skip
            scaler.step(optimizer)
            scaler.update()
        weights.append(growth.actions.slots["1"].seed.weight.detach().clone())
        assert growth.epoch().total_shadows == 5 * micro
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-4, atol=1e-6)


def test_an_overflowing_scale_stops_neither_the_model_nor_the_seed_for_good():
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    growth = grow(
        model, {"1": "after"}, optimizer=optimizer, grad_scaler=scaler, controller=Script(after_0=[S.BLENDING])
    )
    before = None
    for x, y in batches(60):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            loss = growth.loss(lambda net, x=x, y=y: F.cross_entropy(net(x), y))
        seed = growth.actions.slots["1"].seed
        before = before or copy.deepcopy(seed.state_dict())
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    (said,) = growth.epoch().seeds
    assert scaler.get_scale() < 2.0**40
    assert said.non_finite_passes > 0
    assert said.masked_values == 0  # what overflows before it comes to the seed is not the seed's doing
    assert all(parameter.isfinite().all() for parameter in seed.parameters())
    assert not torch.equal(before["0.weight"], seed[0].weight)


def test_where_the_model_computes_without_gradients_a_seed_cannot_learn_and_nothing_breaks():
    model = make_model(HalfFrozen)
    optimizer = torch.optim.SGD(model[4:].parameters(), lr=0.1)
    growth = grow(model, {"0": "after"}, optimizer=optimizer, controller=Script())
    for x, y in batches(3):
        optimizer.zero_grad()
        growth.loss(lambda net, x=x, y=y: F.cross_entropy(net(x), y)).backward()
        optimizer.step()
    (seed,) = growth.epoch().seeds
    assert seed.stage is S.TRAINING
    assert seed.measurement not in (Measurement.MEASURED, Measurement.NON_FINITE)


def grown_for_real(epochs=14, run_dir=None, **options):
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data = batches(4)

    def accuracy(net):
        net.eval()
        with torch.no_grad():
            right = [(net(x).argmax(-1) == y).double().mean() for x, y in data]
        net.train()
        return 100 * float(torch.stack(right).mean())

    growth = grow(
        model, {"2": "after", "4": "before"}, optimizer=optimizer, run_dir=run_dir,
        training=SeedTraining(blending_steps=8), epochs=epochs, **options,
    )  # fmt: skip
    said = []
    for _ in range(epochs):
        for x, y in data:
            optimizer.zero_grad()
            growth.loss(lambda net, x=x, y=y: F.cross_entropy(net(x), y)).backward()
            optimizer.step()
        said.append(growth.epoch(accuracy))
    return model, growth, said


class TestALife:
    def test_goes_from_germination_to_a_fossil_that_is_exported_without_sapflow(self, tmp_path):
        script = Script(
            lambda shape: nn.Linear(*shape, *shape), after_2=[S.BLENDING], after_4=[S.HOLDING], after_6=[S.FOSSILIZED]
        )
        model, growth, said = grown_for_real(8, controller=script)
        assert [str(epoch.seeds[0].stage) for epoch in said] == [
            "TRAINING", "TRAINING", "BLENDING", "BLENDING", "HOLDING", "HOLDING", "FOSSILIZED", "FOSSILIZED"
        ]  # fmt: skip
        assert [epoch.total_shadows for epoch in said] == [8, 16] + [16] * 6
        plain = growth.export().eval()
        x = torch.randn(5, 6)
        torch.testing.assert_close(plain(x), model.eval()(x))
        assert not any("sapflow" in type(part).__module__ for part in plain.modules())
        torch.save(plain, tmp_path / "plain.pt")
        torch.save((x, plain(x)), tmp_path / "seen.pt")
        loads = (
            "import sys; sys.modules['sapflow'] = None; import torch\n"
            "x, y = torch.load('seen.pt'); net = torch.load('plain.pt', weights_only=False)\n"
            "assert torch.equal(net(x), y)"
        )
        subprocess.run([sys.executable, "-c", loads], cwd=tmp_path, check=True)

    def test_leaves_the_keys_and_copies_of_the_model_as_they_are(self):
        model, growth, _ = grown_for_real(3, controller=Script(after_1=[S.BLENDING]))
        assert list(model.state_dict()) == list(make_model().state_dict())
        x = torch.randn(5, 6)
        model.eval()
        twin = copy.deepcopy(model)
        assert torch.equal(twin(x), model(x))
        for parameter in growth.actions.slots["2"].seed.parameters():
            parameter.data.zero_()
        assert not torch.equal(twin(x), model(x))  # a copy has seeds of its own

    def test_is_kept_and_can_be_looked_at(self, tmp_path):
        _, growth, said = grown_for_real(3, run_dir=tmp_path / "run", controller=Script(after_2=[S.PRUNED]))
        growth.close()
        growth.close()
        with Source(growth.run_dir) as source:
            events = source.read()
        assert [event.payload for event in events if isinstance(event.payload, EpochCompleted)] == said
        assert [event.payload.slot_id for event in events if isinstance(event.payload, SeedPruned)] == ["2", "4"]
        assert events[-1].type == "RUN_COMPLETED"
        assert decode(encode(events[0])) == events[0]

    def test_by_the_default_controller_ends_in_fossils(self):
        _, _, said = grown_for_real(24)
        assert {seed.stage for seed in said[-1].seeds} & {S.FOSSILIZED, S.HOLDING}


def test_what_is_told_as_a_tensor_is_kept_as_a_number(tmp_path):
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    growth = grow(
        model, {"2": "after"}, optimizer=optimizer, run_dir=tmp_path / "run", controller=Script(after_1=[S.BLENDING])
    )
    for _ in range(2):
        for x, y in batches(2):
            optimizer.zero_grad()
            loss = growth.loss(lambda net, x=x, y=y: F.cross_entropy(net(x), y))
            loss.backward()
            optimizer.step()
        growth.epoch(lambda net: 100 * (net(x).argmax(-1) == y).float().mean(), train_loss=loss.detach())  # noqa: B023
    torch.save(growth.actions.state_dict(), tmp_path / "state.pt")
    torch.load(tmp_path / "state.pt", weights_only=True)
    growth.close()
    with Source(growth.run_dir) as source:
        said = [event.payload for event in source.read() if isinstance(event.payload, EpochCompleted)]
    assert [type(number) for one in said for number in (one.accuracy, one.train_loss)] == [float] * 4


@pytest.mark.parametrize("without_gradients", [torch.no_grad, torch.inference_mode])
def test_epochs_may_end_where_the_loop_validates(without_gradients):
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    plan = GrowthPlan(first_germination=1, training_epochs=2, blending_epochs=1, holding_epochs=1)
    growth = grow(
        model, {"2": "after"}, optimizer=optimizer, training=SeedTraining(blending_steps=4),
        controller=ScheduledController(plan, 0, pool=[Blueprint("linear", 1, lambda shape: nn.Linear(*shape, *shape))]),
    )  # fmt: skip
    for _ in range(6):
        for x, y in batches(4):
            optimizer.zero_grad()
            growth.loss(lambda net, x=x, y=y: F.cross_entropy(net(x), y)).backward()
            optimizer.step()
        with without_gradients():
            (seed,) = growth.epoch().seeds
    assert seed.stage is S.FOSSILIZED
    assert seed.measurement is Measurement.MEASURED


class Mixed(nn.Module):
    """Computes its halves in the dtypes that it is told."""

    def __init__(self, *dtypes):
        super().__init__()
        self.first, self.second = (nn.Linear(6, 6, dtype=dtype) for dtype in dtypes)

    def forward(self, x):
        for part in (self.first, self.second):
            x = part(x.to(part.weight.dtype))
        return x.float()


@pytest.mark.parametrize("dtypes", [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)], ids=str)
def test_seeds_are_of_the_dtype_of_what_passes_their_slots(dtypes):
    def begun():
        model = Mixed(*dtypes)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        plan = GrowthPlan(first_germination=0, germination_interval=0)
        controller = ScheduledController(plan, 0, plants={"first": "mlp", "second": "mlp"})
        return grow(model, {"first": "after", "second": "after"}, optimizer=optimizer, controller=controller), optimizer

    def epoch(growth, optimizer):
        for x, y in batches(2):
            optimizer.zero_grad()
            growth.loss(lambda net, x=x, y=y: F.cross_entropy(net(x), y)).backward()
            optimizer.step()
        assert [seed.measurement for seed in growth.epoch().seeds] == [Measurement.MEASURED] * 2
        return [next(slot.seed.parameters()).dtype for slot in growth.actions.slots.values()]

    growth, optimizer = begun()
    assert epoch(growth, optimizer) == list(dtypes)
    resumed, optimizer = begun()
    resumed.load_state_dict(growth.state_dict())
    assert epoch(resumed, optimizer) == list(dtypes)


@pytest.mark.parametrize("of", ["the host", "another seed"])
def test_a_blueprint_with_parameters_that_others_have_is_refused_and_changes_none(of):
    model = make_model()
    one = model[4] if of == "the host" else nn.Linear(8, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with grow(model, {"1": "after", "4": "after"}, optimizer=optimizer, controller=Nobody()) as growth:
        growth.loss(lambda net: net(batches(1)[0][0]).square().mean())
        first, second = growth.actions.slots.values()
        shared = Blueprint("shared", 1, lambda shape: nn.Sequential(one))
        if of == "another seed":
            growth.actions.germinate(0, first, shared)
        before = one.weight.clone()
        with pytest.raises(BlueprintError, match="parameters of the host or of another seed"):
            growth.actions.germinate(0, second, shared)
        assert torch.equal(one.weight, before)
        assert second.state.stage is S.DORMANT


def test_a_seed_that_fails_in_its_shadow_is_given_up_and_the_training_goes_on(tmp_path):
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    growth = grow(model, {"1": "after"}, optimizer=optimizer, run_dir=tmp_path / "run", controller=Script())
    x, y = batches(1)[0]
    for part_x, part_y in zip(x.split([11, 1]), y.split([11, 1]), strict=True):  # BatchNorm needs two samples
        optimizer.zero_grad()
        growth.loss(lambda net, x=part_x, y=part_y: F.cross_entropy(net(x), y)).backward()
        optimizer.step()
    assert growth.epoch().seeds[0].stage is S.PRUNED
    growth.close()
    with Source(growth.run_dir) as source:
        (pruned,) = [event.payload for event in source.read() if isinstance(event.payload, SeedPruned)]
    assert (pruned.rule, pruned.epoch) == ("broken", 1)
    assert pruned.evidence.startswith("ValueError: Expected more than 1 value per channel")


@pytest.mark.parametrize("stage", [S.TRAINING, S.BLENDING])
@pytest.mark.parametrize("after", ["loss", "backward"])
def test_a_batch_that_the_loop_skips_is_as_if_it_had_never_been(stage, after):
    def run(skipped):
        model, said = make_model(), []
        model[3] = nn.Identity()  # no dropout, for which the batch would draw numbers
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        controller = Script(lambda shape: nn.Linear(*shape, *shape), after_1=[S.BLENDING] * (stage is S.BLENDING))
        with grow(model, {"4": "after"}, optimizer=optimizer, controller=controller) as growth:
            for epoch in range(3):
                for step, (x, y) in enumerate(batches(4)):
                    optimizer.zero_grad()
                    if (epoch, step) == (1, 2) and skipped:
                        loss = growth.loss(lambda net, x=x, y=y: F.cross_entropy(net(x), y) * torch.nan)
                        if after == "backward":
                            loss.backward()
                            optimizer.zero_grad()
                        growth.skip()
                    elif (epoch, step) != (1, 2):
                        growth.loss(lambda net, x=x, y=y: F.cross_entropy(net(x), y)).backward()
                        optimizer.step()
                said.append(growth.epoch().seeds)
            slot = growth.actions.slots["4"]
            assert slot.state.stage is stage
            return said, [weight.detach().clone() for weight in slot.seed.parameters()]

    (with_it, weights), (without, expected) = run(skipped=True), run(skipped=False)
    assert with_it == without
    assert all(map(torch.equal, weights, expected))


def test_a_paused_seed_learns_but_neither_blends_nor_moves_on():
    model, growth, _ = grown_for_real(1, controller=Script(after_1=[S.BLENDING]))
    slot = growth.actions.slots["2"]
    growth.actions.hold(slot)
    weight = slot.seed[0].weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    alphas = []
    for _ in range(3):
        for x, y in batches(4):
            optimizer.zero_grad()
            growth.loss(lambda net, x=x, y=y: F.cross_entropy(net(x), y)).backward()
            optimizer.step()
            growth._grower.monitor.step()
        alphas.append(growth.epoch().seeds[0])
    assert [seed.paused for seed in alphas] == [True] * 3
    assert len({seed.alpha for seed in alphas}) == 1
    assert {seed.epochs_in_stage for seed in alphas} == {0}
    assert not torch.equal(weight, slot.seed[0].weight)
    with pytest.raises(IllegalTransitionError, match="paused"):
        slot.advance(S.HOLDING)
    growth.actions.resume(slot)
    assert "paused" not in slot.closed_gate(S.HOLDING)
    growth.actions.hold(slot)
    growth.actions.prune(5, slot, rule="test", evidence="")
    assert not slot.state.paused
    with pytest.raises(IllegalTransitionError, match="nothing grows"):
        growth.actions.hold(slot)


@pytest.mark.parametrize(("every", "shadows"), [(1, 24), (2, 12), (3, 8), (5, 5)])
def test_a_cadence_bounds_the_shadows(every, shadows):
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    growth = grow(
        model, {"2": "after", "4": "before"}, optimizer=optimizer, controller=Script(),
        training=SeedTraining(shadow_every=every),
    )  # fmt: skip
    for x, y in batches(12):
        optimizer.zero_grad()
        before = growth._grower.trainer.shadows
        growth.loss(lambda net, x=x, y=y: F.cross_entropy(net(x), y)).backward()
        assert growth._grower.trainer.shadows - before <= (2 if every == 1 else 1)  # they take turns
        optimizer.step()
    said = growth.epoch()
    assert said.total_shadows == shadows
    assert sum(seed.passes for seed in said.seeds) == shadows


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's own
@pytest.mark.parametrize("compile_first", [True, False])
def test_a_compiled_model_goes_on_when_a_seed_germinates_blends_and_dies(compile_first):
    def losses(compiled):
        torch._dynamo.reset()
        model = make_model().eval()
        called = torch.compile(model, backend="aot_eager", fullgraph=True) if compiled else model
        if compiled and not compile_first:
            called(torch.randn(12, 6))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        script = Script(
            lambda shape: nn.Linear(*shape, *shape), after_1=[S.BLENDING], after_2=[S.HOLDING], after_3=[S.PRUNED]
        )
        growth = grow(
            called, {"2": "after"}, optimizer=optimizer, controller=script, training=SeedTraining(blending_steps=6)
        )
        seen, said = [], []
        for _ in range(4):
            for x, y in batches(6):
                optimizer.zero_grad()
                loss = growth.loss(lambda net, x=x, y=y: F.cross_entropy(net(x), y))
                loss.backward()
                optimizer.step()
                seen.append(loss.detach())
            said.append(growth.epoch())
        return torch.stack(seen), said

    eager, _ = losses(False)
    seen, said = losses(True)
    torch.testing.assert_close(seen, eager, rtol=1e-4, atol=1e-5)
    if compile_first:
        # One graph for the bare model, one while α rises, one with the whole seed; back to the first when it is gone.
        assert [epoch.total_recompiles for epoch in said] == [1, 2, 3, 3]
        assert [epoch.seeds[0].measurement for epoch in said[:3]] == [Measurement.MEASURED] * 3


@pytest.mark.parametrize("host", [DenseHost(20, 3), ConvHost(8, 3)], ids=["dense", "conv"])
def test_a_host_with_slots_of_its_own_is_exported_too(host):
    x = torch.randn(4, 20) if isinstance(host, DenseHost) else torch.randn(4, 1, 8, 8)
    slot = slots_of(host)["mid"]
    kind = nn.Linear(*slot.shape, *slot.shape) if len(slot.shape) == 1 else nn.Conv2d(slot.shape[0], slot.shape[0], 1)
    slot.plant(kind, seed_id="mid-1", blueprint_id="test")
    for target in (S.TRAINING, S.BLENDING, S.HOLDING, S.FOSSILIZED):
        slot.state.sound_epochs, slot.state.alpha = 2, 1.0
        slot.advance(target)
    plain = export(host.eval())
    torch.testing.assert_close(plain(x), host(x))
    assert not any("sapflow" in type(part).__module__ for part in plain.modules())
    assert sum(p.numel() for p in plain.parameters()) == sum(p.numel() for p in host.parameters())


def fossilised(model, slots, closure, build=lambda shape: nn.Linear(shape[-1], shape[-1])):
    """The growth of a model in whose slots everything is a fossil after four epochs."""
    script = Script(build, after_1=[S.BLENDING], after_2=[S.HOLDING], after_3=[S.FOSSILIZED])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    growth = grow(model, slots, optimizer=optimizer, controller=script, training=SeedTraining(blending_steps=1))
    for _ in range(4):
        optimizer.zero_grad()
        growth.loss(closure).backward()
        optimizer.step()
        growth.epoch()
    return growth


class Recurrent(nn.Module):
    """A module that gives a tuple, and one that takes its input by position among others."""

    def __init__(self):
        super().__init__()
        self.gru, self.attention = nn.GRU(6, 6, batch_first=True), nn.MultiheadAttention(6, 2, batch_first=True)

    def forward(self, x):
        y, _ = self.gru(x)
        return self.attention(y, x, x, need_weights=False)[0]


class TestAnExport:
    @pytest.mark.parametrize("place", ["before", "after"])
    def test_of_a_transformer_takes_its_masks_and_keeps_its_keys(self, tmp_path, place):
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        x, mask = torch.randn(3, 5, 8), nn.Transformer.generate_square_subsequent_mask(5)
        keys = list(model.state_dict())
        growth = fossilised(model, {"layers.0": place}, lambda net: net(x, mask=mask).square().mean())
        plain = growth.export()
        torch.testing.assert_close(plain.eval()(x, mask=mask), model.eval()(x, mask=mask))
        own = [key for key in plain.state_dict() if "fossil" not in key]
        assert own == keys
        torch.save(plain, tmp_path / "plain.pt")
        for twin in (torch.load(tmp_path / "plain.pt", weights_only=False), copy.deepcopy(plain)):
            assert torch.equal(twin(x, mask=mask), plain(x, mask=mask))
            for name, parameter in twin.named_parameters():
                if "fossil" in name:
                    parameter.data.zero_()
            assert not torch.equal(twin(x, mask=mask), plain(x, mask=mask))  # the part that it shows is what runs
        assert sum(p.numel() for p in plain.parameters()) == sum(p.numel() for p in model.parameters()) + 72

    def test_of_modules_that_give_tuples(self):
        torch.manual_seed(0)
        model, x = Recurrent(), torch.randn(3, 5, 6)
        growth = fossilised(model, {"gru": "after", "attention": "before"}, lambda net: net(x).square().mean())
        torch.testing.assert_close(growth.export().eval()(x), model.eval()(x))

    def test_of_a_module_that_the_model_has_under_two_names(self):
        torch.manual_seed(0)
        block = nn.Sequential(nn.Linear(6, 6), nn.Tanh())
        model, x = nn.Sequential(block, block, nn.Linear(6, 3)), torch.randn(4, 6)
        growth = fossilised(model, {"0": "after"}, lambda net: net(x).square().mean())
        torch.testing.assert_close(growth.export().eval()(x), model.eval()(x))

    def test_of_slots_within_one_another(self):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Sequential(nn.Linear(6, 6), nn.Tanh()), nn.Linear(6, 3))
        x = torch.randn(4, 5, 6)
        growth = fossilised(model, {"0": "after", "0.0": "after"}, lambda net: net(x).square().mean())
        torch.testing.assert_close(growth.export().eval()(x), model.eval()(x))


@pytest.mark.parametrize("activation", [nn.Tanh(), nn.ReLU(inplace=True)])
def test_what_comes_behind_a_slot_may_write_on_what_it_gets_and_a_closure_may_ask_for_gradients(activation):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), activation, nn.Linear(8, 3))
    x, y = torch.randn(8, 6), torch.randint(3, (8,))

    def penalised(net):
        logits = net(x)
        loss = F.cross_entropy(logits, y)
        (gradient,) = torch.autograd.grad(loss, logits, create_graph=True)
        return loss + gradient.square().sum()

    growth = fossilised(model, {"0": "after"}, penalised)
    assert growth.actions.slots["0"].state.stage is S.FOSSILIZED


class TestAState:
    def trained(self, growth, model, optimizer, epochs):
        losses = []
        for _ in range(epochs):
            for x, y in batches(4):
                optimizer.zero_grad()
                loss = growth.loss(lambda net, x=x, y=y: F.cross_entropy(net(x), y))
                loss.backward()
                optimizer.step()
                losses.append(loss.item())
            growth.epoch()
        return losses

    def begun(self, run_dir=None, **options):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        plan = GrowthPlan(first_germination=0, training_epochs=1, blending_epochs=1, holding_epochs=1)
        growth = grow(
            model, {"1": "after"}, optimizer=optimizer, run_dir=run_dir, training=SeedTraining(blending_steps=4),
            controller=ScheduledController(plan, 0, plants={"1": "mlp"}), **options,
        )  # fmt: skip
        return growth, model, optimizer

    def resumed(self, tmp_path):
        resumed = self.begun(tmp_path / "run")
        for part, state in zip(resumed, torch.load(tmp_path / "state.pt", weights_only=True), strict=True):
            part.load_state_dict(state)
        return resumed

    @pytest.mark.parametrize("epochs", [1, 3, 7])
    def test_that_was_saved_goes_on_as_if_it_had_not_been(self, tmp_path, epochs):
        growth, model, optimizer = whole = self.begun()
        self.trained(*whole, epochs)
        torch.save([growth.state_dict(), model.state_dict(), optimizer.state_dict()], tmp_path / "state.pt")
        resumed = self.resumed(tmp_path)
        assert self.trained(*whole, 3) == self.trained(*resumed, 3)
        stages = [each[0].actions.slots["1"].state.stage for each in (whole, resumed)]
        assert stages[0] is stages[1]
        if epochs == 7:
            assert stages[0] is S.FOSSILIZED
            with pytest.raises(InputError, match="run once"):
                self.resumed(tmp_path)[0].export()
        resumed[0].close()
        with Source(resumed[0].run_dir) as source:
            said = [event for event in source.read() if event.env_id == 0 and event.sequence is not None]
        assert [event.sequence for event in said] == list(range(len(said)))
        assert said[0].type == "ENV_STARTED"
        assert [e.payload.epoch for e in said if e.type == "EPOCH_COMPLETED"] == [epochs + n for n in (1, 2, 3)]

    def test_with_an_empty_slot_leaves_the_buffers_of_its_seeds_alone(self, monkeypatch):
        monkeypatch.setattr(catalogue, "_catalogue", catalogue.Catalogue())
        normed = blueprint("normed", dimensions=1)
        normed(lambda shape: nn.Sequential(nn.BatchNorm1d(*shape), nn.Linear(*shape, *shape)))

        def begun():
            torch.manual_seed(0)
            model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            plan = GrowthPlan(first_germination=0, germination_interval=99, training_epochs=1)
            controller = ScheduledController(plan, 0, plants={"1": "normed"}, gates=frozenset())
            growth = grow(model, {"1": "after", "3": "after"}, optimizer=optimizer, controller=controller)
            return growth, model, optimizer

        whole, resumed = begun(), begun()
        self.trained(*whole, 2)
        for part, state in zip(resumed, [copy.deepcopy(part.state_dict()) for part in whole], strict=True):
            part.load_state_dict(state)
        seeds = []
        for each in (whole, resumed):
            self.trained(*each, 1)
            seeds.append(each[0].actions.slots["1"])
        assert seeds[0].state.stage is seeds[1].state.stage is S.BLENDING
        ones, others = (slot.seed.state_dict() for slot in seeds)
        assert all(torch.equal(value, others[name]) for name, value in ones.items())

    def test_lets_go_what_a_rule_held_that_is_there_no_more(self, tmp_path):
        rule = Rule(name="held", when=Condition.RATIO_ABOVE, level=0.0, for_epochs=1, actions=("hold",))
        growth, model, optimizer = self.begun(rules=[rule])
        self.trained(growth, model, optimizer, 2)
        assert growth.actions.slots["1"].state.paused
        resumed = self.begun(tmp_path / "run", rules=[])
        resumed[0].load_state_dict(growth.state_dict())
        assert growth.state_dict()["rules"] == resumed[0].state_dict()["rules"]
        self.trained(*resumed, 2)
        resumed[0].close()
        state = resumed[0].actions.slots["1"].state
        assert not state.paused
        assert state.stage is not S.TRAINING
        with Source(resumed[0].run_dir) as source:
            payloads = [event.payload for event in source.read()]
        (cleared,) = [payload for payload in payloads if isinstance(payload, AlertCleared)]
        assert (cleared.epoch, cleared.alert.rule, cleared.reason) == (3, "held", "its rule is there no more")

    def test_has_seeds_wired_as_they_were_born(self, monkeypatch):
        class Wired(nn.Linear):
            def __init__(self, width):
                super().__init__(width, width)
                self.order = torch.randperm(width).tolist()  # in no state_dict

            def forward(self, x):
                return super().forward(x[:, self.order])

        monkeypatch.setattr(catalogue, "_catalogue", catalogue.Catalogue())
        blueprint("wired", dimensions=1)(lambda shape: Wired(*shape))
        model, x = make_model(), batches(1)[0][0]
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

        def begun():
            controller = ScheduledController(GrowthPlan(first_germination=0), 0, plants={"4": "wired"})
            return grow(model, {"4": "after"}, optimizer=optimizer, controller=controller)

        with begun() as growth:
            growth.loss(lambda net: net(x).square().mean()).backward()  # with a dropout, which draws numbers, too
            optimizer.step()
            growth.epoch()
            order, state = growth.actions.slots["4"].seed.order, growth.state_dict()
        with begun() as growth:
            growth.load_state_dict(state)
            assert growth.actions.slots["4"].seed.order == order

    def test_of_other_slots_or_too_late_is_refused(self):
        growth, model, optimizer = self.begun()
        state = growth.state_dict()
        other = grow(model, {"2": "after"}, optimizer=optimizer)
        with pytest.raises(InputError, match=r"other slots: \['1'\] there, \['2'\] here"):
            other.load_state_dict(state)
        self.trained(growth, model, optimizer, 1)
        with pytest.raises(InputError, match="after the first"):
            growth.load_state_dict(state)


class TestTheEnd:
    def said(self, growth):
        with Source(growth.run_dir) as source:
            return [event.type for event in source.read()], source.status().state

    def loop(self, growth, error=None):
        with growth:
            growth.loss(lambda net: net(torch.randn(4, 6)).sum()).backward()
            growth.epoch()
            if error is not None:
                raise error

    def begun(self, tmp_path):
        model = make_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        return model, grow(model, {"2": "after"}, optimizer=optimizer, run_dir=tmp_path / "run", controller=Script())

    def test_leaves_a_run_that_is_told_from_others_of_its_name(self, tmp_path):
        runs = [self.begun(tmp_path / place)[1] for place in ("here", "there")]
        for growth in runs:
            growth.close()
        here, there = (identity_of(growth.run_dir) for growth in runs)
        assert here.run_id == there.run_id == "run"
        assert here.key != there.key

    def test_by_an_error_is_said_as_such(self, tmp_path):
        _, growth = self.begun(tmp_path)
        with pytest.raises(KeyError):
            self.loop(growth, KeyError("the user's own"))
        types, state = self.said(growth)
        assert "ENV_FAILED" in types
        assert not {"ENV_COMPLETED", "RUN_COMPLETED"} & set(types)
        assert state is not RunState.COMPLETED

    def test_by_ctrl_c_is_a_run_that_was_cut_off(self, tmp_path):
        _, growth = self.begun(tmp_path)
        with pytest.raises(KeyboardInterrupt):
            self.loop(growth, KeyboardInterrupt())
        assert not {"ENV_FAILED", "ENV_COMPLETED", "RUN_COMPLETED"} & set(self.said(growth)[0])

    @pytest.mark.parametrize(
        ("error", "ends"), [(None, {"ENV_COMPLETED", "RUN_COMPLETED"}), (KeyError("uncaught"), {"ENV_FAILED"})]
    )
    def test_that_is_the_program_s_own_is_said(self, tmp_path, monkeypatch, error, ends):
        at_exit = []
        monkeypatch.setattr("atexit.register", at_exit.append)
        monkeypatch.setattr(sys, "last_value", error, raising=False)
        _, growth = self.begun(tmp_path)
        for close in at_exit:
            close()
        assert ends == {"ENV_COMPLETED", "RUN_COMPLETED", "ENV_FAILED"} & set(self.said(growth)[0])

    def test_leaves_no_slot_of_which_the_model_sees_nothing(self, tmp_path):
        model, growth = self.begun(tmp_path)
        self.loop(growth)
        assert not any(part._forward_hooks for part in model.modules())
        assert self.said(growth)[1] is RunState.COMPLETED


class TestBadInput:
    def test_leaves_the_model_and_the_directory_as_they_were(self, tmp_path, monkeypatch):
        model = make_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        twice = [Rule(name="r", when="dead", for_epochs=1)] * 2
        (tmp_path / "file").touch()
        monkeypatch.delenv("SAPFLOW_GONE", raising=False)
        (tmp_path / "rules.toml").write_text(
            '[notify]\nurls = ["${SAPFLOW_GONE}"]\n[[rules]]\nname = "r"\nwhen = "dead"\nfor_epochs = 1\n'
            'actions = ["notify"]\n'
        )
        for match, options in (
            ("more than once", {"rules": twice, "run_dir": tmp_path / "run"}),
            ("SAPFLOW_GONE", {"rules": tmp_path / "rules.toml", "run_dir": tmp_path / "run"}),
            ("file", {"run_dir": tmp_path / "file" / "run"}),
        ):
            with pytest.raises(InputError, match=match):
                grow(model, {"2": "after"}, optimizer=optimizer, **options)
        assert not any(part._forward_hooks for part in model.modules())
        assert not (tmp_path / "run").exists()

    def refused(self, match, slots, model=None):
        model = model or make_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

        def begin():
            growth = grow(model, slots, optimizer=optimizer, controller=Script())
            growth.loss(lambda net: net(torch.randn(4, 6)).sum())

        with pytest.raises(InputError, match=match) as raised:
            begin()
        assert "\n" not in str(raised.value)

    def test_a_module_that_is_not_there(self):
        self.refused(r"no module is named '22': near are 2", {"22": "after"})

    def test_the_model_itself(self):
        self.refused("no module is named ''", {"": "after"})

    def test_a_place_that_is_none(self):
        self.refused("'inside' is no place", {"2": "inside"})

    def test_no_slots(self):
        self.refused("the model has none", None)

    def test_slots_of_one_name_as_in_copies_of_a_block(self):
        block = nn.Sequential(nn.Linear(6, 6), SeedSlot("inner", (6,)))
        model = nn.Sequential(block, copy.deepcopy(block))
        with pytest.raises(InputError, match=r"slot 'inner': 1\.1 is a second one"):
            grow(model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))

    def test_a_module_that_does_not_run(self):
        self.refused("did not pass it", {"spare": "after"}, _Spare())

    def test_an_output_that_is_no_tensor(self):
        self.refused("output is a dict", {"inner": "after"}, _Dict())

    def test_what_passes_is_no_place_to_grow(self):
        self.refused(r"torch.float32 of shape \(4,\) passes it", {"1": "after"}, nn.Sequential(_Spare(), _Sum()))
        self.refused(r"torch.bool of shape \(4, 6\) passes it", {"0": "after"}, nn.Sequential(_Positive(), _Spare()))

    def test_that_is_mended_lets_the_training_begin(self):
        model = make_model()
        growth = grow(model, {"2": "after"}, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), controller=Script())
        for wrong in (lambda net: net(torch.randn(4, 7)).sum(), lambda net: net[0](torch.randn(4, 6)).sum()):
            with pytest.raises((RuntimeError, InputError)):
                growth.loss(wrong)
        growth.loss(lambda net: net(torch.randn(4, 6)).sum()).backward()
        assert growth.actions.slots["2"].state.stage is S.TRAINING

    @pytest.mark.parametrize(
        ("given", "said"), [(lambda y: (y.sum(), y), "a tuple"), (lambda y: y, r"a tensor of shape \(4, 3\)")]
    )
    def test_a_closure_that_gives_more_than_the_loss(self, given, said):
        model = make_model()
        growth = grow(model, {"2": "after"}, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), controller=Script())
        with pytest.raises(InputError, match=f"the closure gives {said}: let it give the loss alone"):
            growth.loss(lambda net: given(net(torch.randn(4, 6))))

    def test_an_epoch_before_anything_was_trained(self):
        model = make_model()
        growth = grow(model, {"2": "after"}, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
        with pytest.raises(InputError, match="before the first growth"):
            growth.epoch()

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"shadow_every": 0}, "shadow_every=0"),
            ({"learning_rate": -1e-3}, "learning_rate=-0.001"),
            ({"clip": -1.0}, "clip=-1.0"),  # which would turn every step around
            ({"clip": float("nan")}, "clip=nan"),
            ({"blending": "cubic"}, "blending='cubic': choose one of linear, cosine, sigmoid"),
        ],
    )
    def test_a_training_of_seeds_that_is_none(self, options, said):
        with pytest.raises(InputError, match=said):
            SeedTraining(**options)


class _Spare(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.spare = nn.Linear(6, 3), nn.Linear(6, 3)

    def forward(self, x):
        return self.used(x.float())


class _Sum(nn.Module):
    def forward(self, x):
        return x.sum(1)


class _Positive(nn.Module):
    def forward(self, x):
        return x > 0


class _Dict(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = _Inner()

    def forward(self, x):
        return self.inner(x)["y"]


class _Inner(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x):
        return {"y": self.layer(x)}
