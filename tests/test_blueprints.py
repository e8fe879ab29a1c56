"""What can grow: blueprints that fit, are born at unit gain and never look ahead; a catalogue to add to."""

import itertools
import logging
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sapflow.errors import BlueprintError
from sapflow.growth.blueprints import Blueprint, blueprint, blueprint_for, blueprints_for, catalogue, check_fit
from sapflow.growth.blueprints.catalogue import Catalogue
from sapflow.growth.germination import germinate
from sapflow.growth.slot import SeedSlot, SeedState

SHAPES = {1: (24,), 2: (10, 12), 3: (8, 6, 6)}
HEALTHY = {
    1: ["mlp", "wide", "norm", "gated"],
    2: ["mlp", "wide", "norm", "gated", "attention", "conv"],
    3: ["conv", "norm", "depthwise", "bottleneck"],
}
EVERY = [(name, dimensions) for dimensions, names in HEALTHY.items() for name in (*names, "sigmoid", "explosive")]
SICK = ("sigmoid", "explosive")


@pytest.fixture
def own(monkeypatch) -> Catalogue:
    """A catalogue of the test's own, in which no package is looked for."""
    fresh = Catalogue()
    monkeypatch.setattr(catalogue, "_catalogue", fresh)
    monkeypatch.setattr(catalogue, "entry_points", lambda **_: ())
    return fresh


def exchange(shape, batch=32, dtype=torch.float32, random_seed=1):
    generator = torch.Generator().manual_seed(random_seed)
    activations, gradient = (torch.randn(batch, *shape, generator=generator) for _ in range(2))
    return lambda: (activations.relu().to(dtype), gradient.to(dtype))


def gain_of(seed: nn.Module, activations: torch.Tensor, gradient: torch.Tensor) -> float:
    """Independently of germination, in float64."""
    leaf = activations.clone().requires_grad_()
    (leaving,) = torch.autograd.grad(seed(leaf), leaf, gradient)
    return (leaving.double().norm() / gradient.double().norm()).item()


def plant(blueprint: Blueprint, shape, *, dtype=torch.float32, random_seed=3) -> tuple[SeedSlot, float]:
    slot = SeedSlot("mid", shape)
    give = exchange(shape, dtype=dtype)
    seed, gain, _ = germinate(slot, blueprint, exchange=give, random_seed=random_seed)
    slot.plant(seed, seed_id="mid-1", blueprint_id=blueprint.blueprint_id)
    return slot, gain


class TestBirth:
    @pytest.mark.parametrize(("name", "dimensions"), EVERY)
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
    def test_is_at_unit_gain_for_the_healthy_and_far_from_it_for_the_pathological(self, name, dimensions, dtype):
        shape = SHAPES[dimensions]
        slot, gain = plant(blueprint_for(name, shape), shape, dtype=dtype)
        assert all(parameter.dtype == dtype for parameter in slot.seed.parameters())
        found = gain_of(slot.seed, *exchange(shape, dtype=dtype)())
        assert gain == pytest.approx(found, rel=1e-5)
        if name in SICK:
            assert found < 0.02 or found > 20
        else:
            assert found == pytest.approx(1.0, abs=0.01)
        assert slot.state.seed_params == sum(p.numel() for p in slot.seed.parameters())

    @settings(max_examples=50)
    @given(
        st.sampled_from([(1, (3, 70)), (2, (3, 20)), (3, (2, 9))]).flatmap(
            lambda rank: st.lists(st.integers(*rank[1]), min_size=rank[0], max_size=rank[0])
        ),
        st.integers(0, 2**62),
        st.data(),
    )
    def test_is_at_unit_gain_whatever_the_shape_and_the_random_seed(self, shape, random_seed, data):
        shape = tuple(shape)
        chosen = data.draw(st.sampled_from(blueprints_for(shape)), "blueprint")
        slot, gain = plant(chosen, shape, random_seed=random_seed)
        assert gain == pytest.approx(1.0, abs=0.01)
        assert gain_of(slot.seed, *exchange(shape)()) == pytest.approx(1.0, abs=0.01)

    def test_is_measured_and_left_alone_where_calibration_is_not_asked_for(self):
        doubled = Blueprint("doubled", 1, lambda shape: _orthogonal(*shape, gain=2.0), calibrated=False)
        _, gain = plant(doubled, (16,))
        assert gain == pytest.approx(2.0, rel=1e-4)

    def test_says_when_scaling_the_last_weight_did_not_bring_the_gain_to_1(self, caplog):
        hidden = Blueprint("hidden", 1, lambda shape: nn.Sequential(nn.Linear(*shape, *shape), nn.LayerNorm(shape)))
        _, gain = plant(hidden, (16,))
        assert gain != pytest.approx(1.0, abs=0.01)
        (said,) = caplog.messages
        assert "'hidden'" in said
        assert "calibrated=False" in said


