"""The monitor from outside: real backward passes, compared with analytic gains and with torch.autograd.grad."""

import copy
import math
import weakref
from collections import namedtuple
from operator import attrgetter

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import sapflow
from sapflow import GradientMonitor
from sapflow.errors import InputError
from sapflow.gradients.cells import PAGE_ROWS, Page
from sapflow.gradients.structures import map_tensors
from sapflow.telemetry.vocabulary import Measurement


def scaled_orthogonal(gain: float, width: int = 16) -> nn.Linear:
    layer = nn.Linear(width, width, bias=False)
    nn.init.orthogonal_(layer.weight, gain=gain)
    return layer


def reference_ratio(module: nn.Module, x: torch.Tensor, loss_of) -> tuple[float, float]:
    """Entering and leaving by torch.autograd.grad on a graph that Sapflow never saw."""
    leaf = x.detach().clone().requires_grad_()
    y = module(leaf)
    loss = loss_of(y)
    entering, leaving = torch.autograd.grad(loss, [y, leaf])
    return entering.norm().item(), leaving.norm().item()


@pytest.fixture(autouse=True)
def _fixed_seed():
    torch.manual_seed(7)


@pytest.mark.parametrize("gain", [0.85, 0.1, 5.0, 1.0, 1e-6, 1e6])
def test_scaled_orthogonal_layer_has_its_gain(gain):
    layer = scaled_orthogonal(gain)
    monitor = GradientMonitor({"seed": layer})
    layer(torch.randn(8, 16, requires_grad=True)).square().sum().backward()
    health = monitor.close_epoch()["seed"]
    assert health.grad_ratio == pytest.approx(gain, rel=1e-6)
    assert health.measurement is Measurement.MEASURED
    assert (health.has_vanishing, health.has_exploding) == (gain < 0.5, gain > 2.0)


def test_entering_and_leaving_agree_with_autograd():
    module = nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 4))
    x = torch.randn(5, 6, requires_grad=True)
    entering, leaving = reference_ratio(module, x, lambda y: y.square().sum())
    monitor = GradientMonitor({"m": module})
    module(x).square().sum().backward()
    health = monitor.close_epoch()["m"]
    assert health.entering_norm == pytest.approx(entering, rel=1e-6)
    assert health.leaving_norm == pytest.approx(leaving, rel=1e-6)


def test_a_branch_is_measured_without_its_skip_connection():
    branch = scaled_orthogonal(0.1)
    monitor = GradientMonitor({"branch": branch})
    h = torch.randn(4, 16, requires_grad=True)
    (h + branch(h)).sum().backward()
    assert monitor.close_epoch()["branch"].grad_ratio == pytest.approx(0.1, rel=1e-6)


def test_epoch_ratio_is_the_gain_of_all_passes_taken_as_one_batch():
    module = nn.Sequential(nn.Linear(6, 6), nn.GELU())
    x = torch.randn(32, 6)
    monitor = GradientMonitor({"m": module})
    for part in x.split(8):
        module(part.requires_grad_()).square().sum().backward()
        monitor.step()
    health = monitor.close_epoch()["m"]
    entering, leaving = reference_ratio(module, x, lambda y: y.square().sum())
    assert health.passes == 4
    assert health.grad_ratio == pytest.approx(leaving / entering, rel=1e-6)
    assert health.min_ratio <= health.grad_ratio <= health.max_ratio
    assert sum(health.ratio_histogram) == 4


def test_root_forward_closes_the_pass_before_it():
    module = nn.Sequential(nn.Linear(4, 4), scaled_orthogonal(2.0, 4))
    monitor = GradientMonitor({"last": module[1]}, root=module)
    for _ in range(3):
        module(torch.randn(2, 4)).sum().backward()
    assert monitor.close_epoch()["last"].passes == 3


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_a_checkpoint_that_runs_the_root_again_closes_no_pass(use_reentrant):
    model = nn.Sequential(scaled_orthogonal(2.0, 4), nn.Tanh(), scaled_orthogonal(0.5, 4))
    monitor = GradientMonitor({"last": model[2]}, root=model)
    for _ in range(3):
        checkpoint(model, torch.randn(2, 4, requires_grad=True), use_reentrant=use_reentrant).sum().backward()
    assert monitor.close_epoch()["last"].passes == 3


