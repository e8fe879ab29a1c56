"""Rule files: what stands in one is read whole or refused in one line, explained, and tried on a recorded run."""

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from commands import finish, finish_forked, refused, without
from journals import event, finished_run, run_completed
from sapflow.cli import run
from sapflow.health.conditions import MEASURES, ONLY_AT_EPOCH_ENDS
from sapflow.health.replay import Replay
from sapflow.health.rule_file import MAX_FILE_BYTES, dump_rules, load_rules
from sapflow.health.rule_words import sentence
from sapflow.health.rules import DECIDE_EVERY, DEFAULT_RULES, WATCH_RULES, Action, Condition, Rule
from sapflow.telemetry.events import EpochCompleted, GradientSampled, SeedPruned, SeedTelemetry
from sapflow.telemetry.vocabulary import Fault, Measurement, SeedStage, Severity

RULE = '[[rules]]\nname = "r"\nwhen = "vanishing"\n'
GOOD = RULE + "for_epochs = 2\n"
WHOLE = """
decide_every = 10

[notify]
urls = ["json://localhost/${SAPFLOW_TOKEN}", "${SAPFLOW_URL}"]

[[rules]]
name = "exploding seed"
when = "exploding"
for_epochs = 3
clear_after = 2
severity = "critical"
actions = ["prune", "notify"]

[[rules]]
name = "thin"
when = "ratio_below"
level = 0.3
clear_level = 0.5
for_passes = 20
cool_down = 40
stages = ["TRAINING", "BLENDING"]
slots = ["mid*"]
actions = ["slow_down", "call:mine"]
"""
# What is in the file, and what the one line has to say of it beside the file's name.
BAD = {
    "empty": ("", ["no rules", "[[rules]]"]),
    "no toml": ("rules = [", ["is no TOML"]),
    "no text": (b"\xff\xfe", ["UTF-8"]),
    "too large": ("#" * (MAX_FILE_BYTES + 1), ["64 KiB"]),
    "too deep": ("x = " + "[" * 5_000, ["nested too deeply"]),
    "too many digits": (RULE + "for_epochs = " + "9" * 5_000, ["TOML"]),
    "too many": ("".join(GOOD.replace('"r"', f'"{n}"') for n in range(201)), ["201 rules", "at most 200"]),
    "rules no list": ("rules = 3", ["no rules"]),
    "one table": ('[rules]\nname = "r"', ["no rules", "[[rules]]"]),
    "list of no tables": ("rules = [1]", ["no rules"]),
    "unknown table": (GOOD + "[notfy]\n", ["'notfy'", "did you mean notify?"]),
    "unknown key": (GOOD + "for_epoch = 3", ["rule 'r'", "'for_epoch'", "did you mean for_epochs"]),
    "unknown key, far off": (GOOD + "colour = 3", ["rule 'r'", "'colour'", "use name, when"]),
    "unknown key of notify": (GOOD + "[notify]\nurl = []", ["notify", "'url'", "did you mean urls?"]),
    "no name": ('[[rules]]\nwhen = "dead"\nfor_epochs = 1', ["rule 1", "name is missing"]),
    "no condition": ('[[rules]]\nname = "r"\nfor_epochs = 1', ["rule 'r'", "when is missing"]),
    "name twice": (GOOD * 2, ["'r'", "more than once"]),
    "empty name": (GOOD.replace('"r"', '""'), ["name of a rule"]),
    "long name": (GOOD.replace('"r"', f'"{"r" * 81}"'), ["80 printable"]),
    "name that beeps": (GOOD.replace('"r"', '"\\u0007"'), ["80 printable"]),
    "name of two lines": (GOOD.replace('"r"', '"a\\nb"'), ["80 printable"]),
    "name a number": (GOOD.replace('"r"', "7"), ["rule 1", "name must be a string, not a whole number"]),
    "unknown condition": (GOOD.replace("vanishing", "vanished"), ["'vanished'", "did you mean vanishing?"]),
    "condition, far off": (GOOD.replace("vanishing", "oak"), ["'oak'", "use vanishing, exploding", "ratio_below"]),
    "condition a list": (GOOD.replace('"vanishing"', "[1]"), ["rule 'r'", "when must be a string, not a list"]),
    "neither time": (RULE, ["rule 'r'", "for_epochs or for_passes"]),
    "both times": (GOOD + "for_passes = 3", ["rule 'r'", "for_epochs or for_passes"]),
    "time a string": (RULE + 'for_epochs = "3"', ["rule 'r'", "for_epochs must be a whole number, not a string"]),
    "time a fraction": (RULE + "for_epochs = 3.0", ["for_epochs must be a whole number", "not a number"]),
    "time true": (RULE + "for_epochs = true", ["for_epochs must be a whole number", "bool"]),
    "time zero": (RULE + "for_epochs = 0", ["for_epochs must be a whole number from 1"]),
    "time endless": (RULE + "for_epochs = 10000000000000000000000", ["for_epochs must be"]),
    "negative clear_after": (GOOD + "clear_after = -1", ["clear_after must be a whole number from 1"]),
    "negative cool_down": (GOOD + "cool_down = -1", ["cool_down must be a whole number from 0"]),
    "unknown severity": (GOOD + 'severity = "criticl"', ["severity", "'criticl'", "did you mean critical?"]),
    "unknown stage": (GOOD + 'stages = ["blending"]', ["stages", "'blending'", "did you mean BLENDING"]),
    "stages no list": (GOOD + 'stages = "HOLDING"', ["stages must be a list, not a string"]),
    "glob a number": (GOOD + "slots = [3]", ["slots[0] must be a string, not a whole number"]),
    "long glob": (GOOD + f'slots = ["{"*" * 201}"]', ["rule 'r'", "glob of slots", "200"]),
    "unknown action": (GOOD + 'actions = ["prone"]', ["rule 'r'", "'prone'", "prune, hold, slow_down"]),
    "import path": (GOOD + 'actions = ["call:os:system"]', ["rule 'r'", "'call:os:system'", "call:NAME"]),
    "bad factor": (GOOD + 'actions = ["slow_down:2"]', ["rule 'r'", "'2'", "between 0 and 1"]),
    "action twice": (GOOD + 'actions = ["slow_down:0.5", "slow_down"]', ["'slow_down'", "more than once"]),
    "action a number": (GOOD + "actions = [1]", ["actions[0] must be a string"]),
    "actions no list": (GOOD + 'actions = "prune"', ["actions must be a list, not a string"]),
    "level of a flag": (GOOD + "level = 3", ["rule 'r'", "vanishing compares nothing", "remove level"]),
    "no level": (GOOD.replace("vanishing", "ratio_above"), ["rule 'r'", "ratio_above needs a level"]),
    "level nan": (GOOD.replace("vanishing", "ratio_above") + "level = nan", ["level = nan", "at least 0"]),
    "level infinite": (GOOD.replace("vanishing", "ratio_above") + "level = inf", ["level = inf", "at least 0"]),
    "level of a share": (GOOD.replace("vanishing", "liveness_below") + "level = 2", ["level = 2", "from 0 to 1"]),
    "clear level on the wrong side": (
        GOOD.replace("vanishing", "ratio_below") + "level = 0.5\nclear_level = 0.4",
        ["clear_level = 0.4 must not be below level = 0.5"],
    ),
    "accuracy by passes": (
        RULE.replace("vanishing", "accuracy_below") + "level = 1\nfor_passes = 3",
        ["accuracy_below is known at epoch ends", "for_epochs"],
    ),
    "masked by passes": (RULE.replace("vanishing", "masked") + "for_passes = 3", ["masked is known at epoch ends"]),
    "notify nobody": (GOOD + 'actions = ["notify"]', ["rule 'r'", "notify tells nobody", "[notify]"]),
    "urls no list": (GOOD + '[notify]\nurls = "json://x"', ["notify.urls must be a list, not a string"]),
    "url a number": (GOOD + "[notify]\nurls = [1]", ["notify.urls[0] must be a string"]),
    "url of two lines": (GOOD + '[notify]\nurls = ["a\\nb"]', ["url 1", "printable"]),
    "many urls": (GOOD + f"[notify]\nurls = {['x'] * 21}", ["21 urls", "at most 20"]),
    "notify no table": ("notify = 3\n" + GOOD, ["notify must be a table, not a whole number"]),
    "decide_every without need": ("decide_every = 5\n" + GOOD, ["decide_every", "for_passes", "remove"]),
    "decide_every zero": ("decide_every = 0\n" + RULE + "for_passes = 5", ["decide_every must be", "from 1"]),
    "decide_every a word": ('decide_every = "often"\n' + GOOD, ["decide_every must be a whole number"]),
}  # fmt: skip


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_is_refused_in_one_line_that_names_the_file(tmp_path, capsys, name):
    content, words = BAD[name]
    path = write(tmp_path / "rules.toml", content)
    assert run(["rules", "check", str(path)]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    (line,) = output.err.splitlines()
    assert line.startswith(f"sapflow: {path}: ")
    assert line.isprintable()
    assert len(line) < len(str(path)) + 300
    for word in words:
        assert word in line


def test_a_whole_file_is_read_as_it_stands(tmp_path):
    found = load_rules(write(tmp_path / "rules.toml", WHOLE))
    assert found.rules == (
        Rule(
            name="exploding seed", when=Condition.EXPLODING, for_epochs=3, clear_after=2, severity=Severity.CRITICAL,
            actions=(Action.PRUNE, Action.NOTIFY),
        ),
        Rule(
            name="thin", when=Condition.RATIO_BELOW, level=0.3, clear_level=0.5, for_passes=20, cool_down=40,
            stages=(SeedStage.TRAINING, SeedStage.BLENDING), slots=("mid*",),
            actions=(Action("slow_down:0.1"), Action("call:mine")),
        ),
    )  # fmt: skip
    assert {type(action) for rule in found.rules for action in rule.actions} == {Action}
    assert found.notify == ("json://localhost/${SAPFLOW_TOKEN}", "${SAPFLOW_URL}")
    assert found.decide_every == 10


@pytest.mark.parametrize(
    ("rules", "decide_every"),
    [
        (GOOD, 0),
        (RULE + "for_passes = 7", 7),
        (RULE + "for_passes = 1_000", DECIDE_EVERY),
        ("decide_every = 500\n" + RULE + "for_passes = 7", 500),
    ],
)
def test_decisions_within_an_epoch_are_as_frequent_as_the_rules_ask(tmp_path, rules, decide_every):
    assert load_rules(write(tmp_path / "rules.toml", rules)).decide_every == decide_every


PRINTABLE = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=20)
FACTORS = st.floats(0.01, 0.99).map(lambda factor: f"slow_down:{factor}")
ACTIONS = st.lists(
    st.sampled_from(["prune", "hold", "stop", "call:a", "call:b.c"]) | FACTORS,
    max_size=5, unique_by=lambda text: text if text.startswith("call") else text.partition(":")[0],
)  # fmt: skip


