"""Growth as a Gymnasium environment: an agent decides, epoch by epoch, what germinates, moves on, and is pruned."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sapflow.control.actions import SlotActions
from sapflow.control.controller import EpochOutcome
from sapflow.control.functions import check_functions, registered_functions
from sapflow.control.life_cycle import GrowthPlan, LifeCycle
from sapflow.errors import BlueprintError, InputError, MissingExtraError
from sapflow.growth.blueprints import Blueprint, blueprint_for, blueprints_for
from sapflow.growth.host import slots_of
from sapflow.growth.lifecycle import ALL_GATES, Gate
from sapflow.growth.randomness import RandomState, single_threaded
from sapflow.growth.slot import SeedSlot
from sapflow.health.rules import Rule
from sapflow.telemetry.events import RunCompleted, RunStarted
from sapflow.telemetry.keeping import Keeping
from sapflow.telemetry.stream import EventStream
from sapflow.training.env import Env, EnvPlan
from sapflow.training.gym_choices import Choice, Choices, Mask
from sapflow.training.gym_view import feature_names, grown_parameters, observation
from sapflow.training.tasks import task_named

try:
    import gymnasium
    from gymnasium import spaces
    from gymnasium.envs.registration import register
    from gymnasium.error import ResetNeeded
except ModuleNotFoundError as error:
    raise MissingExtraError("the Gymnasium environment", "gym") from error

ID = "sapflow/Growth-v0"
UNKEPT = "growth"

Observation = NDArray[np.float32]
Action = NDArray[np.int64]


class Agent(LifeCycle):
    """The seam's other side: it only lets embargoes run, since what is decided comes from outside, between epochs."""

    def decide(self, outcome: EpochOutcome, actions: SlotActions) -> None:
        """Let time pass."""
        self.outcome = outcome
        for slot in actions.slots.values():
            slot.gates = self.gates
            self.rest(outcome.epoch, slot, actions)