def test_a_step_without_a_backward_is_no_pass():
    layer = scaled_orthogonal(1.0)
    monitor = GradientMonitor({"m": layer})
    monitor.step()
    layer(torch.randn(2, 16, requires_grad=True)).sum().backward()
    monitor.step()
    monitor.step()
    assert monitor.close_epoch()["m"].passes == 1


Pair = namedtuple("Pair", "left right")


def test_no_grad_and_inference_leave_nothing():
    layer = scaled_orthogonal(1.0)
    monitor = GradientMonitor({"m": layer})
    with torch.no_grad():
        layer(torch.randn(2, 16))
    with torch.inference_mode():
        layer(torch.randn(2, 16))
    health = monitor.close_epoch()["m"]
    assert health.measurement is Measurement.UNMEASURED
    assert health.grad_ratio == 0.0
    assert not health.has_vanishing
    assert not health.has_exploding
    assert health.measurement_reason


def test_every_kind_of_missing_measurement_is_named():
    class Constant(nn.Module):
        def forward(self, x):
            return torch.ones(3, requires_grad=True) * 2

    modules = nn.ModuleDict(
        {
            "never run": nn.Linear(3, 3),
            "first layer": nn.Linear(3, 3),
            "unused": nn.Linear(3, 3),
            "masked": scaled_orthogonal(1.0, 3),
            "frozen": nn.Linear(3, 3).requires_grad_(False),
            "constant": Constant(),
            "dead": scaled_orthogonal(0.0, 3),
            "live": scaled_orthogonal(1.0, 3),
        }
    )
    monitor = GradientMonitor(dict(modules.items()))
    data = torch.randn(2, 3)
    h = modules["first layer"](data)
    modules["unused"](h)
    modules["frozen"](data)
    loss = modules["live"](h).sum() + modules["dead"](h).sum() + (modules["masked"](h) * 0).sum()
    (loss + modules["constant"](h).sum()).backward()
    states = {name: health.measurement for name, health in monitor.close_epoch().items()}
    assert states == {
        "never run": Measurement.UNMEASURED,
        "first layer": Measurement.INPUT_DETACHED,
        "unused": Measurement.NO_GRADIENT,
        "masked": Measurement.NO_GRADIENT,
        "frozen": Measurement.NO_GRADIENT,
        "constant": Measurement.INPUT_DETACHED,
        "dead": Measurement.MEASURED,
        "live": Measurement.MEASURED,
    }


def test_a_dead_module_is_measured_and_vanishing_while_no_data_is_neither():
    dead, idle = scaled_orthogonal(0.0), scaled_orthogonal(1.0)
    monitor = GradientMonitor({"dead": dead, "idle": idle})
    dead(torch.randn(2, 16, requires_grad=True)).sum().backward()
    health = monitor.close_epoch()
    assert (health["dead"].grad_ratio, health["dead"].has_vanishing) == (0.0, True)
    assert (health["idle"].grad_ratio, health["idle"].has_vanishing) == (0.0, False)
    assert health["idle"].measurement is not Measurement.MEASURED


def test_probe_lost_where_gradients_reach_the_parameters_alone():
    class SideDoor(nn.Module):
        """Its parameters are trained past its forward's output, where no probe can see."""

        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            self.layer(x).sum().backward()
            return self.layer(x.detach())

    module, other = SideDoor(), scaled_orthogonal(1.0, 4)
    monitor = GradientMonitor({"m": module, "other": other})
    module(torch.randn(2, 4))
    other(torch.randn(2, 4, requires_grad=True)).sum().backward()
    health = monitor.close_epoch()["m"]
    assert health.measurement is Measurement.PROBE_LOST
    assert "parameters" in health.measurement_reason


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_non_finite_passes_are_counted_and_left_out_of_the_sums(poison):
    layer = scaled_orthogonal(0.8)
    monitor = GradientMonitor({"m": layer})
    for factor in (1.0, poison, 1.0):
        (layer(torch.randn(2, 16, requires_grad=True)) * factor).sum().backward()
        monitor.step()
    samples = monitor.samples()["m"]
    health = monitor.close_epoch()["m"]
    assert (health.passes, health.non_finite_passes) == (2, 1)
    assert health.grad_ratio == pytest.approx(0.8, rel=1e-6)
    assert health.has_exploding
    assert samples.pass_index == (0, 1, 2)
    assert [math.isfinite(norm) for norm in samples.entering] == [True, False, True]