@st.composite
def any_rule(draw, name: str) -> Rule:
    when = draw(st.sampled_from(Condition))
    levels = {}
    if when in MEASURES:
        levels = {"level": draw(st.floats(0.001, 1.0))}
        levels["clear_level"] = draw(st.sampled_from([None, levels["level"]]))
    epochs = when in ONLY_AT_EPOCH_ENDS or draw(st.booleans())
    return Rule(
        name=name, when=when, cool_down=draw(st.integers(0, 9)), severity=draw(st.sampled_from(Severity)),
        clear_after=draw(st.none() | st.integers(1, 9)), actions=tuple(map(Action, draw(ACTIONS))),
        slots=tuple(draw(st.lists(PRINTABLE, max_size=2))), blueprints=tuple(draw(st.lists(PRINTABLE, max_size=2))),
        stages=tuple(draw(st.lists(st.sampled_from(SeedStage), max_size=2))), **levels,
        **{"for_epochs" if epochs else "for_passes": draw(st.integers(1, 10**9))},
    )  # fmt: skip


@given(rules=st.lists(PRINTABLE, min_size=1, max_size=3, unique=True).flatmap(
    lambda names: st.tuples(*(any_rule(name) for name in names))
))  # fmt: skip
def test_every_rule_survives_being_written_and_read_and_is_one_sentence(tmp_path_factory, rules):
    path = tmp_path_factory.getbasetemp() / "written.toml"
    assert load_rules(write(path, dump_rules(rules))).rules == rules
    for rule in rules:
        said = sentence(rule)
        assert repr(rule.name) in said
        assert said.count("\n") == 0
        assert all(word in said for word in map(str, rule.stages))