def _orthogonal(width: int, gain: float) -> nn.Module:
    layer = nn.Linear(width, width, bias=False)
    nn.init.orthogonal_(layer.weight, gain=gain)
    return layer


class TestSequences:
    @pytest.mark.parametrize("name", [*HEALTHY[2], *SICK])
    def test_none_looks_ahead_and_any_number_of_tokens_will_do(self, name):
        slot, _ = plant(blueprint_for(name, (10, 12)), (10, 12), dtype=torch.float64)
        for tokens in (1, 2, 10, 25):
            x = torch.randn(2, tokens, 12, dtype=torch.float64, requires_grad=True)
            y = slot.seed(x)
            assert y.shape == x.shape
            for t in range(tokens):
                (reach,) = torch.autograd.grad(y[:, t].sum(), x, retain_graph=True)
                assert reach[:, t + 1 :].count_nonzero() == 0, f"token {t} looks ahead"
                assert reach[:, t].count_nonzero() > 0

    @pytest.mark.parametrize(("name", "reach"), [("attention", 10), ("conv", 4), ("mlp", 1), ("gated", 1)])
    def test_those_that_mix_tokens_see_as_far_back_as_they_should(self, name, reach):
        slot, _ = plant(blueprint_for(name, (10, 12)), (10, 12))
        x = torch.randn(1, 10, 12, requires_grad=True)
        (seen,) = torch.autograd.grad(slot.seed(x)[:, -1].square().sum(), x)
        assert seen.abs().sum((0, 2)).count_nonzero() == reach


