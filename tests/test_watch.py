"""sapflow.watch: three lines around anybody's loop, seen from outside."""

import gc
import subprocess
import sys
import weakref

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim.optimizer import _global_optimizer_post_hooks

import sapflow
from sapflow import HealthPolicy
from sapflow.errors import InputError
from sapflow.gradients.report import HISTORY
from sapflow.health.rules import Condition, Rule
from sapflow.sanctum.aggregator import SanctumAggregator
from sapflow.telemetry.events import AlertRaised, EpochCompleted, GradientSampled
from sapflow.telemetry.source import RunState, Source
from sapflow.telemetry.vocabulary import Measurement, SeedStage


def scaled_orthogonal(gain: float, width: int = 8) -> nn.Linear:
    layer = nn.Linear(width, width, bias=False)
    nn.init.orthogonal_(layer.weight, gain=gain)
    return layer


class Block(nn.Module):
    def __init__(self, gain: float):
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.adapter = scaled_orthogonal(gain)

    def forward(self, h):
        return h + self.adapter(self.norm(h))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.ModuleDict({"layers": nn.ModuleList([Block(0.9), Block(4.0)]), "head": nn.Linear(8, 2)})


def backward(model, *, zero=True):
    h = torch.randn(4, 8, requires_grad=True)
    for layer in model["layers"]:
        h = layer(h)
    loss = model["head"](h).square().mean()
    if zero:
        model.zero_grad()
    loss.backward()
    return loss


def train(model, steps, optimizer=None):
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.0)
    for _ in range(steps):
        backward(model)
        optimizer.step()


def test_three_lines_in_a_loop_that_stays_as_it_is(model, capsys):
    watcher = sapflow.watch(model, ["layers.*.adapter", "head"], policy=HealthPolicy())
    train(model, 10)
    print(watcher.report())
    watcher.close()
    shown = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in shown] == ["module", "layers.0.adapter", "layers.1.adapter", "head"]
    assert "0.9" in shown[1]
    assert "▲" in shown[2]


def test_telemetry_is_the_epoch_so_far_and_epoch_closes_it(model):
    with sapflow.watch(model, "layers.*.adapter") as watcher:
        train(model, 3)
        so_far = watcher.telemetry()["layers.0.adapter"]
        assert (so_far.passes, so_far.stage, so_far.blueprint_id) == (3, SeedStage.WATCHED, "Linear")
        assert so_far.grad_ratio == pytest.approx(0.9, rel=1e-5)
        train(model, 2)
        assert watcher.epoch()["layers.0.adapter"].passes == 5
        assert watcher.telemetry()["layers.0.adapter"].measurement is Measurement.UNMEASURED
        train(model, 1)
        assert watcher.epoch()["layers.0.adapter"].passes == 1


def test_epochs_close_by_themselves(model):
    with sapflow.watch(model, "head", epoch_every=4) as watcher:
        train(model, 11)
        assert watcher.epochs == 2
        assert watcher.telemetry()["head"].passes == 3
        history = watcher.history()["head"]
    assert set(history) == set(HISTORY)
    assert history["epoch"].tolist() == [1, 2]
    assert history["passes"].tolist() == [4, 4]
    assert history["grad_ratio"].dtype == np.float64
    assert np.allclose(history["grad_ratio"], history["leaving_norm"] / history["entering_norm"])


@pytest.mark.parametrize("way", ["any optimizer", "this optimizer", "next forward", "step"])
def test_it_finds_the_end_of_a_pass(model, way):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    # A ModuleDict has no forward of its own: the loop calls a model that has one.
    root = nn.Sequential(*model["layers"], model["head"])
    kwargs = {"optimizer": optimizer} if way == "this optimizer" else {}
    with sapflow.watch(root, "0.adapter", **kwargs) as watcher:
        for _ in range(6):
            for _ in range(1 if way == "next forward" else 2):  # micro-batches, where something else ends the pass
                root(torch.randn(4, 8)).square().mean().backward()
            if "optimizer" in way:
                optimizer.step()
            elif way == "step":
                watcher.step()
        passes = watcher.epoch()["0.adapter"].passes
    # Until the first optimizer step (or call of step) is seen, the next forward is all there is to go by.
    assert passes == (7 if way in ("any optimizer", "step") else 6)