def test_the_rules_that_are_there_survive_it_too(tmp_path):
    for rules in (DEFAULT_RULES, WATCH_RULES):
        assert load_rules(write(tmp_path / "rules.toml", dump_rules(rules))).rules == rules


def measured(ratio: float, passes: int = 0, **fields) -> SeedTelemetry:
    return SeedTelemetry(
        slot_id="mid", seed_id="mid-1", blueprint_id="sigmoid", stage=SeedStage.TRAINING, grad_ratio=ratio,
        has_exploding=ratio > 2, measurement=Measurement.MEASURED, evidence=f"ratio {ratio:g}", passes=passes, **fields,
    )  # fmt: skip


def epoch(number: int, ratio: float, env: int = 0, passes: int = 0):
    payload = EpochCompleted(epoch=number, epochs=9, seeds=(measured(ratio, passes), SeedTelemetry(slot_id="late")))
    return event(payload, env, sequence=number)


def sampled(number: int, passes: range, ratio: float):
    payload = GradientSampled(
        epoch=number, slot_id="mid", seed_id="mid-1", blueprint_id="sigmoid", pass_index=tuple(passes),
        entering=(2.0,) * len(passes), leaving=(2.0 * ratio,) * len(passes), health=measured(ratio),
    )  # fmt: skip
    return event(payload, sequence=None)


