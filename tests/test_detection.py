"""The detection benchmark, small: every fault once, every healthy kind once, and the page that is made of them."""

from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.usefixtures("_benchmarks")


@pytest.fixture(scope="module")
def _benchmarks():
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def trials(_benchmarks):
    from detection import trial
    from detection_subjects import HEALTHY, HOSTS, ONSETS, Kind, Setting

    names = list(HEALTHY)
    strikes = {Kind.LATE_FALL, Kind.LATE_DEATH, Kind.LATE_RISE, Kind.NAN}
    faulty = [
        trial(
            Setting(HOSTS[index % 3], index, kind, names[index % len(names)]),
            passes=max(ONSETS) + 25 if kind in strikes else 40,
            rivals=False,
        )
        for index, kind in enumerate(Kind)
    ]
    healthy = [
        trial(Setting(HOSTS[index % 3], index, None, name), passes=60, rivals=index < 2)
        for index, name in enumerate(names)
    ]
    return faulty + healthy


def test_every_planted_fault_is_caught_soon_named_and_nothing_healthy_is_flagged(trials):
    from detection import NAMES, OURS

    for one in trials:
        kind = one.setting.kind
        if kind is None:
            assert one.first[OURS] == {}, one
        else:
            assert one.latency(OURS) is not None, one
            assert one.named(OURS), one
    right = [one.fault in NAMES[one.setting.kind] for one in trials if one.sick]
    assert sum(right) >= 0.75 * len(right)
    late = sorted(one.latency(OURS) for one in trials if one.sick)
    assert late[len(late) // 2] <= 15


def test_the_record_s_band_flags_healthy_blocks_which_is_why_there_is_another_policy(trials):
    from detection import BAND

    assert sum(len(one.first[BAND]) for one in trials if not one.sick) > len(trials)


def test_the_page_has_a_row_for_each_detector_fault_and_healthy_kind(trials):
    from detection import DETECTORS, page
    from detection_subjects import HEALTHY, Kind

    for one in trials:
        for detector in DETECTORS:
            one.first.setdefault(detector, {})
    rows = [line.split(" | ")[0].removeprefix("| ") for line in page(trials, 1, 60.0).splitlines()]
    for name in (*DETECTORS, *Kind, *HEALTHY):
        assert name in rows


@pytest.mark.parametrize(
    ("make", "caught_by"),
    [
        ("a block whose ReLUs never fire", {"SageMaker Debugger", "TheDeepChecker", "AUTOTRAINER"}),
        ("a block whose tanh is saturated", {"SageMaker Debugger", "TheDeepChecker", "AUTOTRAINER"}),
        ("a block whose weights are 1e-9", {"absolute norms (1e-7, 10)", "SageMaker Debugger", "TheDeepChecker"}),
        ("a block with huge gradients", {"absolute norms (1e-7, 10)"}),
        ("a sound block", set()),
    ],
)
def test_the_rivals_do_what_their_thresholds_say(make, caught_by):
    from detection_rivals import RIVALS, Look
    from torch import nn

    torch.manual_seed(0)
    scale, activation = 1.0, nn.ReLU()
    block = nn.Sequential(nn.Linear(16, 16), activation, nn.Linear(16, 16))
    match make:
        case "a block whose ReLUs never fire":
            nn.init.constant_(block[0].bias, -100.0)
        case "a block whose tanh is saturated":
            block[1] = nn.Tanh()
            nn.init.constant_(block[0].bias, 12.0)
        case "a block whose weights are 1e-9":
            with torch.no_grad():
                for parameter in block.parameters():
                    parameter.mul_(1e-9)
            scale = 1e-8
        case "a block with huge gradients":
            scale = 1e4
    look = Look(block)
    (scale * block(torch.randn(64, 16))).mean().backward()
    detectors = [rival() for rival in RIVALS]
    assert {detector.name for detector in detectors if detector.ill(look)} == caught_by
    assert not look.broken


def test_nan_is_no_detector_s_secret():
    from detection_rivals import Look
    from torch import nn

    block = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    look = Look(block)
    (block(torch.randn(2, 4)) * torch.nan).sum().backward()
    assert look.broken