def test_only_non_finite_passes_read_zero():
    layer = scaled_orthogonal(0.8)
    monitor = GradientMonitor({"m": layer})
    (layer(torch.randn(2, 16, requires_grad=True)) * math.nan).sum().backward()
    health = monitor.close_epoch()["m"]
    assert (health.grad_ratio, health.measurement) == (0.0, Measurement.NON_FINITE)
    assert health.has_exploding


def test_under_a_grad_scaler_three_overflows_in_a_row_explode_and_two_do_not():
    def run(factors):
        layer = scaled_orthogonal(1.0)
        optimizer, scaler = torch.optim.SGD(layer.parameters(), lr=0.0), torch.amp.GradScaler("cpu")
        monitor = GradientMonitor({"m": layer}, grad_scaler=scaler)
        for factor in factors:
            loss = (layer(torch.randn(2, 16, requires_grad=True)) * factor).sum()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        health = monitor.close_epoch()["m"]
        assert (health.passes, health.non_finite_passes) == (len(factors) - 3, 3)
        return health.has_exploding

    inf = math.inf
    assert not run([inf, inf, 1.0, inf, 1.0])
    assert run([1.0, inf, inf, inf, 1.0])


def test_a_parameter_handed_out_does_not_pile_up_hooks():
    class Prompt(nn.Module):
        def __init__(self):
            super().__init__()
            self.prompt = nn.Parameter(torch.ones(4))

        def forward(self, x):
            return self.prompt

    module = Prompt()
    monitor = GradientMonitor({"m": module})
    for _ in range(5):
        module(torch.ones(4, requires_grad=True)).sum().backward()
        monitor.step()
    assert set(monitor.samples()["m"].entering) == {2.0}
    assert not module.prompt._backward_hooks


def test_removal_leaves_no_trace():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = [{key: copy.copy(value) for key, value in vars(m).items()} for m in model.modules()]
    with GradientMonitor(dict(model.named_children()), optimizer=optimizer, root=model) as monitor:
        y = model(torch.randn(2, 4))
        names = monitor.names
    y.sum().backward()  # a graph that outlives the monitor
    optimizer.zero_grad(set_to_none=True)
    after = [vars(m) for m in model.modules()]
    assert names == ("0", "1", "2")
    assert [set(a) for a in after] == [set(b) for b in before]
    for old, new in zip(before, after, strict=True):
        for key in old:
            if "hooks" in key:
                assert len(new[key]) == len(old[key]) == 0, key
    assert not optimizer._optimizer_step_post_hooks


def test_modules_come_and_go_while_passes_run():
    layers = [scaled_orthogonal(0.5 + index, 4) for index in range(40)]
    monitor = GradientMonitor(ring_passes=4)
    alive: dict[str, nn.Linear] = {}
    for index, layer in enumerate(layers):
        monitor.attach(str(index), layer)
        alive[str(index)] = layer
        if index % 3 == 2:
            gone = str(index - 1)
            monitor.detach(gone)
            del alive[gone]
        sum(member(torch.randn(2, 4, requires_grad=True)).sum() for member in alive.values()).backward()
        monitor.step()
        if index % 7 == 6:
            for name, health in monitor.close_epoch().items():
                assert health.grad_ratio == pytest.approx(0.5 + int(name), rel=1e-5)
    assert set(monitor.names) == set(alive)


def test_rows_of_modules_that_are_gone_are_used_again():
    monitor = GradientMonitor()
    for index in range(100):
        layer = scaled_orthogonal(1.0 + index, 4)
        monitor.attach("m", layer)
        layer(torch.randn(2, 4, requires_grad=True)).sum().backward()
        assert monitor.close_epoch()["m"].grad_ratio == pytest.approx(1.0 + index, rel=1e-5)
        monitor.detach("m")
        monitor.close_epoch()
    assert monitor._sums.rows == PAGE_ROWS


