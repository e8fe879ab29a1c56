"""The page of `sapflow report`: it tells what happened, is whole without a network, and no name can harm it."""

import json
import re
import shutil
import subprocess
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import duckdb
import pytest
from msgspec.structs import replace

import sapflow
from commands import finish_forked, refused
from history_runs import (
    HOSTILE,
    alert,
    difficult_run,
    epoch,
    germinated,
    hostile_run,
    large_run,
    pruned,
    run_of,
    seed,
    strange_run,
)
from journals import event, finished_run, killed_run
from sapflow.errors import InputError
from sapflow.history.report.comparing import comparison_page
from sapflow.history.report.groups import groups_of
from sapflow.history.report.page import run_page
from sapflow.history.report.story import Mark, story
from sapflow.history.rolling import roll
from sapflow.telemetry.events import EnvFailed, EpochCompleted, RunCompleted, RunStarted, SeedStageChanged
from sapflow.telemetry.run_directory import TrainerLock
from sapflow.telemetry.vocabulary import Measurement, SeedStage, Severity

HERE = Path.cwd()  # where subprocesses find the same Sapflow as this one
VOID = {"meta", "link", "br", "img", "input", "hr", "base", "embed", "source", "wbr"}
FETCHES = {"src", "srcset", "poster", "data", "action", "formaction", "background", "xlink:href", "ping"}


