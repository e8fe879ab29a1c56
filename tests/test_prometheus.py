"""Prometheus, from outside: scraped by a real server, judged by promtool, with a dashboard of names that are there."""

import contextlib
import json
import math
import re
import shutil
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from commands import SAPFLOW, finish, refused, started, wait_until
from journals import PATIENCE, finished_run, python
from receivers import free_port
from sanctum_events import RUN_ID, demo_run, seed
from sapflow.errors import ExporterRefusedError, MissingExtraError
from sapflow.exporters import prometheus_rules, registry
from sapflow.exporters.exporter import Setting
from sapflow.exporters.ledger import Ledger, path_of, read
from sapflow.exporters.prometheus import Prometheus
from sapflow.exporters.prometheus_rules import expression, rule_file
from sapflow.exporters.run_identity import RunIdentity
from sapflow.health.conditions import Condition, Finding
from sapflow.health.rule import Rule
from sapflow.health.rule_words import sentence
from sapflow.health.rules import DEFAULT_RULES
from sapflow.telemetry.events import EnvCompleted, EnvStarted, EpochCompleted, TelemetryEvent
from sapflow.telemetry.vocabulary import Fault, Measurement, SeedStage

pytest.importorskip("prometheus_client")
promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
server = pytest.mark.skipif(shutil.which("prometheus") is None, reason="no Prometheus server is installed")

DEMO = demo_run(epochs=12)
DASHBOARD = Path(registry.__file__).with_name("grafana.json")

# A trainer of the demo that lives until its stdin is closed, and then completes the run.
TRAINER = """
import sys
from pathlib import Path
from journals import PATIENCE
from sanctum_events import demo_run
from sapflow.telemetry.journal import Journal
from sapflow.telemetry.run_directory import TrainerLock

with TrainerLock(Path(sys.argv[1])):
    journal = Journal(Path(sys.argv[1]))
    events = demo_run(epochs=12, completed=True)
    for event in events[:-1]:
        journal.emit(event)
    journal.flush(PATIENCE)
    print("there", flush=True)
    sys.stdin.read()
    journal.emit(events[-1])
    journal.close()
"""


def get(url: str, **headers: str) -> str:
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=PATIENCE) as answer:
        return answer.read().decode()


@contextlib.contextmanager
def serving(events=DEMO, **options):
    setting = Setting(
        name="prometheus", run_dir=Path(), run=RunIdentity(RUN_ID), options={"port": 0, "linger": 0.0, **options}
    )
    exporter = registry.open_exporter(setting)
    try:
        exporter.export(events)
        yield f"http://127.0.0.1:{exporter.port}/metrics"
    finally:
        exporter.close()


def samples(text: str) -> dict[tuple[str, frozenset], float]:
    from prometheus_client.parser import text_string_to_metric_families

    return {
        (one.name, frozenset(one.labels.items())): one.value
        for family in text_string_to_metric_families(text)
        for one in family.samples
    }


def value(found: dict, name: str, **labels: str) -> float | None:
    (only,) = [v for (n, ls), v in found.items() if n == name and labels.items() <= dict(ls).items()] or [None]
    return only


# A real server