def pruned(number: int, env: int = 0):
    payload = SeedPruned(
        epoch=number, slot_id="mid", seed_id="mid-1", stage=SeedStage.TRAINING, rule="weeds", grad_ratio=1.0
    )
    return event(payload, env, sequence=number)


# Env 0 explodes from epoch 2 to 5 and is pruned in epoch 6; env 1 from 2 to 4, and is well again from 5 on.
STORY = (
    *(epoch(number, 9.0 if number > 1 else 1.0) for number in range(1, 6)),
    pruned(6),
    *(epoch(number, 9.0 if 1 < number < 5 else 1.0, env=1) for number in range(1, 8)),
    run_completed(),
)
# 30 passes an epoch: in epoch 1 the ratio is low in the passes 10 to 29, in epoch 2 in none.
SAMPLES = (
    sampled(1, range(10), 1.0), sampled(1, range(10, 30), 0.1), epoch(1, 0.8, passes=30),
    sampled(2, range(25), 1.0), epoch(2, 1.0, passes=30),
)  # fmt: skip


def replayed(rules: tuple[Rule, ...], decide_every: int, events) -> Replay:
    replay = Replay(rules, decide_every)
    for each in events:
        replay.take(each)
    return replay


def test_a_replay_raises_and_clears_what_the_rules_would_have():
    rule = Rule(name="hot", when=Condition.RATIO_ABOVE, level=8, for_epochs=3, clear_after=2)
    firings = replayed((rule,), 0, STORY).firings
    assert [(f.env_id, f.epoch, f.passes, f.alert.since_epoch, f.alert.value) for f in firings] == [
        (0, 4, None, 2, 9.0), (1, 4, None, 2, 9.0),
    ]  # fmt: skip
    assert [f.end for f in firings] == ["in epoch 6 the run pruned the seed (rule 'weeds')", "would clear in epoch 6"]


def test_rules_for_passes_see_windows_of_samples():
    rule = Rule(name="thin", when=Condition.RATIO_BELOW, level=0.3, for_passes=20, clear_after=10)
    replay = replayed((rule,), 10, SAMPLES)
    (firing,) = replay.firings
    assert (firing.epoch, firing.passes, firing.end) == (1, 30, "would clear in epoch 2")
    assert firing.alert.value == pytest.approx(0.1)
    assert (replay.sampled, replay.passes) == (55, 60)


def test_the_rest_of_an_epoch_is_a_shorter_window():
    def fired(for_passes: int) -> list:
        rule = Rule(name="thin", when=Condition.RATIO_BELOW, level=0.3, for_passes=for_passes)
        return replayed((rule,), 15, (sampled(1, range(20), 0.1), epoch(1, 0.1, passes=20))).firings

    assert [firing.passes for firing in fired(20)] == [20]
    assert fired(21) == []


def test_samples_of_a_seed_whose_ratio_cannot_be_known_are_no_faults():
    detached = SeedTelemetry(
        slot_id="mid", seed_id="mid-1", stage=SeedStage.BLENDING, measurement=Measurement.INPUT_DETACHED
    )
    rules = tuple(Rule(name=when, when=when, for_passes=10) for when in (Condition.NON_FINITE, Condition.UNMEASURED))
    events = (sampled(1, range(10), math.nan), event(EpochCompleted(epoch=1, epochs=1, seeds=(detached,))))
    assert [firing.alert.rule for firing in replayed(rules, 10, events).firings] == ["unmeasured"]