class Parsed(HTMLParser):
    """A page as a browser reads it: its elements with their attributes and their text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[dict[str, object]] = []
        self.all: list[dict[str, object]] = []
        self.parts: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []  # everything that was opened was closed

    def handle_starttag(self, tag, attrs):
        inside = tuple(each["tag"] for each in self.open)
        element = {"tag": tag, "text": "", "inside": inside, "from": len(self.parts), **dict(attrs)}
        self.all.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        element = self.open.pop()
        assert element["tag"] == tag
        element["text"] = "".join(self.parts[element["from"] :])

    def handle_data(self, data):
        self.parts.append(data)

    def find(self, tag, **attributes):
        wanted = {name.rstrip("_"): value for name, value in attributes.items()}
        return [each for each in self.all if each["tag"] == tag and wanted.items() <= each.items()]


def page_of(path: Path) -> Parsed:
    with sapflow.open_run(path) as run:
        return Parsed(checked(run_page(run)))


def checked(page: str) -> str:
    """What is so of every page: nothing is fetched, nothing runs, every picture has words and a table."""
    parsed = Parsed(page)
    assert {each["tag"] for each in parsed.all} & {"script", "link", "img", "iframe", "object", "base", "form"} == set()
    for element in parsed.all:
        assert not FETCHES & element.keys(), element
        assert not any(name.startswith("on") for name in element), element
        assert str(element.get("href", "#")).startswith("#"), element
    outside = re.sub(r">[^<]*<", "><", page)  # not in text, where an address is only read
    assert not re.search(r"https?:|//[a-z]|@import|url\((?!#)", outside)
    (policy,) = parsed.find("meta", **{"http-equiv": "Content-Security-Policy"})
    assert policy["content"].startswith("default-src 'none'; style-src 'unsafe-inline'")
    ids = Counter(each["id"] for each in parsed.all if "id" in each)
    assert max(ids.values()) == 1
    targets = {str(each["href"])[1:] for each in parsed.all if "href" in each}
    targets |= set(re.findall(r"url\(#([^)]+)\)", page)) | {
        name for each in parsed.find("svg") for name in str(each["aria-labelledby"]).split()
    }
    assert targets <= ids.keys()
    pictures, tables = parsed.find("svg", role="img"), parsed.find("table")
    words = {str(each["id"]): each["text"] for each in parsed.all if "id" in each}
    for picture in pictures:
        assert all(words[name] for name in str(picture["aria-labelledby"]).split())
    assert pictures
    assert len(parsed.find("figure")) == len(pictures)
    assert all(each["text"] for each in parsed.find("caption"))
    assert len(parsed.find("caption")) == len(tables)
    assert parsed.find("meta", name="viewport", content="width=device-width, initial-scale=1")
    assert "@media print" in page
    assert "prefers-color-scheme: dark" in page
    return page


def lines_of(path: Path) -> list[tuple[Mark, str]]:
    with sapflow.open_run(path) as run:
        return [(line.mark, line.text) for line in story(run)]


def test_the_story_of_a_trained_run_is_what_happened_in_it(trained):
    told = lines_of(trained)
    assert len(told) <= 10
    mark, text = told[0]
    assert mark is Mark.ABOUT
    assert text.startswith("digits-mlp: 2 envs × 9 epochs, completed; began ")
    with sapflow.open_run(trained) as run:
        seeds, epochs = run.seeds(), run.epochs()
    assert seeds.num_rows
    assert epochs.num_rows
    ends = duckdb.sql("SELECT min(accuracy), max(accuracy) FROM epochs WHERE epoch = 9").fetchall()[0]
    assert all(f"{accuracy:.1f} %" in text for accuracy in ends)
    whole = "\n".join(text for _, text in told)
    columns = "env, slot, blueprint, died_epoch, died_of, last_ratio"
    died = duckdb.sql(f"SELECT {columns} FROM seeds WHERE died_of <> ''").fetchall()
    assert len(died) >= 2
    for env, slot, blueprint, at, rule, ratio in died[:2]:
        assert f"env {env} {slot} ({blueprint}), planted, after epoch {at}, by “{rule}”, ratio {ratio:.4g}" in whole
    bad = [text.partition(":")[0] for mark, text in told if mark is Mark.BAD]
    assert bad[:2] == ["Exploded and pruned", "Vanished and pruned"]
    best = duckdb.sql("SELECT env, slot, accuracy_delta FROM epochs WHERE epoch = 9 ORDER BY 3 DESC").fetchall()[0]
    (helped,) = [text for mark, text in told if text.startswith("Helped")]
    assert f"env {best[0]} {best[1]}" in helped
    assert f"without it {best[2]:.1f} points less" in helped
    assert told[-1][0] is Mark.GOOD
    assert "Nothing is missing" in told[-1][1]


@pytest.fixture(scope="module")
def whole_page(trained):
    with sapflow.open_run(trained) as run:
        return checked(run_page(run))


def test_the_page_of_a_trained_run_has_every_part(whole_page):
    page = Parsed(whole_page)
    assert [each["text"] for each in page.find("h2")] == [
        "What happened", "Does gradient flow?", "What grew where, and what raised an alert",
        "How much enters, how much leaves", "What the seeds are worth", "Configuration and versions",
    ]  # fmt: skip
    titles = [each["text"] for each in page.find("title") if "svg" in each["inside"]]
    assert titles == [
        "Ratio over time, env 0", "Ratio over time, env 1", "Lives of the seeds", "Alerts over time",
        "Entering against leaving gradient", "Ratios of single passes", "Accuracy with and without, env 0",
        "Accuracy with and without, env 1",
    ]  # fmt: skip
    assert len(page.find("details")) == len(titles)
    text = " ".join(each["text"] for each in page.find("main"))
    for word in (
        "digits-mlp",
        "scheduled",
        "torch",
        "python",
        "dying seed",
        "then prune",
        "ratio_below 0.02 for 3 epochs",
    ):
        assert word in text


def test_tables_hold_what_is_drawn(trained, whole_page):
    page = Parsed(whole_page)
    with sapflow.open_run(trained) as run:
        epochs = run.epochs(env=0)
    measured = duckdb.sql("SELECT ratio FROM epochs WHERE seed <> '' AND status = 'MEASURED'").fetchall()
    assert epochs.num_rows > len(measured) > 5
    regions = {str(each["aria-label"]).partition(";")[0]: each for each in page.find("div", class_="wide")}
    cells = [each["text"] for each in page.all if each["tag"] == "td"]
    for (ratio,) in measured:
        assert f"{ratio:.4g}" in str(regions["Ratio over time, env 0"]["text"])
        assert f"{ratio:.4g}" in cells


def test_a_run_that_was_cut_off_with_every_kind_of_trouble(tmp_path):
    told = {text.partition(":")[0]: (mark, text) for mark, text in lines_of(difficult_run(tmp_path / "run"))}
    whole = "\n".join(text for _, text in told.values())
    assert "cut off after epoch 4" in whole
    assert told["Not finite (2)"][0] is Mark.BAD
    assert "env 0 broken (conv) in 24 passes; env 0 mixed (conv) in 6 passes" in whole
    assert "Not measured (6 of 15 epochs of seeds)" in told
    assert "PROBE_LOST: the probe never fired (3 epochs, first env 0 lost (conv))" in whole
    assert "Nothing is missing" not in whole
    page = page_of(tmp_path / "run")
    rails = [each["text"] for each in page.find("text")]
    assert {"0", "NaN, ∞", "not measured"} <= set(rails)


def test_what_was_not_finite_in_one_seed_is_not_forgotten_for_the_next_in_its_slot(tmp_path):
    broken = seed("a", 1.0, non_finite_passes=3, has_exploding=True)
    path = run_of(
        tmp_path / "run", germinated("a"), epoch(2, broken), pruned("a", 2, 1.0), germinated("a", 2, at=2),
        epoch(3, seed("a", seed_id="a-2")), (None, RunCompleted(completed_envs=1)),
    )  # fmt: skip
    assert (Mark.BAD, "Not finite: env 0 a (conv) in 3 passes.") in lines_of(path)


def test_the_worst_comes_first(tmp_path):
    path = run_of(
        tmp_path / "run", germinated("a"), germinated("b"), germinated("c"),
        epoch(2, seed("a", 0.001), seed("b", 2.2), seed("c", 1.0, measurement=Measurement.PROBE_LOST, passes=0)),
        alert("b", 2, severity=Severity.CRITICAL), pruned("a", 2, 0.001),
        (0, EnvFailed(epoch=2, error="out of memory")),
        (None, RunCompleted(completed_envs=0, failed_envs=1)),
    )  # fmt: skip
    told = lines_of(path)
    order = [text.partition(":")[0] for _, text in told]
    expected = [
        "Failed",
        "Vanished and pruned",
        "Alerts open at the end (1, critical",
        "Flagged at the end (1 of 2 seeds)",
    ]
    places = [next(place for place, text in enumerate(order) if text.startswith(each)) for each in expected]
    assert places == sorted(places)
    assert "out of memory" in told[places[0]][1]


@pytest.mark.parametrize("kind", ["empty", "started", "one epoch", "watched", "live", "killed"])
def test_every_run_gives_a_sensible_page(kind, tmp_path):
    path = tmp_path / "run"
    match kind:
        case "empty":
            run_of(path, start=False)
        case "started":
            run_of(path)
        case "one epoch":
            run_of(path, germinated("s"), epoch(2, seed("s")))
        case "killed":
            killed_run(path)
        case _:
            watched = SeedStageChanged(
                epoch=0, slot_id="layers.0", seed_id="layers.0-1", blueprint_id="Linear",
                from_stage=SeedStage.DORMANT, to_stage=SeedStage.WATCHED,
            )  # fmt: skip
            module = seed("layers.0", 0.3, stage=SeedStage.WATCHED, blueprint_id="Linear")
            run_of(path, (0, watched), epoch(1, module, accuracy=None), epoch(2, module, accuracy=None))
    if kind == "live":
        with TrainerLock(path):
            page = page_of(path)
    else:
        page = page_of(path)
    (told,) = page.find("ul", class_="story")
    words = {
        "empty": "A run without a beginning", "started": "cut off after epoch 0",
        "one epoch": "accuracy at the end 50.0 %",
        "live": "still running, at epoch 2", "killed": "cut off after epoch",
    }  # fmt: skip
    text = str(page.find("main")[0]["text"])
    if kind == "watched":
        assert "No accuracy is known" in text
        assert "env 0 layers.0 (Linear) vanishes, ratio 0.3" in text
    else:
        assert words[kind] in str(told["text"])


def test_a_clock_that_was_set_back_is_said(tmp_path):
    path = finished_run(
        tmp_path / "run",
        replace(event(RunStarted(task="t", envs=1, epochs=9), env=None), time=1_700_007_200.0),
        event(epoch(1, seed("s"))[1]),
    )
    assert "began 2023-11-15 00:13 UTC, ended before that: a clock was set back" in lines_of(path)[0][1]


def test_no_number_breaks_a_page(tmp_path):
    with sapflow.open_run(strange_run(tmp_path / "run")) as run:
        single, several = checked(run_page(run)), checked(comparison_page({"a": [run], "b": [run, run]}))
    assert "Measured epochs with a norm that has no place here, such as infinity: 7." in single
    assert "runs compared" in several


def test_an_accuracy_that_is_no_number_is_no_part_of_the_median(tmp_path):
    unknown = EpochCompleted(epoch=2, epochs=9, seeds=(seed("a"),), accuracy=float("nan"))
    path = run_of(tmp_path / "run", (1, unknown), epoch(2, seed("a"), accuracy=60.0))
    with sapflow.open_run(path) as run:
        page = comparison_page({"a": [run], "b": [run]})
    assert "<td>60.0 %</td>" in page
    assert "nan %" not in page


def test_names_are_text_wherever_they_stand(tmp_path):
    run_dir = hostile_run(tmp_path / "<b>run")
    (run_dir / "plan.json").write_text(
        '{"task": "<script>x</script>", "rules": "\\u202e<i>", "data_dir": "</style><script>"}'
    )
    with sapflow.open_run(run_dir) as run:
        single, several = checked(run_page(run)), checked(comparison_page({HOSTILE[0]: [run], HOSTILE[2]: [run]}))
    for page in (single, several):
        for bad in ("<script", "<img", "<b>", "<i>", "onerror=alert(1)>&amp;<", "\u202e", "\x1b", "\x00", "n" * 200):
            assert bad not in page
        text = str(Parsed(page).find("body")[0]["text"])
        assert "<script>alert(1)</script>" in text
        assert "$\\frac{a}{b}$" in text
    assert len(single) < 400_000


def test_a_rolled_run_gives_the_same_page(trained, whole_page, tmp_path):
    copy = shutil.copytree(trained, tmp_path / trained.name)
    assert roll(copy, remove_journal=True).removed
    with sapflow.open_run(copy) as run:
        assert run_page(run) == whole_page


RULES_WITH_A_SECRET = """
[[rules]]
name = "r"
when = "exploding"
for_epochs = 1
clear_after = 1
severity = "warning"
actions = ["notify"]

