"""TELE-557, tested: from a real loss.backward() through journal and snapshot to the text on the terminal."""

from pathlib import Path

import pytest
import torch
from torch import nn

from sapflow.gradients.gradient_monitor import GradientMonitor
from sapflow.growth.slot import SeedSlot
from sapflow.sanctum.app import SanctumApp
from sapflow.sanctum.widgets.env_detail_screen import EnvDetailScreen, SeedCard
from sapflow.telemetry.events import EnvStarted, EpochCompleted, RunCompleted, RunStarted
from sapflow.telemetry.journal import Journal
from sapflow.telemetry.source import Source
from sapflow.telemetry.stream import EventStream
from sapflow.telemetry.vocabulary import Measurement, SeedStage

WIDTH = 16


def blending_slot(seed: nn.Module) -> tuple[SeedSlot, GradientMonitor]:
    """A slot whose seed the host sees, come there the legal way, and a monitor on it."""
    slot = SeedSlot("mid", (WIDTH,))
    slot.plant(seed, seed_id="mid-1", blueprint_id="orthogonal")
    slot.advance(SeedStage.TRAINING)
    monitor = GradientMonitor({"mid": seed})
    return slot, monitor


def scaled_orthogonal(gain: float) -> nn.Linear:
    layer = nn.Linear(WIDTH, WIDTH, bias=False)
    nn.init.orthogonal_(layer.weight, gain=gain)
    return layer


def record_run(run_dir: Path, slot: SeedSlot, monitor: GradientMonitor, backward) -> None:
    """One epoch of one pass: what `backward` does, as a run directory."""
    run_dir.mkdir()
    journal = Journal(run_dir)
    EventStream(journal, "street").emit(RunStarted(task="street", envs=1, epochs=1, rng_seed=0))
    env = EventStream(journal, "street", 0)
    env.emit(EnvStarted(host="Sequential", host_params=0, slot_ids=("mid",), epochs=1))
    backward()
    slot.state.observe(monitor.close_epoch()["mid"])
    epoch = EpochCompleted(
        epoch=1, epochs=1, accuracy=50.0, train_loss=1.0, validation_loss=1.0, seeds=(slot.state.telemetry(),)
    )
    env.emit(epoch)
    EventStream(journal, "street").emit(RunCompleted(completed_envs=1))
    assert journal.close().dropped_events == 0


async def lines_of_the_card(run_dir: Path) -> tuple[SanctumApp, list[list[tuple[str, str]]]]:
    """Sanctum opened on the run, the env entered: the card's lines as the terminal gets them, text and style."""
    with Source(run_dir) as source:
        app = SanctumApp(source)
        async with app.run_test(size=(100, 30)) as pilot:
            await pilot.pause()
            await pilot.press("enter")
            await pilot.pause()
            assert isinstance(app.screen, EnvDetailScreen)
            card = app.screen.query_one(SeedCard)
            strips = [card.render_line(y) for y in range(card.size.height)]
    lines = []
    for strip in strips:
        styled = []
        for segment in strip:
            colour = segment.style.color.name if segment.style.color else "default"
            styled.append((segment.text, f"{'bold ' if segment.style.bold else ''}{colour}"))
        lines.append(styled)
    return app, lines


def grad_line(lines) -> list[tuple[str, str]]:
    """What stands after "Grad: " on the card."""
    (line,) = [line for line in lines if any("Grad: " in text for text, _ in line)]
    start = next(index for index, (text, _) in enumerate(line) if "Grad: " in text)
    return [span for span in line[start + 1 :] if span[0].strip(" │┃")]


@pytest.mark.parametrize(
    ("gain", "text", "style"),
    [
        (0.85, "ratio=0.85", "green"),
        (0.1, "▼ VANISHING", "bold yellow"),
        (5.0, "▲ EXPLODING", "bold red"),
        (0.5, "ratio=0.50", "green"),
        (2.0, "ratio=2.00", "green"),
        (0.4999, "▼ VANISHING", "bold yellow"),
        (2.0001, "▲ EXPLODING", "bold red"),
        (0.0, "▼ VANISHING", "bold yellow"),  # a dead seed
    ],
)
async def test_from_a_real_backward_pass_to_the_rendered_text(tmp_path, gain, text, style):
    torch.manual_seed(0)
    seed = scaled_orthogonal(gain)
    slot, monitor = blending_slot(seed)
    host = nn.Sequential(nn.Linear(8, WIDTH), nn.Tanh(), seed, nn.Linear(WIDTH, 3))
    x, target = torch.randn(32, 8), torch.randint(3, (32,))

    record_run(
        tmp_path / "run", slot, monitor, lambda: nn.functional.cross_entropy(host(x), target).backward()
    )  # fmt: skip

    app, lines = await lines_of_the_card(tmp_path / "run")
    shown = app.snapshot.envs[0].seeds["mid"]
    assert shown.grad_ratio == pytest.approx(gain, rel=1e-6, abs=1e-12)
    assert shown.measurement is Measurement.MEASURED
    assert grad_line(lines) == [(text, style)]


async def test_a_seed_that_no_gradient_reached_reads_ok_and_says_so_on_a_dim_line(tmp_path):
    seed = scaled_orthogonal(1.0)
    slot, monitor = blending_slot(seed)

    def backward():
        seed(torch.randn(4, WIDTH, requires_grad=True))
        monitor.step()

    record_run(tmp_path / "run", slot, monitor, backward)
    app, lines = await lines_of_the_card(tmp_path / "run")
    shown = app.snapshot.envs[0].seeds["mid"]
    assert (shown.grad_ratio, shown.measurement) == (0.0, Measurement.NO_GRADIENT)
    assert grad_line(lines) == [("OK", "green")]
    (named,) = [line for line in lines if any("NO_GRADIENT" in text for text, _ in line)]
    assert any("NO_GRADIENT" in text and "green" not in style for text, style in named)


async def test_a_seed_whose_gradients_are_nan_reads_exploding(tmp_path):
    seed = scaled_orthogonal(1.0)
    slot, monitor = blending_slot(seed)
    x = torch.randn(4, WIDTH, requires_grad=True)
    record_run(tmp_path / "run", slot, monitor, lambda: (seed(x) * torch.nan).sum().backward())
    _, lines = await lines_of_the_card(tmp_path / "run")
    assert grad_line(lines) == [("▲ EXPLODING", "bold red")]
    assert any("NON_FINITE" in text for line in lines for text, _ in line)