def test_samples_hold_every_pass_exactly_once_whatever_the_ring():
    layer = scaled_orthogonal(1.0, 4)
    monitor = GradientMonitor({"m": layer}, ring_passes=4)
    seen, norms = [], []
    for index in range(23):
        (layer(torch.ones(1, 4, requires_grad=True)) * (index + 1)).sum().backward()
        monitor.step()
        if index % 5 == 0:
            sample = monitor.samples()["m"]
            seen += sample.pass_index
            norms += sample.entering
    sample = monitor.samples()["m"]
    assert [*seen, *sample.pass_index] == list(range(23))
    assert [*norms, *sample.entering] == pytest.approx([2.0 * (index + 1) for index in range(23)])
    assert monitor.samples() == {}


def test_the_live_value_is_that_of_the_epoch_so_far():
    layer = scaled_orthogonal(1.0, 4)
    monitor = GradientMonitor({"m": layer})
    for gain, expected in ((1.0, 1.0), (3.0, math.sqrt(5))):
        nn.init.orthogonal_(layer.weight, gain=gain)
        layer(torch.randn(1, 4, requires_grad=True)).backward(torch.full((1, 4), 1.0))
        monitor.step()
        assert monitor.health()["m"].grad_ratio == pytest.approx(expected, rel=1e-6)
    assert monitor.close_epoch()["m"].grad_ratio == pytest.approx(math.sqrt(5), rel=1e-6)
    assert monitor.health()["m"].measurement is Measurement.UNMEASURED


def test_only_one_module_listens_inside_only():
    shadowed, other = scaled_orthogonal(0.5, 4), scaled_orthogonal(2.0, 4)
    monitor = GradientMonitor({"shadowed": shadowed, "other": other})
    x = torch.randn(2, 4, requires_grad=True)
    with monitor.only("shadowed"):
        other(shadowed(x)).sum().backward()
    health = monitor.close_epoch()
    assert health["shadowed"].grad_ratio == pytest.approx(0.5, rel=1e-6)
    assert health["other"].measurement is Measurement.UNMEASURED


def test_a_tensor_that_cannot_be_measured_is_survived_and_named(caplog):
    class Odd(nn.Module):
        def forward(self, box):
            return box.tensor * 2

    class Box(dict):
        """A dict that forbids looking into it."""

        tensor = torch.ones(3, requires_grad=True)

        def items(self):
            raise RuntimeError("closed")

    module = Odd()
    monitor = GradientMonitor({"m": module})
    for _ in range(2):
        module(Box()).sum().backward()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    health = monitor.close_epoch()["m"]
    assert health.measurement is not Measurement.MEASURED
    assert "closed" in health.measurement_reason or health.measurement is Measurement.INPUT_DETACHED


def test_a_forward_that_raises_leaves_the_probe_usable():
    class Fragile(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = scaled_orthogonal(1.0, 4)

        def forward(self, x, fail):
            if fail:
                raise ValueError("no")
            return self.layer(x)

    module = Fragile()
    monitor = GradientMonitor({"m": module})
    with pytest.raises(ValueError, match="no"):
        module(torch.ones(2, 4, requires_grad=True), True)
    module(torch.ones(2, 4, requires_grad=True), False).sum().backward()
    assert monitor.close_epoch()["m"].grad_ratio == pytest.approx(1.0, rel=1e-6)


def test_a_model_may_be_watched_before_it_has_memory():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Tanh())
        monitor = GradientMonitor({"layer": model[0]})
    model.to_empty(device="cpu")
    nn.init.orthogonal_(model[0].weight, gain=0.5)
    model(torch.randn(2, 4, requires_grad=True)).sum().backward()
    assert monitor.close_epoch()["layer"].grad_ratio == pytest.approx(0.5, rel=1e-6)


@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_lazy_modules_are_watched_before_they_have_parameters():
    model = nn.ModuleDict({"used": nn.LazyLinear(3), "later": nn.LazyLinear(2)})
    with sapflow.watch(model, "*") as watcher:
        for steps in ("used",), ("used", "later"):
            y = torch.randn(4, 5, requires_grad=True)
            for name in steps:
                y = model[name](y)
            y.sum().backward()
            watcher.step()
            seeds = watcher.epoch()
            assert seeds["used"].measurement_reason == ""
            assert (seeds["used"].parameter_liveness, seeds["used"].seed_params) == (1.0, 18)
    assert (seeds["later"].parameter_liveness, seeds["later"].seed_params) == (1.0, 8)