[notify]
urls = ["json://user:hunter2@example.org/x"]
"""


@pytest.mark.parametrize(
    ("rules", "said"), [(RULES_WITH_A_SECRET, "Notifications go by json."), ("= hunter2", "cannot be read")]
)
def test_secrets_in_a_rule_file_do_not_go_into_the_page(rules, said, tmp_path):
    path = run_of(tmp_path / "run")
    (path / "plan.json").write_text(json.dumps({"task": "digits-mlp", "rules": rules}))
    with sapflow.open_run(path) as run:
        page = run_page(run)
    assert "hunter2" not in page
    assert said in page


def test_a_large_run_is_small_enough_to_send(tmp_path):
    with sapflow.open_run(large_run(tmp_path / "run", envs=16, epochs=100)) as run:
        page = checked(run_page(run))
    assert len(page.encode()) <= 3_000_000
    parsed = Parsed(page)
    assert len([each for each in parsed.find("title") if str(each["text"]).startswith("Ratio over time")]) == 16


def test_several_runs_are_compared_on_one_axis(trained, tmp_path):
    for name in ("new-1", "new-2", "old-1", "old-2"):
        shutil.copytree(trained, tmp_path / name)
    output = tmp_path / "report.html"
    done = finish_forked(
        [
            "report",
            *(str(tmp_path / name) for name in ("new-1", "new-2", "old-1", "old-2")),
            "-o",
            str(output),
        ],
        HERE,
    )
    assert done.returncode == 0, done.stderr
    page = Parsed(checked(output.read_text(encoding="utf-8")))
    assert page.find("h1")[0]["text"] == "4 runs compared · gradient flow"
    titles = [each["text"] for each in page.find("title") if "svg" in each["inside"]]
    assert titles == [
        "Validation accuracy", "Validation loss", "Median ratio of the measured seeds",
        "Training seeds measured and not flagged", "What became of the seeds",
    ]  # fmt: skip
    text = str(page.find("main")[0]["text"])
    assert "4 runs of digits-mlp in 2 groups: new with 2, old with 2." in text
    assert "the intervals overlap" in text
    assert "Training seeds measured and not flagged, at the lowest: new " in text
    assert "new (n = 2)" in " ".join(str(each["text"]) for each in page.find("text"))


def test_groups_are_what_lies_together_and_is_numbered(tmp_path):
    def paths(*names):
        return [tmp_path / name for name in names]

    assert groups_of(paths("a-1", "a-2", "b-1")) == {"a": paths("a-1", "a-2"), "b-1": paths("b-1")}
    assert groups_of(paths("x/1", "x/2", "y/1", "y/2")) == {"x": paths("x/1", "x/2"), "y": paths("y/1", "y/2")}
    assert set(groups_of(paths("x/a-1", "x/a-2", "y/a-1", "y/a-2"))) == {"x/a", "y/a"}
    alike = paths("h/runs/a-1", "i/runs/a-1")
    assert groups_of(alike) == {"h/runs/a-1": alike[:1], "i/runs/a-1": alike[1:]}
    beside = paths("a-1", "a-1-2", "a-1-3")  # as runs are named that find their name taken
    assert groups_of(beside) == {"a-1": beside}
    named = [f"A={tmp_path}/1,{tmp_path}/2", f"B={tmp_path}/3", f"A={tmp_path}/4"]
    assert groups_of([], named) == {"A": paths("1", "2", "4"), "B": paths("3")}
    with pytest.raises(InputError, match="more than once"):
        groups_of(paths("a-1", "a-1"))
    for bad in ("A", "=x", "A=", "A=x,,y"):
        with pytest.raises(InputError, match="write NAME=RUN"):
            groups_of([], [bad])


def test_nothing_is_overwritten_unless_it_is_asked_for(trained, tmp_path):
    output = tmp_path / "report.html"
    command = ["report", str(trained), "-o"]
    output.write_text("mine")
    refused(finish_forked([*command, str(output)], HERE), str(output), "--force")
    assert output.read_text() == "mine"
    refused(finish_forked([*command, "/dev/null", "--force"], HERE), "/dev/null is no plain file")
    assert Path("/dev/null").is_char_device()
    done, printed = finish_forked([*command, str(output), "--force"], HERE), finish_forked([*command, "-"], HERE)
    assert done.returncode == 0, done.stderr
    assert printed.stdout == output.read_text(encoding="utf-8")  # and the same run gives the same page
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
def test_a_browser_shows_the_page_and_asks_for_nothing(whole_page, tmp_path):
    (tmp_path / "page.html").write_text(whole_page, encoding="utf-8")
    done = subprocess.run(
        ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile",
         "--window-size=390,844", "--enable-logging=stderr", "--dump-dom", f"file://{tmp_path}/page.html"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0
    assert len(Parsed(done.stdout).find("svg", role="img")) == 8
    assert "CONSOLE" not in done.stderr  # where it would say what the policy has refused