class Looking(nn.Module):
    """Looks at a value, which no meta tensor has."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(3, width)

    def forward(self, x):
        return self.linear(x) if x.abs().sum() > 0 else x


class Recast(nn.Linear):
    def forward(self, x):
        return super().forward(x).double()


def _raising(_shape):
    raise ValueError("no oak\nfits here")


MISFITS = {
    "narrow": (lambda shape: nn.Linear(*shape, 5), "turns (3,) into (5,)"),
    "whole": (lambda shape: nn.Sequential(nn.Linear(*shape, 3), nn.Flatten(0)), "a whole of"),
    "in-place": (lambda shape: nn.Sequential(nn.ReLU(inplace=True), nn.Linear(*shape, *shape)), "in place"),
    "wrong": (lambda _shape: nn.Linear(9, 9), "does not run on (3,)"),
    "recast": (lambda shape: Recast(*shape, *shape), "torch.float64"),
    "two-things": (lambda shape: nn.LSTM(*shape, *shape), "a seed must give one tensor"),
    "raising": (_raising, "cannot be built for (3,): no oak"),
    "no-module": (lambda _shape: None, "must build a module"),
    "looking, narrow": (lambda _shape: Looking(5), "turns (3,) into (5,)"),
    "bare": (lambda _shape: nn.Tanh(), "has no parameters"),
    "weightless": (lambda shape: nn.LayerNorm(shape), "no weight to calibrate"),
    "detached": (lambda shape: Detached(*shape, *shape), "detaches its output"),
}
KNOWN_AT_GERMINATION_ALONE = ("looking, narrow", "weightless", "detached")


class Detached(nn.Linear):
    def forward(self, x):
        return super().forward(x).detach()


class TestFit:
    @pytest.mark.parametrize(("build", "complaint"), MISFITS.values(), ids=MISFITS)
    def test_what_does_not_fit_is_refused_in_one_line_and_nothing_changes(self, build, complaint):
        slot = SeedSlot("mid", (3,))
        torch.manual_seed(5)
        before = torch.get_rng_state()
        with pytest.raises(BlueprintError) as refusal:
            germinate(slot, Blueprint("misfit", 1, build), exchange=exchange((3,)), random_seed=0)
        assert complaint in str(refusal.value)
        assert "'misfit'" in str(refusal.value)
        assert "\n" not in str(refusal.value)
        assert slot.state == SeedState("mid")
        assert slot.seed is None
        assert torch.equal(torch.get_rng_state(), before)

    @pytest.mark.parametrize("kind", [kind for kind in MISFITS if kind not in KNOWN_AT_GERMINATION_ALONE])
    def test_is_found_out_without_data(self, kind):
        build, complaint = MISFITS[kind]
        with pytest.raises(BlueprintError) as refusal:
            check_fit(Blueprint("misfit", 1, build), (3,))
        assert complaint in str(refusal.value)

    def test_a_misfit_of_a_terabyte_is_refused_before_it_gets_any_memory(self):
        devices = []

        def huge(_shape):
            layer = nn.Linear(3, 10**11)
            devices.append(layer.weight.device.type)
            return layer

        with pytest.raises(BlueprintError, match="100000000000"):
            germinate(SeedSlot("mid", (3,)), Blueprint("huge", 1, huge), exchange=exchange((3,)), random_seed=0)
        assert devices == ["meta"]

    def test_what_cannot_run_without_data_is_let_pass_and_grows(self):
        looking = Blueprint("looking", 1, lambda _shape: Looking(3))
        check_fit(looking, (3,))
        _, gain = plant(looking, (3,))
        assert gain == pytest.approx(1.0, abs=0.01)

    def test_batch_statistics_are_no_misfit(self):
        check_fit(Blueprint("normal", 1, lambda shape: nn.BatchNorm1d(*shape)), (3,))

    def test_disturbs_no_random_stream(self):
        torch.manual_seed(5)
        before = torch.get_rng_state()
        check_fit(Blueprint("drawn", 1, lambda _shape: nn.Linear(3, int(3 + torch.rand(1, device="cpu")))), (3,))
        assert torch.equal(torch.get_rng_state(), before)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
    @pytest.mark.parametrize(("name", "dimensions"), EVERY)
    def test_all_that_come_with_sapflow_fit(self, name, dimensions, dtype):
        check_fit(blueprint_for(name, SHAPES[dimensions]), SHAPES[dimensions], dtype)


def mine(shape):
    return nn.Linear(*shape, *shape)


def other(shape):
    return nn.Linear(*shape, *shape)


class TestCatalogue:
    @pytest.mark.parametrize("dimensions", HEALTHY)
    def test_what_grows_by_itself_is_healthy_and_in_a_fixed_order(self, dimensions, own):
        assert [one.blueprint_id for one in blueprints_for(SHAPES[dimensions])] == HEALTHY[dimensions]

    def test_unknown_names_are_answered_with_those_that_there_are(self):
        with pytest.raises(BlueprintError, match=r"'oak'.*bottleneck, conv, depthwise, explosive, norm, sigmoid"):
            blueprint_for("oak", (8, 4, 4))
        with pytest.raises(BlueprintError, match="4 dimensions"):
            blueprint_for("oak", (2, 8, 4, 4))
        with pytest.raises(BlueprintError, match="dimensions=4"):
            blueprints_for((2, 8, 4, 4))

    def test_one_s_own_are_registered_by_a_decorator(self, own):
        assert blueprint("zelkova", dimensions=1, calibrated=False)(mine) is mine
        assert blueprint("alder", dimensions=1)(mine) is mine
        assert blueprint("weed", dimensions=1, pathological=True)(mine) is mine
        found = blueprint_for("zelkova", (24,))
        assert (found.build, found.calibrated, found.pathological) == (mine, False, False)
        assert [one.blueprint_id for one in blueprints_for((24,))] == [*HEALTHY[1], "alder", "zelkova"]
        assert [one.blueprint_id for one in blueprints_for((8, 4, 4))] == HEALTHY[3]
        assert blueprint_for("weed", (24,)).pathological

    def test_a_name_that_is_taken_is_an_error_that_says_by_whom(self, own):
        with pytest.raises(BlueprintError, match=r"'mlp' of .*test_blueprints\.mine.*taken by sapflow\.growth.*_mlp"):
            blueprint("mlp", dimensions=1)(mine)
        blueprint("mlp", dimensions=3)(mine)  # another kind of slot
        blueprint("oak", dimensions=1)(mine)
        blueprint("oak", dimensions=1, calibrated=False)(mine)  # the same again, as from a notebook's cell
        assert not blueprint_for("oak", (24,)).calibrated
        with pytest.raises(BlueprintError, match=r"test_blueprints\.other.*taken by .*test_blueprints\.mine"):
            blueprint("oak", dimensions=1)(other)
        assert blueprint_for("oak", (24,)).build is mine

    @pytest.mark.parametrize(("name", "dimensions"), [("", 1), (" ", 1), ("a:b", 1), ("a\nb", 1), ("oak", 0)])
    def test_names_that_are_none(self, name, dimensions, own):
        with pytest.raises(BlueprintError, match="printable name without a colon"):
            blueprint(name, dimensions=dimensions)(mine)

    def test_importing_the_catalogue_looks_for_no_packages(self, monkeypatch, own):
        asked = []
        monkeypatch.setattr(catalogue, "entry_points", lambda **group: asked.append(group) or ())
        fresh = Catalogue()
        assert asked == []
        fresh.fitting((24,))
        fresh.fitting((24,))
        assert asked == [{"group": "sapflow.blueprints"}]


GOOD = """
from sapflow.growth.blueprints import blueprint
from torch import nn