def test_a_name_is_measured_once():
    monitor = GradientMonitor({"m": nn.Linear(2, 2)})
    with pytest.raises(InputError, match="'m'"):
        monitor.attach("m", nn.Linear(2, 2))


def test_no_activation_is_kept_alive():

    layer = scaled_orthogonal(1.0, 4)
    monitor = GradientMonitor({"m": layer})
    x = torch.randn(2, 4, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    monitor.step()
    alive = weakref.ref(y), weakref.ref(x)
    del x, y
    assert [ref() for ref in alive] == [None, None]


def test_map_tensors_keeps_what_holds_no_changed_tensor():
    structure = {"a": [1, (2, "x")], "b": Pair(None, torch.ones(1))}
    assert map_tensors(lambda t: t, structure) is structure
    changed = map_tensors(lambda t: t + 1, structure)
    assert changed["a"] is structure["a"]
    assert changed["b"].right.item() == 2


def test_a_checkpoint_that_stops_early_leaves_no_activation_alive():
    """Its recomputation of the forward is cut off by an exception inside the measured module."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    monitor = GradientMonitor({"last": model[2], "all": model})
    handed_on: list[weakref.ref[torch.Tensor]] = []
    for module in (model, model[2]):
        module.register_forward_pre_hook(lambda module, args: handed_on.append(weakref.ref(args[0])))
    for _ in range(5):
        checkpoint(model, torch.randn(2, 4, requires_grad=True), use_reentrant=False).sum().backward()
        monitor.step()
    assert len(handed_on) > 10  # recomputed, too
    assert not any(activation() is not None for activation in handed_on)
    assert monitor.close_epoch()["last"].passes == 5


def _an_epoch(every_activation: bool) -> dict[str, object]:
    """Modules of several kinds over passes of micro-batches, one of them not finite."""
    torch.manual_seed(11)
    model = nn.Sequential(*(nn.Sequential(nn.Linear(16, 16), nn.Tanh()) for _ in range(PAGE_ROWS + 2)))
    monitor = GradientMonitor(dict(model.named_children()), activations=every_activation, ring_passes=3)
    for factor in (1.0, 1e-3, math.inf, 1e3, 1.0):
        for _ in range(2):
            (model(torch.randn(4, 16, requires_grad=True)) * factor).sum().backward()
        monitor.step()
    samples = monitor.samples(wait=True)
    return {"samples": samples, **monitor.close_epoch()}


@pytest.mark.parametrize("every_activation", [False, True])
def test_cells_that_the_host_cannot_write_hold_the_same(monkeypatch, every_activation):
    """On an accelerator cells are tensors only; here the same is made to be so on the CPU."""
    on_host = _an_epoch(every_activation)
    monkeypatch.setattr(Page, "_find_memory", lambda page: setattr(page, "memory", None))
    elsewhere = _an_epoch(every_activation)
    assert (on_host["0"].passes, on_host["0"].non_finite_passes) == (4, 1)
    for name in (str(number) for number in range(PAGE_ROWS + 2)):
        near = pytest.approx(attrgetter("entering_norm", "leaving_norm", "min_ratio")(on_host[name]), rel=1e-6)
        assert attrgetter("entering_norm", "leaving_norm", "min_ratio")(elsewhere[name]) == near
        assert elsewhere[name].measurement is on_host[name].measurement
        assert elsewhere["samples"][name].pass_index == on_host["samples"][name].pass_index
        assert elsewhere["samples"][name].leaving == pytest.approx(
            on_host["samples"][name].leaving, rel=1e-6, nan_ok=True
        )


def test_a_changed_input_of_which_only_the_version_shows_it_is_measured_where_it_was_made():
    """`x.detach().mul_()` in a module changes its input behind autograd's back."""

    class Sly(nn.Module):
        def forward(self, x):
            x.detach().mul_(2.0)
            return x * 3.0

    sly = Sly()
    monitor = GradientMonitor({"sly": sly})
    before = torch.randn(4, requires_grad=True)
    sly(before * 1.0).sum().backward()
    health = monitor.close_epoch()["sly"]
    assert torch.equal(before.grad, torch.full((4,), 3.0))
    assert (health.entering_norm, health.leaving_norm) == pytest.approx((2.0, 6.0))