def test_the_step_of_another_model_s_optimizer_ends_no_pass(model):
    other = nn.Linear(2, 2)
    elsewhere = torch.optim.SGD(other.parameters(), lr=0.1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with sapflow.watch(model, "head") as watcher:
        for _ in range(3):
            backward(model)
            other(torch.ones(1, 2)).sum().backward()
            elsewhere.step()
            backward(model, zero=False)
            optimizer.step()
        assert watcher.epoch()["head"].passes == 3


def test_modules_that_are_grown_later_can_be_added(model):
    with sapflow.watch(model, "layers.*.adapter") as watcher:
        train(model, 2)
        model["layers"].append(Block(0.3))
        watcher.add("layers.*.adapter")
        train(model, 2, torch.optim.SGD(model.parameters(), lr=0.0))
        telemetry = watcher.telemetry()
    assert list(telemetry) == [f"layers.{index}.adapter" for index in range(3)]
    assert telemetry["layers.2.adapter"].grad_ratio == pytest.approx(0.3, rel=1e-5)
    assert [seed.passes for seed in telemetry.values()] == [4, 4, 2]


def test_a_module_that_has_taken_the_place_of_another_is_watched_in_its_stead(model):
    with sapflow.watch(model, "layers.*.adapter") as watcher:
        train(model, 2)
        old, model["layers"][0] = model["layers"][0], Block(0.3)
        watcher.add("layers.*.adapter")
        train(model, 2)
        telemetry = watcher.telemetry()
    assert telemetry["layers.0.adapter"].grad_ratio == pytest.approx(0.3, rel=1e-5)
    assert [telemetry[f"layers.{index}.adapter"].passes for index in range(2)] == [2, 4]
    assert not old.adapter._forward_hooks


def test_optimizers_that_step_within_the_backward_end_no_pass_and_the_next_forward_does():
    root = nn.Sequential(scaled_orthogonal(1.0), scaled_orthogonal(0.5), nn.Linear(8, 1))
    optimizers = {parameter: torch.optim.SGD([parameter], lr=0.0) for parameter in root.parameters()}

    def step(parameter):
        optimizers[parameter].step()
        optimizers[parameter].zero_grad()

    for parameter in root.parameters():
        parameter.register_post_accumulate_grad_hook(step)
    with sapflow.watch(root, "1") as watcher:
        for _ in range(3):
            root(torch.randn(4, 8)).sum().backward()
        seed = watcher.epoch()["1"]
    assert seed.passes == 3
    assert seed.grad_ratio == pytest.approx(0.5, rel=1e-5)


def test_close_says_what_was_lost_and_leaves_nothing_where_judging_fails(model, caplog):
    class Broken(HealthPolicy):
        def judge(self, reading, memory):
            raise ZeroDivisionError("broken policy")

    watcher = sapflow.watch(model, "head", policy=Broken())
    train(model, 1)
    with pytest.raises(ZeroDivisionError):
        watcher.close()
    assert not any(value for module in model.modules() for name, value in vars(module).items() if "hooks" in name)
    watcher.close()


def test_closings_without_a_pass_are_told_at_the_end(model, caplog):
    with sapflow.watch(model, "head") as watcher:
        for _ in range(3):
            model["head"].forward(torch.randn(4, 8)).sum().backward()  # past the hooks, as compiled code may run
            watcher.step()
    assert watcher.epochs == 1
    assert "not measured: head (PROBE_LOST)" in caplog.text


def test_where_the_run_cannot_be_kept_nothing_is_left_on_the_model(model, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError):
        sapflow.watch(model, "head", run_dir=tmp_path / "file" / "a")
    assert not any(value for module in model.modules() for name, value in vars(module).items() if "hooks" in name)


def test_nothing_is_left_on_the_model_and_nobody_holds_it(model):
    keys = list(model.state_dict())
    watcher = sapflow.watch(model, "layers.**")
    train(model, 2)
    assert list(model.state_dict()) == keys
    watcher.close()
    watcher.close()
    with pytest.raises(InputError, match="after"):
        watcher.add("**")
    for module in model.modules():
        assert not any(value for name, value in vars(module).items() if "hooks" in name)
    gone = weakref.ref(model["layers"][0])
    del watcher
    model["layers"] = nn.ModuleList()
    gc.collect()
    assert gone() is None


def test_losses_are_the_same_to_the_bit(model):
    def losses(watched):
        torch.manual_seed(1)
        twin = nn.ModuleDict({"layers": nn.ModuleList([Block(0.9), Block(2.0)]), "head": nn.Linear(8, 2)})
        watcher = sapflow.watch(twin, ["layers.*", "layers.*.adapter", "head"]) if watched else None
        optimizer = torch.optim.Adam(twin.parameters())
        curve = []
        for _ in range(5):
            curve.append(backward(twin).item())
            optimizer.step()
        if watcher:
            watcher.close()
        return curve

    assert losses(True) == losses(False)


def test_a_run_is_kept_for_sanctum_with_module_names_for_slots(model, tmp_path):
    with sapflow.watch(
        model, "layers.*.adapter", run_dir=tmp_path / "a", epoch_every=5, policy=HealthPolicy()
    ) as watcher:
        train(model, 12)
        with Source(tmp_path / "a") as live:
            assert live.status().state is RunState.LIVE
    assert watcher.run_dir == tmp_path / "a"
    aggregator = SanctumAggregator()
    with Source(tmp_path / "a") as source:
        events = source.read()
        assert source.status().state is RunState.COMPLETED
    for event in events:
        aggregator.apply(event)
    env = aggregator.snapshot().envs[0]
    assert list(env.seeds) == ["layers.0.adapter", "layers.1.adapter"]
    seed = env.seeds["layers.1.adapter"]
    assert (seed.stage, seed.has_exploding, seed.passes) == (SeedStage.WATCHED, True, 2)
    assert [event.payload.seeds[0].passes for event in events if isinstance(event.payload, EpochCompleted)] == [5, 5, 2]
    alerts = [event.payload.alert for event in events if isinstance(event.payload, AlertRaised)]
    assert [(alert.rule, alert.slot_id) for alert in alerts] == [("exploding module", "layers.1.adapter")]
    assert aggregator.snapshot().gaps == 0


def test_samples_are_said_live(model, tmp_path, monkeypatch):
    monkeypatch.setattr("sapflow.gradients.sampling.SAMPLE_SECONDS", 0.0)
    with sapflow.watch(model, "head", run_dir=tmp_path / "a") as watcher:
        watcher._sampler.seconds = 0.0
        train(model, 6)
    with Source(tmp_path / "a") as source:
        samples = [event.payload for event in source.read() if isinstance(event.payload, GradientSampled)]
    assert [index for sample in samples for index in sample.pass_index] == list(range(6))


def test_samples_take_a_hundredth_of_the_time_at_most_however_long_one_takes(model, tmp_path, monkeypatch):
    class Clock:
        now = 0.0

        def monotonic(self):
            return self.now

        thread_time = monotonic

    class Slow(HealthPolicy):
        def judge(self, reading, memory):
            clock.now += 0.05
            return super().judge(reading, memory)

    clock = Clock()
    monkeypatch.setattr("sapflow.gradients.sampling.time", clock)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with sapflow.watch(model, "head", run_dir=tmp_path / "a", policy=Slow(), epoch_every=1000):
        for _ in range(500):
            train(model, 1, optimizer)
            clock.now += 0.1
        judged = round((clock.now - 500 * 0.1) / 0.05)
    assert 5 < judged <= 10
    with Source(tmp_path / "a") as source:
        samples = [event.payload for event in source.read() if isinstance(event.payload, GradientSampled)]
    assert [index for sample in samples for index in sample.pass_index] == list(range(500))


def test_a_cell_that_is_run_again_makes_a_new_run_beside_the_old_one(model, tmp_path):
    first = sapflow.watch(model, "head", run_dir=tmp_path / "a")
    train(model, 2)
    second = sapflow.watch(model, "head", run_dir=tmp_path / "a")
    train(model, 3)
    second.close()
    assert (first.run_dir, second.run_dir) == (tmp_path / "a", tmp_path / "a-2")
    for watcher, passes in ((first, 2), (second, 3)):
        with Source(watcher.run_dir) as source:
            assert source.status().state is RunState.COMPLETED
            assert source.moment(0).payload.total_passes == passes


def test_a_script_that_never_closes_still_completes_its_run(tmp_path):
    code = (
        "import torch, sapflow\n"
        "m = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))\n"
        f"w = sapflow.watch(m, '1', run_dir={str(tmp_path / 'a')!r})\n"
        "m(torch.ones(1, 2)).sum().backward()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with Source(tmp_path / "a") as source:
        assert source.status().state is RunState.COMPLETED
        assert source.moment(0).payload.seeds[0].passes == 1


def test_verdicts_are_told_and_a_callback_that_raises_is_survived(model, caplog):
    told = []

    def on_verdict(name, seed):
        told.append((name, seed.has_exploding))
        if len(told) == 4:
            raise RuntimeError("no more")

    with sapflow.watch(model, "layers.*.adapter", on_verdict=on_verdict, epoch_every=1, policy=HealthPolicy()):
        train(model, 5)
    assert told == [("layers.0.adapter", False), ("layers.1.adapter", True)] * 2
    assert [record.message for record in caplog.records] == ["on_verdict raised and is called no more"]


@pytest.mark.parametrize("way", ["any optimizer", "this optimizer"])
def test_a_callback_may_close_its_watcher_and_begin_another_beside_others(model, way):
    """PyTorch raises in the optimizer's step where a hook of it comes or goes meanwhile."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    kwargs = {"optimizer": optimizer} if way == "this optimizer" else {}
    hooks = _global_optimizer_post_hooks, optimizer._optimizer_step_post_hooks
    opened = []

    def look_closer(name, seed):
        first.close()
        opened.append(sapflow.watch(model, "layers.*.norm", **kwargs))

    first = sapflow.watch(model, "head", on_verdict=look_closer, epoch_every=2, **kwargs)
    second = sapflow.watch(model, "layers.*.adapter", epoch_every=2, **kwargs)
    train(model, 5, optimizer)
    assert len(opened) == 1
    assert opened[0].epoch()["layers.0.norm"].passes == 3
    assert second.epochs == 2
    opened[0].close()
    second.close()
    assert not any(hooks)


def test_what_means_nothing_changes_nothing(model, tmp_path):
    with pytest.raises(InputError, match=r"layers\.0\.adapter"):
        sapflow.watch(model, "layer.*.adapter", run_dir=tmp_path / "a")
    with pytest.raises(InputError, match="epoch_every"):
        sapflow.watch(model, "head", run_dir=tmp_path / "a", epoch_every=0)
    assert not (tmp_path / "a").exists()


def test_a_notebook_shows_a_table_and_nothing_that_a_name_injects(model):
    model["<b>x"] = nn.Linear(2, 2)
    with sapflow.watch(model, ["head", "<b>x"]) as watcher:
        train(model, 1)
        page = watcher._repr_html_()
    assert page.count("<tr>") == 3
    assert "&lt;b&gt;x" in page
    assert "<b>x" not in page


def test_by_default_modules_are_judged_by_the_calibrated_policy(model):
    """A module with a steady gain of 3 was born that way; one that loses its gain in mid-training was not."""
    model["layers"][1] = Block(3.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    with sapflow.watch(model, "layers.*.adapter", epoch_every=10) as watcher:
        train(model, 60, optimizer)
        assert not any(seed.has_exploding or seed.has_vanishing for seed in watcher.telemetry().values())
        with torch.no_grad():
            model["layers"][0].adapter.weight.mul_(1e-4)
        train(model, 55, optimizer)
        fallen, steady = watcher.epoch().values()
    assert fallen.has_vanishing
    assert "0.001" in fallen.evidence
    assert not steady.has_vanishing
    assert not steady.has_exploding


def test_a_chain_of_blocks_has_the_product_of_their_gains():
    gains = [0.5, 0.04, 0.2]
    model = nn.Sequential(*[scaled_orthogonal(gain, 8) for gain in gains])
    with sapflow.watch(model, "*") as watcher:
        model(torch.randn(4, 8, requires_grad=True)).sum().backward()
        watcher.step()
        whole, part = watcher.chain(), watcher.chain(["0", "2"])
        assert (whole.has_vanishing, whole.has_exploding) == (True, False)
        assert "gain 0.004 over a chain of 3" in whole.evidence
        assert "most by 1" in whole.evidence
        assert (part.has_vanishing, part.has_exploding) == (False, False)
        assert "gain 0.1 over a chain of 2" in part.evidence
        with pytest.raises(InputError, match="is watched"):
            watcher.chain(nn.Sequential)


def test_a_chain_names_the_blocks_that_it_knows_nothing_of():
    model = nn.Sequential(*[scaled_orthogonal(0.5, 8) for _ in range(3)])
    with sapflow.watch(model, "*") as watcher:
        model(torch.randn(4, 8)).sum().backward()  # the first has data for its input
        watcher.step()
        assert "over a chain of 2" in watcher.chain().evidence
        assert "not measured, and left out: 0" in watcher.chain().evidence
        assert watcher.chain("0").evidence == "not measured, and left out: 0"


def test_a_policy_that_raises_does_not_break_training(caplog):
    class Broken(HealthPolicy):
        def judge(self, reading, memory):
            raise ZeroDivisionError("broken policy")

    model = nn.Sequential(scaled_orthogonal(1.0), scaled_orthogonal(1.0))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watcher = sapflow.watch(model, "1", policy=Broken(), epoch_every=2)
    for _ in range(6):
        model(torch.randn(4, 8)).sum().backward()
        optimizer.step()
    assert sum("training goes on" in record.message for record in caplog.records) == 1
    with pytest.raises(ZeroDivisionError):
        watcher.close()


def test_modules_that_share_a_reason_share_one_line_of_warning(caplog):
    model = nn.Sequential(*[nn.Linear(4, 4) for _ in range(6)])
    with sapflow.watch(model, "*", epoch_every=2) as watcher:
        for _ in range(6):
            model(torch.randn(2, 4))
            watcher.step()
        watcher.epoch()
        watcher.epoch()
    (warning,) = [record.getMessage() for record in caplog.records if "NO_GRADIENT" in record.getMessage()]
    assert warning.startswith("not measured: 0, 1, 2 and 3 more")


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (Rule(name="soon", when=Condition.EXPLODING, for_passes=5), "say for_epochs"),
        (Rule(name="hard", when=Condition.EXPLODING, for_epochs=1, actions=("prune",)), "acts on nothing"),
        (Rule(name="dull", when=Condition.ACCURACY_BELOW, level=0.0, for_epochs=1), "known of seeds alone"),
        (Rule(name="late", when=Condition.EXPLODING, for_epochs=1, stages=(SeedStage.BLENDING,)), "these stages"),
    ],
)
def test_rules_that_watch_would_pass_over_in_silence_are_refused(rule, said):
    with pytest.raises(InputError, match=said):
        sapflow.watch(nn.Linear(2, 2), "**", rules=[rule])


def test_a_forward_that_raised_keeps_nothing_alive_into_the_next_one():
    """As when memory ran out, and the loop goes on with a smaller batch."""
    made: list[weakref.ref[Tensor]] = []
    alive: list[int] = []

    class Counts(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            alive.append(sum(activation() is not None for activation in made))
            activation = x.exp()
            made.append(weakref.ref(activation))
            return activation

    class Raises(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if len(x) > 2:
                raise MemoryError
            return x

    model = nn.Sequential(nn.Linear(4, 4), Counts(), nn.Linear(4, 4), Raises())
    with sapflow.watch(model, "3"):
        with pytest.raises(MemoryError):
            model(torch.randn(4, 4))
        model(torch.randn(2, 4)).sum().backward()
    assert alive == [0, 0]