class GrowthEnv(gymnasium.Env[Observation, Action]):
    """One episode is one host's training from its initial weights, one step one epoch of it.

    An action has an element for each slot, see `Choice`. What is legal now is in `info["action_mask"]`, as
    `action_space.sample(mask=…)` takes it, and in `action_masks()`, as sb3-contrib's MaskablePPO asks for it. What is
    not legal is not done: the slot waits, and `info["refused"]` says so. The observation is `gym_view.observation`.

    The reward is the change of the validation accuracy, in percentage points, minus `parameter_cost` for each time that
    the host's own number of parameters has been added to what it sees. Both start at 0, so the rewards of an episode
    add up to its last accuracy minus the cost of what has grown.

    Args:
        task: by name, as for `sapflow train`; `data_dir` for tasks that read files.
        data_dir: what the task reads.
        epochs: of an episode.
        blueprints: that may germinate, by name; by default all healthy ones that fit a slot of the task's host.
        parameter_cost: points of accuracy that the size of the host is worth, grown anew.
        gates: that stand for the agent, too; the others are open.
        rules: that act beside the agent; none by default. Functions that they call are those of installed packages.
        run_dir: where telemetry is kept for Sanctum, with an env for each episode; None keeps nothing.

    Raises:
        InputError: the task, a blueprint or a function is not known, or a number makes no sense.
    """

    def __init__(
        self,
        task: str = "digits-mlp",
        *,
        data_dir: str = "",
        epochs: int = 30,
        blueprints: Sequence[str] | None = None,
        parameter_cost: float = 1.0,
        gates: frozenset[Gate] = ALL_GATES,
        rules: Iterable[Rule] = (),
        run_dir: str | Path | None = None,
    ) -> None:
        if epochs < 1:
            raise InputError(f"epochs={epochs}: an episode needs at least 1 epoch")
        if not 0 <= parameter_cost < float("inf"):
            raise InputError(f"parameter_cost={parameter_cost}: choose a finite number from 0")
        self.epochs = epochs
        self.parameter_cost = parameter_cost
        self._task = task_named(task, data_dir)
        self._gates = gates
        self._rules = tuple(rules)
        self._functions = registered_functions(self._rules)
        check_functions(self._rules, self._functions)
        self._episodes = 0
        self._env: Env | None = None
        with RandomState.capture().replayed():  # a host is made just to ask for its slots
            slots = slots_of(self._task.make_host())
        pool = _pool(slots, blueprints)
        self.blueprint_ids = tuple(one.blueprint_id for one in pool)
        self.feature_names = feature_names(list(slots), self.blueprint_ids)
        self._choices = Choices(pool, list(slots.values()))
        self.action_space = spaces.MultiDiscrete([Choice.GERMINATE + len(pool)] * len(slots))
        self.observation_space = spaces.Box(-1.0, 1.0, (len(self.feature_names),), np.float32)
        self._closed = False
        self._keeping = Keeping(None if run_dir is None else Path(run_dir), UNKEPT)
        self._keeping.run.emit(RunStarted(task=self._task.name, envs=0, epochs=epochs, token=self._keeping.token))

    @property
    def run_dir(self) -> Path | None:
        """Where telemetry is kept, if it is."""
        return self._keeping.run_dir

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """A new host, by a random seed that `seed` determines; see `gymnasium.Env.reset`."""
        super().reset(seed=seed)
        self._leave_episode()
        rng_seed = int(self.np_random.integers(2**63))
        stream = EventStream(self._keeping.run.sink, self._keeping.run.run_id, self._episodes)
        self._episodes += 1
        self._agent = Agent(GrowthPlan(), rng_seed, gates=self._gates)
        plan = EnvPlan(
            env_id=0, epochs=self.epochs, rng_seed=rng_seed, blending_epochs=self._agent.plan.blending_epochs
        )
        self._env = Env(self._task, plan, self._agent, stream, rules=self._rules, functions=self._functions)
        self._host_params = sum(parameter.numel() for parameter in self._env.host.parameters())
        with single_threaded():
            self._env.start()
        return self._observe(0.0), self._info({})

    def step(self, action: Action) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Carry out what was chosen, then train and measure one epoch; see `gymnasium.Env.step`.

        The episode terminates with its last epoch, or when a rule stops it; nothing truncates it.
        """
        env = self._running
        accuracy, grown = env.accuracy, grown_parameters(env.slots.values())
        with single_threaded():
            refused = self._carry_out(action)
            env.run_epoch()
        cost = self.parameter_cost * (grown_parameters(env.slots.values()) - grown) / self._host_params
        over = env.epoch >= self.epochs
        if over and not env.stopped:
            env.complete()
        reward = env.accuracy - accuracy - cost
        return self._observe(accuracy), reward, over or env.stopped, False, self._info(refused)

    def action_masks(self) -> NDArray[np.bool_]:
        """What is legal now, for all slots one after the other: shape (sum of `action_space.nvec`,)."""
        return np.concatenate(self._masks()).astype(bool)

    def close(self) -> None:
        """Write what is left of the telemetry; again: nothing."""
        if not self._closed:
            self._closed = True
            self._leave_episode()
            self._keeping.run.emit(RunCompleted(completed_envs=self._episodes))
            self._keeping.close()

    @property
    def _is_running(self) -> bool:
        return self._env is not None and not self._env.stopped and self._env.epoch < self.epochs

    @property
    def _running(self) -> Env:
        if self._env is None or not self._is_running:
            raise ResetNeeded("no episode is running: call reset() first")
        return self._env

    def _leave_episode(self) -> None:
        """An episode that is broken off is over, too: whoever looks at the run is not to wait for more of it."""
        if self._env is not None and self._is_running:
            self._env.complete()

    def _carry_out(self, action: Action) -> dict[str, str]:
        """Do what was chosen and is legal; what was refused, by slot_id, and why."""
        env, refused = self._running, {}
        for slot, choice, mask in zip(env.slots.values(), action, self._masks(), strict=True):
            if not mask[choice]:
                refused[slot.state.slot_id] = "it is not legal now"
                continue
            try:
                self._choices.carry_out(int(choice), env.epoch, slot, env.actions)
            except BlueprintError as error:  # it fits on meta tensors, and breaks on what the host feeds it
                refused[slot.state.slot_id] = str(error)
        return refused

    def _masks(self) -> tuple[Mask, ...]:
        assert self._env is not None
        return tuple(self._choices.mask(slot, last=not self._is_running) for slot in self._env.slots.values())

    def _observe(self, accuracy_before: float) -> Observation:
        assert self._env is not None
        slots = list(self._env.slots.values())
        return observation(self._agent.outcome, accuracy_before, self._host_params, slots, self.blueprint_ids)

    def _info(self, refused: dict[str, str]) -> dict[str, Any]:
        """`telemetry` has a `SeedTelemetry` for each slot, by slot_id."""
        assert self._env is not None
        return {
            "action_mask": self._masks(),
            "refused": refused,
            "accuracy": self._env.accuracy,
            "telemetry": {slot_id: slot.state.telemetry() for slot_id, slot in self._env.slots.items()},
        }


def _pool(slots: Mapping[str, SeedSlot], names: Sequence[str] | None) -> list[Blueprint]:
    """Each blueprint once, in the order of the names, or of the slots that they fit."""
    shapes = {slot.shape for slot in slots.values()}
    if names is None:
        found = [one for shape in sorted(shapes, key=len) for one in blueprints_for(shape)]
    else:
        found = [blueprint_for(name, shape) for name in names for shape in shapes]
    return list({(one.blueprint_id, one.dimensions): one for one in found}.values())


register(id=ID, entry_point=f"{__name__}:{GrowthEnv.__name__}")