@contextlib.contextmanager
def prometheus_server(folder: Path, target: int, rules: str):
    port = free_port()
    (folder / "rules.yml").write_text(rules)
    (folder / "prometheus.yml").write_text(
        "global: {scrape_interval: 500ms, evaluation_interval: 500ms}\nrule_files: [rules.yml]\nscrape_configs:\n"
        f"  - {{job_name: sapflow, static_configs: [{{targets: ['127.0.0.1:{target}']}}]}}\n"
    )
    command = [
        "prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data",
        f"--web.listen-address=127.0.0.1:{port}", "--log.level=error",
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            yield f"http://127.0.0.1:{port}/api/v1"
        finally:
            process.kill()


def api(url: str) -> dict:
    with contextlib.suppress(OSError):
        return json.loads(get(url))["data"]
    return {}


def query(base: str, promql: str) -> list[tuple[dict[str, str], float]]:
    found = api(f"{base}/query?{urllib.parse.urlencode({'query': promql})}")
    return [(one["metric"], float(one["value"][1])) for one in found.get("result", [])]


@server
def test_a_real_server_scrapes_a_live_run_and_fires_its_alerts(tmp_path):
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    port = free_port()
    rules = rule_file(DEFAULT_RULES, epoch_seconds=0.5)
    follow = (*SAPFLOW, "follow", str(run_dir), "--export", "prometheus", "--option", f"prometheus.port={port}")
    with python(TRAINER, run_dir) as trainer, prometheus_server(tmp_path, port, rules) as base:
        assert trainer.stdout.readline()
        with started((*follow, "--option", "prometheus.linger=30"), tmp_path) as follower:
            gain = f'sapflow_gradient_gain_ratio{{run="{RUN_ID}",env="3",slot="early",stage="TRAINING"}}'
            wait_until(lambda: query(base, gain) != [], "the gain")
            ((labels, found),) = query(base, gain)
            done = max(
                (one.payload for one in DEMO if isinstance(one.payload, EpochCompleted) and one.env_id == 3),
                key=lambda one: one.epoch,
            )
            assert found == done.seeds[0].grad_ratio
            assert labels["blueprint"] == done.seeds[0].blueprint_id
            assert query(base, "sum(sapflow_passes_total)") == [({}, 4 * done.total_passes)]

            def firing() -> set[tuple[str, str]]:
                alerts = api(f"{base}/alerts").get("alerts", [])
                names = [(one["labels"]["alertname"], one["labels"].get("env", "")) for one in alerts
                         if one["state"] == "firing"]  # fmt: skip
                return set(names)

            expected = {("SapflowAlert", "3"), ("SapflowExplodingSeed", "3"), ("SapflowVanishingSeed", "1")}
            wait_until(lambda: expected <= firing(), f"{expected}")
            trainer.stdin.close()
            assert follower.wait(PATIENCE) == 0  # when the end was scraped, long before it stops lingering
            end = 'last_over_time(sapflow_run_state{state="completed"}[1m])'
            wait_until(lambda: [value for _, value in query(base, end)] == [1.0], "the end")  # taken in, once scraped


# The endpoint


def test_the_names_and_units_are_those_that_promtool_wants(tmp_path):
    with serving() as url:
        text = get(url)
    if shutil.which("promtool"):
        checked = subprocess.run(
            ["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False
        )
        assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")
    for line in text.splitlines():
        if not line.startswith("#"):
            assert line.startswith("sapflow_")


def test_what_is_not_measured_has_no_gain_and_says_so():
    done = EpochCompleted(
        epoch=1,
        epochs=9,
        seeds=(
            seed("early", 0.9),
            seed("mid", 0.0, measurement=Measurement.PROBE_LOST),
            seed("late", math.inf, max_ratio=math.nan),
            seed("none", 0.0, stage=SeedStage.DORMANT),
        ),
    )
    event = TelemetryEvent(run_id="r", env_id=0, sequence=0, time=1.0, payload=done)
    with serving([event]) as url:
        found = samples(get(url))
    assert value(found, "sapflow_gradient_gain_ratio", slot="early") == 0.9
    assert value(found, "sapflow_gradient_measured", slot="early") == 1.0
    assert value(found, "sapflow_gradient_gain_ratio", slot="mid") is None
    assert value(found, "sapflow_gradient_measured", slot="mid") == 0.0
    assert value(found, "sapflow_gradient_gain_ratio", slot="late") == math.inf
    assert math.isnan(value(found, "sapflow_gradient_gain_max_ratio", slot="late"))
    assert value(found, "sapflow_gradient_measured", slot="none") is None
    assert value(found, "sapflow_accuracy_ratio") is None


def test_percent_become_ratios_and_labels_may_hold_anything():
    odd = 'a "b"\\ \n{c}'
    done = EpochCompleted(
        epoch=1, epochs=9, accuracy=87.5, seeds=(seed(odd, 1.0, stage=SeedStage.HOLDING, accuracy_delta=-1.25),)
    )
    with serving([TelemetryEvent(run_id="r", env_id=0, sequence=0, time=1.0, payload=done)]) as url:
        found = samples(get(url))
    assert value(found, "sapflow_accuracy_ratio") == 0.875
    assert value(found, "sapflow_seed_accuracy_delta_ratio", slot=odd) == -0.0125


def test_series_are_bounded_and_what_is_left_out_is_counted():
    with serving(max_seeds=3) as url:
        found = samples(get(url))
    gains = [labels for name, labels in found if name == "sapflow_gradient_measured"]
    assert len(gains) == 3
    alive = sum(one.stage.alive for event in DEMO[-4:] for one in getattr(event.payload, "seeds", ()))
    assert value(found, "sapflow_seeds_left_out") > 0
    assert alive == 0 or value(found, "sapflow_seeds_left_out") + 3 >= alive


def test_envs_are_bounded_too_and_those_that_had_ended_when_another_began_are_one_sum():
    story = []
    for env_id in range(5):
        about = {"run_id": RUN_ID, "env_id": env_id, "time": 1.0}
        began = EnvStarted(host="cnn", host_params=9, slot_ids=("stem",), epochs=1)
        story.append(TelemetryEvent(sequence=0, payload=began, **about))
        if env_id < 4:
            done = EpochCompleted(epoch=1, epochs=1, seeds=(seed("stem", 0.9),), total_passes=10)
            story.append(TelemetryEvent(sequence=1, payload=done, **about))
        if env_id < 2:
            story.append(TelemetryEvent(sequence=2, payload=EnvCompleted(epoch=1), **about))
    with serving(story, max_envs=2) as url:
        found = samples(get(url))
    states = {state: value(found, "sapflow_envs", state=state) for state in ("training", "completed")}
    assert states == {"training": 3.0, "completed": 2.0}
    passes = {dict(labels)["env"]: count for (name, labels), count in found.items() if name == "sapflow_passes_total"}
    assert passes == {"earlier": 20.0, "2": 10.0, "3": 10.0}
    assert value(found, "sapflow_envs_left_out") == 1.0
    assert value(found, "sapflow_gradient_measured", env="0") is None


def test_the_deaths_after_the_last_epoch_are_counted():
    with serving() as url:
        found = samples(get(url))
    assert value(found, "sapflow_seeds_pruned_total", env="1") == 1.0


def test_a_run_that_was_cut_off_is_served_as_such_until_that_was_scraped(tmp_path):
    run_dir = finished_run(tmp_path / "killed", *DEMO)
    options = {"port": 0, "linger": PATIENCE}
    setting = Setting(name="prometheus", run_dir=run_dir, run=RunIdentity(RUN_ID), options=options)
    exporter = registry.open_exporter(setting)
    exporter.export(DEMO)
    url = f"http://127.0.0.1:{exporter.port}/metrics"
    assert value(samples(get(url)), "sapflow_run_state", state="live") == 1.0  # nobody has said that it is over
    closing = threading.Thread(target=exporter.close)
    closing.start()
    found = {}
    while closing.is_alive():  # it waits for a scrape that has the last of it
        with contextlib.suppress(OSError):
            found = samples(get(url))
    states = [value(found, "sapflow_run_state", state=state) for state in ("live", "completed", "cut_off")]
    assert states == [0.0, 0.0, 1.0]


def test_it_does_not_promise_to_linger_for_longer_than_it_may():
    with pytest.raises(ExporterRefusedError, match="between 0 and 100 seconds"), serving(linger=101.0):
        pass


def test_started_again_it_knows_what_it_knew(tmp_path):
    run_dir = finished_run(tmp_path / "run", *DEMO)
    with serving() as url:
        before = samples(get(url))
    half = len(DEMO) // 2
    setting = Setting(
        name="prometheus",
        run_dir=run_dir,
        run=RunIdentity(RUN_ID),
        cursor=half,
        resumed=True,
        options={"port": 0, "linger": 0.0},
    )
    exporter = registry.open_exporter(setting)
    exporter.export(DEMO[half:])
    assert samples(get(f"http://127.0.0.1:{exporter.port}/metrics")) == before
    exporter.close()


def test_only_metrics_are_served_and_only_to_who_has_the_token(monkeypatch):
    monkeypatch.setenv("SAPFLOW_PROMETHEUS_TOKEN", "t0ken")
    with serving(host="0.0.0.0") as url:
        assert "sapflow_run_info" in get(url, Authorization="Bearer t0ken")
        for path, headers, code in [
            ("/metrics", {}, 401),
            ("/metrics", {"Authorization": "Bearer t0ke"}, 401),
            ("/metrics", {"Authorization": "Bearer t0kén"}, 401),
            ("/", {"Authorization": "Bearer t0ken"}, 404),
            ("/../etc/passwd", {"Authorization": "Bearer t0ken"}, 404),
        ]:
            with pytest.raises(urllib.error.HTTPError) as raised:
                get(
                    url.replace("/metrics", path),
                    **{k: v.encode("latin-1").decode("latin-1") for k, v in headers.items()},
                )
            assert raised.value.code == code
            raised.value.close()


def test_the_end_of_a_line_in_a_token_is_no_part_of_it(monkeypatch):
    monkeypatch.setenv("SAPFLOW_PROMETHEUS_TOKEN", "t0ken\n")
    with serving(host="0.0.0.0") as url:
        assert "sapflow_run_info" in get(url, Authorization="Bearer t0ken")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
def test_beyond_loopback_a_token_is_needed(host, monkeypatch):
    monkeypatch.delenv("SAPFLOW_PROMETHEUS_TOKEN", raising=False)
    with pytest.raises(ExporterRefusedError, match="SAPFLOW_PROMETHEUS_TOKEN"), serving(host=host):
        pass


def test_a_port_in_use_is_one_line(tmp_path):
    run_dir = finished_run(tmp_path / "run", *DEMO)
    with serving() as url:
        port = url.split(":")[2].split("/")[0]
        command = (*SAPFLOW, "follow", str(run_dir), "--export", "prometheus", "--option", f"prometheus.port={port}")
        refused(finish(command, tmp_path), f"127.0.0.1:{port}", "in use", "prometheus.port")


def test_it_lingers_for_a_last_scrape_and_no_longer(tmp_path):
    with serving(linger=PATIENCE) as url:
        get(url)
        begun = time.monotonic()
    assert time.monotonic() - begun < PATIENCE / 2


def test_the_last_scrape_is_written_whole_before_the_end(monkeypatch):
    collect, whole = Prometheus.collect, threading.Event()

    def slow(self):
        yield from collect(self)
        time.sleep(0.5)  # as long as many seeds take to be written down
        whole.set()

    monkeypatch.setattr(Prometheus, "collect", slow)
    with serving(linger=PATIENCE) as url:
        scraper = threading.Thread(target=get, args=(url,))
        scraper.start()
    assert whole.is_set()
    scraper.join(PATIENCE)


def test_a_run_that_goes_on_is_served_at_once_where_the_exporter_before_lingers(tmp_path):
    run_dir = finished_run(tmp_path / "killed", *DEMO)
    options = {"port": free_port(), "linger": 100.0}
    follow = (*SAPFLOW, "follow", str(run_dir), "--export", "prometheus")
    more = (part for name, value in options.items() for part in ("--option", f"prometheus.{name}={value}"))
    with started((*follow, *more), tmp_path) as before:
        place = path_of(run_dir, "prometheus")
        wait_until(lambda: (at := read(place)) is not None and at.state == "closing", "its end")
        with Ledger(run_dir, "prometheus") as ledger:
            assert before.wait(PATIENCE) == 0
            setting = Setting(
                name="prometheus", run_dir=run_dir, run=RunIdentity(RUN_ID), cursor=ledger.progress.cursor,
                options={**options, "linger": 0.0},
            )  # fmt: skip
            exporter = registry.open_exporter(setting)
        assert "sapflow_run_info" in get(f"http://127.0.0.1:{exporter.port}/metrics")
        exporter.close()
    assert not list(place.parent.glob("*.wanted"))


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "prometheus_client", None)
    with pytest.raises(MissingExtraError, match=r"sapflow\[prometheus\]"):
        registry.check("prometheus", {})


# Rules


@promtool
def test_rules_are_what_promtool_takes(tmp_path):
    for name, rules in {
        "default": DEFAULT_RULES,
        "none": (),
        "every": tuple(every_condition()),
    }.items():
        path = tmp_path / f"{name}.yml"
        path.write_text(rule_file(rules, 30.0))
        checked = subprocess.run(["promtool", "check", "rules", path], capture_output=True, text=True, check=False)
        assert checked.returncode == 0, checked.stdout + checked.stderr
        assert f"{len(rules) + 4} rules found" in checked.stdout


def every_condition():
    for condition in Condition:
        needs = condition in prometheus_rules.COMPARED
        yield Rule(
            name=f'{condition} "quoted" {{{{ $x }}}} \\', when=condition, for_epochs=3, level=0.5 if needs else None,
            slots=("block[0-9].*", "a.b?[!x]", "plain"), blueprints=("c+c",),
            stages=(SeedStage.TRAINING, SeedStage.HOLDING),
        )  # fmt: skip


SEEDS = {
    "vanishing": seed("s", 0.1),
    "exploding": seed("s", 30.0),
    "healthy": seed("s", 1.0, parameter_liveness=1.0, accuracy_delta=3.0, stage=SeedStage.HOLDING),
    "dead": seed("s", 0.0),
    "lifeless": seed("s", 1.0, parameter_liveness=0.0),
    "non-finite": seed("s", 1.0, non_finite_passes=3, has_exploding=True),
    "overflowed": seed("s", 1.0, non_finite_passes=3),
    "overflowed above the band": seed("s", 3.0, non_finite_passes=1, fault=Fault.EXPLODING),
    "masked": seed("s", 1.0, masked_values=4),
    "unmeasured": seed("s", 0.0, measurement=Measurement.INPUT_DETACHED, has_vanishing=False),
    "germinated": seed("s", 0.0, measurement=Measurement.UNMEASURED, has_vanishing=False, stage=SeedStage.GERMINATED),
    "harmful": seed("s", 1.0, accuracy_delta=-7.0, stage=SeedStage.HOLDING),
    "watched": seed("s", 1.0, accuracy_delta=-7.0, stage=SeedStage.WATCHED),
}
LEVELS = {
    Condition.RATIO_BELOW: 0.5, Condition.RATIO_ABOVE: 2.0, Condition.PEAK_ABOVE: 2.0, Condition.LIVENESS_BELOW: 0.5,
    Condition.ACCURACY_BELOW: -5.0,
}  # fmt: skip


@promtool
def test_prometheus_judges_every_condition_as_sapflow_does(tmp_path):
    """Each seed as Sapflow's own exporter shows it, each rule in promtool's engine: the same alerts, no others."""
    rules = [
        Rule(name=condition.value, when=condition, for_epochs=1, level=LEVELS.get(condition)) for condition in Condition
    ]
    (tmp_path / "rules.yml").write_text(
        "groups:\n  - name: g\n    rules:\n"
        + "".join(f"      - alert: {rule.name}\n        expr: {json.dumps(expression(rule))}\n" for rule in rules)
    )
    series, expected = [], {rule.name: [] for rule in rules}
    for name, one in SEEDS.items():
        done = EpochCompleted(epoch=1, epochs=9, seeds=(one,))
        with serving([TelemetryEvent(run_id=name, env_id=0, sequence=0, time=1.0, payload=done)]) as url:
            series += [
                {"series": line.rpartition(" ")[0], "values": f"{line.rpartition(' ')[2]}x9"}
                for line in get(url).splitlines()
                if not line.startswith("#")
            ]
        for rule in rules:
            if rule.find(one) is Finding.HOLDS:
                expected[rule.name].append(name)
    tests = [
        {"alertname": rule, "eval_time": "5m", "exp_alerts": [{"exp_labels": labels(name)} for name in names]}
        for rule, names in expected.items()
    ]
    (tmp_path / "test.yml").write_text(
        json.dumps(
            {
                "rule_files": ["rules.yml"],
                "tests": [{"interval": "1m", "input_series": series, "alert_rule_test": tests}],
            }
        )
    )
    checked = subprocess.run(
        ["promtool", "test", "rules", tmp_path / "test.yml"], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert sum(map(len, expected.values())) > len(SEEDS)


def labels(name: str) -> dict[str, str]:
    return {"run": name, "env": "0", "slot": "s", "blueprint": SEEDS[name].blueprint_id}


@promtool
def test_a_rule_holds_for_as_many_epochs_and_goes_on_through_a_change_of_stage(tmp_path):
    rule = Rule(name="low", when=Condition.RATIO_BELOW, level=0.5, for_epochs=3)
    (tmp_path / "rules.yml").write_text(rule_file((rule,), epoch_seconds=60.0))
    annotations = {"summary": " of env 0 (): 0.1", "description": sentence(rule)}
    alert = {"exp_labels": {"env": "0", "rule": "low", "severity": "warning"}, "exp_annotations": annotations}
    test = {
        "interval": "1m",
        "input_series": [
            {"series": 'sapflow_gradient_gain_ratio{env="0",stage="TRAINING"}', "values": "0.1 0.1 stale"},
            {"series": 'sapflow_gradient_gain_ratio{env="0",stage="BLENDING"}', "values": "_ _ 0.1 0.1 0.1"},
        ],
        "alert_rule_test": [
            {"alertname": "SapflowLow", "eval_time": "1m", "exp_alerts": []},
            {"alertname": "SapflowLow", "eval_time": "2m", "exp_alerts": [alert]},
        ],
    }
    (tmp_path / "test.yml").write_text(
        json.dumps({"rule_files": ["rules.yml"], "evaluation_interval": "1m", "tests": [test]})
    )
    checked = subprocess.run(
        ["promtool", "test", "rules", tmp_path / "test.yml"], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


@promtool
def test_a_run_that_hangs_and_one_that_was_cut_off_fire_and_one_that_goes_on_does_not(tmp_path):
    """A minute a sample. At 20 three runs are at their ends, and their endpoints gone; one of them is resumed."""
    (tmp_path / "rules.yml").write_text(rule_file((), epoch_seconds=30.0))

    def state(run: str, name: str, values: str) -> dict[str, str]:
        return {"series": f'sapflow_run_state{{run="{run}",state="{name}"}}', "values": values}

    series = [
        {"series": 'sapflow_last_event_timestamp_seconds{run="hung"}', "values": "0x60"},
        {"series": 'sapflow_last_event_timestamp_seconds{run="busy"}', "values": "0+60x60"},
        {"series": 'sapflow_last_event_timestamp_seconds{run="killed"}', "values": "0+60x20 stale"},
        *(state(run, "live", "1x60") for run in ("hung", "busy")),
        state("killed", "live", "1x19 0 stale"),
        state("killed", "cut_off", "0x19 1 stale"),
        state("resumed", "cut_off", "0x19 1 _ 0 0 0"),
        state("done", "completed", "0x19 1 stale"),
        state("done", "cut_off", "0x20 stale"),
    ]
    cut_off = {
        "exp_labels": {"state": "cut_off", "severity": "critical", "run": "killed"},
        "exp_annotations": {
            "summary": "Run killed was cut off",
            "description": "Its trainer was stopped or killed; this is told for 10 minutes.",
        },
    }
    stalled = {
        "exp_labels": {"run": "hung", "severity": "warning"},
        "exp_annotations": {
            "summary": "Run hung has said nothing for 40m 0s",
            "description": "Its trainer is there and hangs, or an epoch takes that long.",
        },
    }
    tests = [
        {"alertname": "SapflowRunCutOff", "eval_time": "19m", "exp_alerts": []},
        {"alertname": "SapflowRunCutOff", "eval_time": "25m", "exp_alerts": [cut_off]},
        {"alertname": "SapflowRunCutOff", "eval_time": "31m", "exp_alerts": []},
        {"alertname": "SapflowRunStalled", "eval_time": "40m", "exp_alerts": [stalled]},
    ]
    (tmp_path / "test.yml").write_text(
        json.dumps(
            {
                "rule_files": ["rules.yml"],
                "evaluation_interval": "1m",
                "tests": [{"interval": "1m", "input_series": series, "alert_rule_test": tests}],
            }
        )
    )
    checked = subprocess.run(
        ["promtool", "test", "rules", tmp_path / "test.yml"], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


@given(st.text("ab.*?[]!^-\\&", max_size=8), st.text("ab.-^\\![]\n", max_size=5))
@example("[b-a]", "a")
@example("[!]", "!")
@example("[]a]", "]")
@example("[!b-a]", "x")
@example("[abc", "[abc")
@settings(max_examples=500)
def test_a_glob_and_its_regular_expression_say_the_same(glob, name):
    from fnmatch import fnmatchcase

    pattern = prometheus_rules._regex(glob).replace(prometheus_rules.NOTHING, "(?!)")  # which only RE2 writes so
    assert bool(re.fullmatch(pattern, name)) == fnmatchcase(name, glob)


@promtool
def test_globs_are_regular_expressions_that_prometheus_takes(tmp_path):
    globs = (
        "*",
        "?",
        "[b-a]",
        "[!b-a]",
        "[!]",
        "[]a]",
        "[^x]",
        "[a\\]",
        "a.b+c(d)|e",
        "[&&]",
        "[a--b]",
        "ü",
        "a b",
        "{1}",
    )
    rules = [Rule(name=f"r{n}", when=Condition.MASKED, for_epochs=1, slots=(glob,)) for n, glob in enumerate(globs)]
    (tmp_path / "rules.yml").write_text(rule_file(rules, 30.0))
    checked = subprocess.run(
        ["promtool", "check", "rules", tmp_path / "rules.yml"], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_the_command_prints_them(tmp_path):
    done = finish((*SAPFLOW, "rules", "prometheus", "--epoch-seconds", "7"), tmp_path)
    assert (done.returncode, done.stdout) == (0, rule_file(DEFAULT_RULES, 7.0))
    refused(finish((*SAPFLOW, "rules", "prometheus", "--epoch-seconds", "0"), tmp_path), "--epoch-seconds")
    refused(finish((*SAPFLOW, "rules", "prometheus", "missing.toml"), tmp_path), "missing.toml")


# The dashboard


def test_the_dashboard_asks_for_nothing_that_is_not_exported():
    dashboard = json.loads(DASHBOARD.read_text())
    with serving() as url:
        text = get(url)
    exported = set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE))
    asked = set(re.findall(r"\bsapflow_\w+", DASHBOARD.read_text()))
    assert asked <= exported
    assert len(asked) > 15
    everything = [one["allValue"] for one in dashboard["templating"]["list"] if one.get("includeAll")]
    assert everything == [".*", ".*"]  # else what it lists, which env "earlier" is not in
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not cells & taken
        taken |= cells
        assert panel["title"]
        assert panel["targets"]


@promtool
def test_the_dashboard_s_queries_are_promql(tmp_path):
    dashboard = json.loads(DASHBOARD.read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    rules = "".join(
        f"      - record: q{number}\n        expr: {json.dumps(query.replace('$__rate_interval', '1m'))}\n"
        for number, query in enumerate(queries)
    )
    (tmp_path / "queries.yml").write_text(f"groups:\n  - name: g\n    rules:\n{rules}")
    checked = subprocess.run(
        ["promtool", "check", "rules", tmp_path / "queries.yml"], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