@blueprint("{name}", dimensions=1)
def build(shape):
    return nn.Linear(*shape, *shape)
"""
counter = itertools.count()


@pytest.fixture
def packages(monkeypatch, tmp_path, own):
    """Install modules, by their source, each with an entry point."""

    def install(*sources: str) -> list[str]:
        names = [f"seeds_{next(counter)}" for _ in sources]
        for name, source in zip(names, sources, strict=True):
            (tmp_path / f"{name}.py").write_text(source)
        points = [EntryPoint(f"point-{name}", name, "sapflow.blueprints") for name in names]
        monkeypatch.setattr(catalogue, "entry_points", lambda **_: points)
        return names

    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return install


class TestPackages:
    def test_bring_blueprints_by_an_entry_point(self, packages):
        packages(GOOD.format(name="oak"), GOOD.format(name="ash"))
        assert [one.blueprint_id for one in blueprints_for((24,))] == [*HEALTHY[1], "ash", "oak"]
        _, gain = plant(blueprint_for("oak", (24,)), (24,))
        assert gain == pytest.approx(1.0, abs=0.01)

    def test_that_are_broken_are_left_out_with_one_warning(self, packages, caplog):
        broken, _ = packages(GOOD.format(name="half-done") + "\nraise OSError('rotten')", GOOD.format(name="oak"))
        with caplog.at_level(logging.WARNING):
            for _ in range(2):
                assert [one.blueprint_id for one in blueprints_for((24,))] == [*HEALTHY[1], "oak"]
        (said,) = caplog.messages
        assert broken in said
        assert "OSError: rotten" in said

    def test_that_claim_one_name_are_named_each_time(self, packages):
        first, second = packages(GOOD.format(name="oak"), GOOD.format(name="oak"))
        for _ in range(2):
            with pytest.raises(BlueprintError, match=rf"{second}\.build.*taken by {first}\.build"):
                blueprints_for((24,))

    def test_that_claim_one_name_keep_a_run_from_beginning(self, packages):
        from sapflow.training.trainer import RunPlan

        packages(GOOD.format(name="mlp"))
        with pytest.raises(BlueprintError, match="taken by"):
            RunPlan(task="digits-mlp").check()

    def test_a_real_installed_package_is_found(self, monkeypatch, tmp_path):
        fresh = Catalogue()
        monkeypatch.setattr(catalogue, "_catalogue", fresh)
        name = f"seeds_{next(counter)}"
        (tmp_path / f"{name}.py").write_text(GOOD.format(name="rowan"))
        _installed(tmp_path, name, f"[sapflow.blueprints]\nrowan = {name}\n")
        monkeypatch.syspath_prepend(tmp_path)
        assert "rowan" in [one.blueprint_id for one in blueprints_for((24,))]


def _installed(site: Path, name: str, points: str) -> None:
    """What an installer leaves behind."""
    folder = site / f"{name}-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text(points)
