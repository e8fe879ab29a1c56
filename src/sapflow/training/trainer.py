"""A run: its envs trained in turn, epoch by epoch, in one process."""

import logging
import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import msgspec
import torch

import sapflow
from sapflow.control.controllers import controller_named
from sapflow.control.functions import check_functions, registered_functions
from sapflow.control.life_cycle import GrowthPlan
from sapflow.control.notify import Notifier
from sapflow.errors import BlueprintError, InputError
from sapflow.growth.blueprints import blueprint_for, blueprints_for, check_fit
from sapflow.growth.host import slots_of
from sapflow.growth.randomness import RandomState, stream_seed
from sapflow.health.rule_file import RuleFile, parse_rules
from sapflow.health.rules import DEFAULT_RULES
from sapflow.telemetry.events import EnvFailed, RunCompleted, RunResumed, RunStarted
from sapflow.telemetry.inbox import Inbox
from sapflow.telemetry.stream import EventStream, Sink
from sapflow.training.checkpoint import Checkpoints
from sapflow.training.env import Env, EnvPlan
from sapflow.training.tasks import task_named
from sapflow.training.tasks.task import Task

log = logging.getLogger("sapflow.training")

# One thread: the sums of a parallel kernel depend on how many there are, and an env's telemetry must not.
THREADS = 1
MOST = 1_000_000  # envs, and epochs


class Plant(msgspec.Struct, frozen=True):
    """A blueprint that is to grow first in a slot of an env."""

    env_id: int
    slot_id: str
    blueprint_id: str

    @classmethod
    def parse(cls, text: str) -> "Plant":
        """The plant that ENV:SLOT:BLUEPRINT means.

        Raises:
            InputError: the text is not of that form.
        """
        parts = text.split(":")
        if len(parts) != 3 or not parts[0].isdecimal() or not all(parts):
            raise InputError(f"cannot plant {text!r}: write ENV:SLOT:BLUEPRINT, as in 1:mid:sigmoid")
        return cls(int(parts[0]), parts[1], parts[2])


class RunPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What a run is asked to do."""

    task: str = "digits-cnn"
    envs: int = 4
    epochs: int = 30
    rng_seed: int = 0
    plants: tuple[Plant, ...] = ()
    data_dir: str = ""  # what the task reads; empty for those that bring their data
    controller: str = "scheduled"
    rules: str = ""  # the text of a rule file; the default rules where it is empty
    checkpoint_every: int = 1

    def rule_file(self) -> RuleFile:
        """The rules that the envs live by.

        Raises:
            InputError: the text is no rule file.
        """
        return parse_rules(self.rules) if self.rules else RuleFile(rules=DEFAULT_RULES)

    def check(self) -> Task:
        """Everything that can be known to be wrong before anything is made.

        Raises:
            InputError: and what to do about it, in one line.
        """
        task = task_named(self.task, self.data_dir)
        if self.envs < 1:
            raise InputError(f"--envs {self.envs}: a run needs at least 1 env")
        if self.epochs < 1:
            raise InputError(f"--epochs {self.epochs}: a run needs at least 1 epoch")
        if max(self.envs, self.epochs) > MOST:
            raise InputError(f"--envs {self.envs} --epochs {self.epochs}: choose numbers up to {MOST}")
        controller_named(self.controller)
        rules = self.rule_file()
        check_functions(rules.rules, registered_functions(rules.rules))
        if not 0 <= self.checkpoint_every <= MOST:
            raise InputError(f"--checkpoint-every {self.checkpoint_every}: choose a number of epochs, or 0 for never")
        if not 0 <= self.rng_seed < 2**63:
            raise InputError(f"--rng-seed {self.rng_seed}: choose a number from 0 to 2**63 - 1")
        with RandomState.capture().replayed():  # a host is made just to ask for its slots
            slots = slots_of(task.make_host())
        for slot in slots.values():
            blueprints_for(slot.shape)  # whether packages quarrel over a name shows here, not in an env
        for plant in self.plants:
            where = f"--plant {plant.env_id}:{plant.slot_id}:{plant.blueprint_id}"
            if plant.env_id >= self.envs:
                raise InputError(f"{where}: there is no env {plant.env_id}, envs are 0 to {self.envs - 1}")
            if plant.slot_id not in slots:
                raise InputError(f"{where}: {task.name} has no slot {plant.slot_id!r}, only {', '.join(slots)}")
            shape = slots[plant.slot_id].shape
            check_fit(blueprint_for(plant.blueprint_id, shape), shape)
        places = [(plant.env_id, plant.slot_id) for plant in self.plants]
        for place in places:
            if places.count(place) > 1:
                raise InputError(f"--plant: env {place[0]} slot {place[1]!r} is planted more than once")
        return task


def run(
    plan: RunPlan,
    run_id: str,
    sink: Sink,
    on_epoch: Callable[[Env], None] = lambda _env: None,
    *,
    token: str = "",
    checkpoints: Checkpoints | None = None,
    notifier: Notifier | None = None,
    inbox: Inbox | None = None,
    resumed: Mapping[int | None, int] | None = None,
) -> dict[int, Env]:
    """Train all envs to their end and return those that came there, by env_id.

    An env that raises is said to have failed; the others go on.

    Args:
        plan: what to do.
        run_id: names the run in every event.
        sink: where the events go.
        on_epoch: called with an env after each of its epochs.
        token: of the run (see `RunStarted`).
        checkpoints: where the state is kept after each round of epochs.
        notifier: tells people, where rules ask for it.
        inbox: where people ask by hand.
        resumed: go on from the newest checkpoint that can be used, or from the beginning where there is none; the last
            sequence that was kept of each env, and of the run itself under None.

    Raises:
        InputError: the plan cannot be carried out, or a seed of the run cannot be built here; nothing was done.
    """
    task = plan.check()
    torch.set_num_threads(THREADS)
    stream = EventStream(sink, run_id)
    streams = {env_id: EventStream(sink, run_id, env_id) for env_id in range(plan.envs)}
    make = partial(_make_env, plan, task, notifier, inbox)
    done, envs = 0, None
    if resumed is not None and checkpoints is not None:
        done, envs = _restored(make, streams, checkpoints, resumed)
        stream.next_sequence = resumed.get(None, -1) + 1
    if stream.next_sequence:
        stream.emit(RunResumed(from_epoch=done))
    else:
        stream.emit(_started(plan, task, token))
    if envs is None:
        envs = _begun(make, streams)
    elif notifier is not None:
        for env_stream in streams.values():
            notifier.of_env(env_stream).catch_up()
    for epoch in range(done + 1, plan.epochs + 1):
        for env_id, env in list(envs.items()):
            if env.stopped:
                continue
            del envs[env_id]
            with _contained(streams[env_id], epoch):
                env.run_epoch()
                envs[env_id] = env
            on_epoch(env)
        if inbox is not None:
            living = {env_id for env_id, env in envs.items() if not env.stopped}
            inbox.refuse_others(epoch, living, stream, streams)
        if checkpoints is not None:
            checkpoints.write(epoch, {"envs": {env_id: env.state_dict() for env_id, env in envs.items()}})
        if all(env.stopped for env in envs.values()):
            break
    for env in envs.values():
        if not env.stopped:
            env.complete()
    if inbox is not None:
        inbox.refuse_others(plan.epochs, (), stream, streams)
    stream.emit(RunCompleted(completed_envs=len(envs), failed_envs=plan.envs - len(envs)))
    return envs


def _started(plan: RunPlan, task: Task, token: str) -> RunStarted:
    versions = {"sapflow": sapflow.__version__, "torch": str(torch.__version__), "python": platform.python_version()}
    return RunStarted(
        task=task.name, envs=plan.envs, epochs=plan.epochs, rng_seed=plan.rng_seed, versions=versions, token=token
    )


def _begun(make: Callable[[EventStream], Env], streams: Mapping[int, EventStream]) -> dict[int, Env]:
    """Every env at its beginning."""
    envs: dict[int, Env] = {}
    for env_id, stream in streams.items():
        with _contained(stream, epoch=0):
            env = make(stream)
            env.start()
            envs[env_id] = env
    return envs


def _restored(
    make: Callable[[EventStream], Env],
    streams: Mapping[int, EventStream],
    checkpoints: Checkpoints,
    kept: Mapping[int | None, int],
) -> tuple[int, dict[int, Env] | None]:
    """The envs as the newest checkpoint has them that can be used, and after which epoch; None where there is none.

    Raises:
        BlueprintError: a seed's blueprint is not known here.
    """
    for epoch, state in checkpoints.newest_first():
        try:
            envs = {env_id: make(streams[env_id]) for env_id in state["envs"]}
            for env_id, env in envs.items():
                env.load_state_dict(state["envs"][env_id])
                if streams[env_id].next_sequence > kept.get(env_id, -1) + 1:
                    raise ValueError("the journal lacks what was said before it")
        except BlueprintError as error:  # begun anew, or from before that seed, it would be another run
            raise BlueprintError(f"the run has a seed with which it cannot go on here: {error}") from error
        except Exception as error:  # it may be a stranger's
            for stream in streams.values():
                stream.next_sequence = 0
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            log.warning("the checkpoint of epoch %d does not fit this run (%s); an older one may", epoch, reason)
        else:
            for env_id in streams.keys() - envs.keys():  # they have failed, and said all that they had to say
                streams[env_id].next_sequence = kept.get(env_id, -1) + 1
            return epoch, envs
    return 0, None


@contextmanager
def _contained(stream: EventStream, epoch: int) -> Iterator[None]:
    """An env's failure is its own: it is logged and said, and the others go on."""
    try:
        yield
    except Exception as error:
        log.exception("env %s failed in epoch %d", stream.env_id, epoch)
        stream.emit(EnvFailed(epoch=epoch, error=f"{type(error).__name__}: {error}"))


def _make_env(plan: RunPlan, task: Task, notifier: Notifier | None, inbox: Inbox | None, stream: EventStream) -> Env:
    env_id, growth, rules = stream.env_id, GrowthPlan(), plan.rule_file()
    assert env_id is not None
    controller = controller_named(plan.controller)(
        growth,
        stream_seed(plan.rng_seed, "env", env_id, "controller"),
        plants={plant.slot_id: plant.blueprint_id for plant in plan.plants if plant.env_id == env_id},
    )
    env_plan = EnvPlan(
        env_id=env_id, epochs=plan.epochs, rng_seed=plan.rng_seed, blending_epochs=growth.blending_epochs
    )
    return Env(
        task,
        env_plan,
        controller,
        stream,
        rules=rules.rules,
        decide_every=rules.decide_every,
        functions=registered_functions(rules.rules),
        notifier=notifier.of_env(stream) if notifier is not None else None,
        inbox=inbox,
    )