def test_a_side_that_no_gradient_came_to_is_no_nan():
    """As in the step of a discriminator on data, that of a GAN: nothing leaves it."""
    rule = Rule(name="nan", when=Condition.NON_FINITE, for_passes=10)
    one_sided = (sampled(1, range(0, 20, 2), 1.0), sampled(1, range(1, 20, 2), math.nan))

    def fired(non_finite_passes: int) -> list:
        seed = measured(1.0, non_finite_passes=non_finite_passes, fault=Fault.VANISHING)
        return replayed((rule,), 10, (*one_sided, event(EpochCompleted(epoch=1, epochs=1, seeds=(seed,))))).firings

    assert fired(0) == []
    assert len(fired(10)) == 1


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """What the command said, by name, of a directory with good and bad files and two recorded runs."""
    cwd = tmp_path_factory.mktemp("rules")
    write(cwd / "whole.toml", WHOLE)
    write(cwd / "liveness.toml", RULE.replace("vanishing", "liveness_below") + "level = 0.5\nfor_passes = 5")
    write(cwd / "bad.toml", BAD["unknown key"][0])
    write(cwd / "loud.toml", BAD["name that beeps"][0])
    (cwd / "folder").mkdir()
    finished_run(cwd / "run", *STORY)
    finished_run(cwd / "samples", *SAMPLES)
    before = {path: path.read_bytes() for path in cwd.rglob("*") if path.is_file()}
    check = ("rules", "check")
    commands = {
        "explained": (*check, "whole.toml"),
        "tried": (*check, "whole.toml", "--run", "run"),
        "tried by passes": (*check, "whole.toml", "--run", "samples"),
        "not tried": (*check, "liveness.toml", "--run", "samples"),
        "default": ("rules", "default"),
        "bad": (*check, "bad.toml"),
        "loud": (*check, "loud.toml"),
        "missing": (*check, "none.toml"),
        "folder": (*check, "folder"),
        "no run": (*check, "whole.toml", "--run", "none"),
        "nothing": check,
        "unknown": ("rules", "dance"),
    }
    finished = {name: finish_forked(arguments, cwd) for name, arguments in commands.items()}
    finished["without torch"] = finish(without("torch", *commands["tried"]), cwd)
    assert {path: path.read_bytes() for path in cwd.rglob("*") if path.is_file()} == before
    return finished


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("bad", ["bad.toml", "rule 'r'", "'for_epoch'"]),
        ("loud", ["loud.toml", "printable"]),
        ("missing", ["none.toml", "cannot be read"]),
        ("folder", ["folder", "no file"]),
        ("no run", ["none", "no journal"]),
        ("nothing", ["FILE", "sapflow rules check --help"]),
        ("unknown", ["dance", "sapflow rules --help"]),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(done, name, words):
    refused(done[name], *words)


def test_a_file_is_explained_in_a_sentence_a_rule(done):
    assert done["explained"].returncode == 0
    assert done["explained"].stdout.splitlines() == [
        "critical 'exploding seed': when the gradient explodes or is not finite (the policy's flag) for 3 epochs in a "
        "row, say so, then prune and notify; clears after 2 epochs without it.",
        "warning 'thin': when the ratio is below 0.3 for 20 passes in a row (slot mid*, stage TRAINING or BLENDING), "
        "say so, then multiply its learning rate by 0.1 and call mine; clears after 20 passes at 0.5 or more, and is "
        "not raised again for 40 passes.",
        "rules for passes are judged every 10 passes of an epoch, and at its end.",
        "notifications go by json, a variable.",
    ]


def test_a_recorded_run_shows_what_would_have_fired(done):
    lines = done["tried"].stdout.splitlines()[5:]
    assert lines[:2] == [
        "'exploding seed' would have fired in env 0, epoch 4, slot mid, seed mid-1 (sigmoid): exploding for 3 epochs; "
        "ratio 9, asking for prune, notify; in epoch 6 the run pruned the seed (rule 'weeds')",
        "'exploding seed' would have fired in env 1, epoch 4, slot mid, seed mid-1 (sigmoid): exploding for 3 epochs; "
        "ratio 9, asking for prune, notify; would clear in epoch 6",
    ]
    assert lines[2].startswith("alerts: 2, from 1 of 2 rules, in 12 epochs")
    assert lines[3].startswith("rules for passes saw 0 of 0 measured passes")
    assert done["without torch"].stdout == done["tried"].stdout
    assert done["without torch"].returncode == 0


def test_rules_for_passes_say_what_they_saw(done):
    lines = done["tried by passes"].stdout.splitlines()[5:]
    assert "'thin' would have fired in env 0, epoch 1 after pass 30, slot mid" in lines[0]
    assert lines[2].startswith("rules for passes saw 55 of 60 measured passes")
    last = done["not tried"].stdout.splitlines()[-1]
    assert last == "rule 'r' was not tried: samples do not tell of liveness_below within an epoch."


def test_the_default_rules_come_as_a_rule_file(done, tmp_path):
    assert load_rules(write(tmp_path / "default.toml", done["default"].stdout)).rules == DEFAULT_RULES
