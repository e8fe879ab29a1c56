"""Growth as a Gymnasium environment: what its users' libraries ask of it, and what its numbers mean."""

import sys
from importlib.metadata import EntryPoint
from itertools import pairwise

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

import journals
from sapflow.control import functions
from sapflow.errors import InputError
from sapflow.growth.blueprints import blueprint, catalogue
from sapflow.growth.lifecycle import Gate
from sapflow.health.rules import Condition, Rule
from sapflow.telemetry.events import EnvCompleted, SeedGerminated, SeedPruned
from sapflow.telemetry.source import Source
from sapflow.telemetry.vocabulary import SeedStage
from sapflow.training import gym_env
from sapflow.training.gym_choices import Choice
from sapflow.training.gym_env import GrowthEnv
from test_controllers import Picky

WAIT, ADVANCE, PRUNE, HOLD, RESUME, GERMINATE = Choice
CALLING = Rule(name="bell", when=Condition.RATIO_ABOVE, level=0.0, for_epochs=1, actions=("call:ring",))


def made(**options):
    return gymnasium.make(gym_env.ID, disable_env_checker=True, **options).unwrapped


@pytest.fixture
def env(request):
    env = GrowthEnv(epochs=4, **getattr(request, "param", {}))
    yield env
    env.close()


def waiting(env):
    return np.full(len(env.action_space.nvec), WAIT)


def all_do(env, *choices):
    """Carries out each choice in every slot, an epoch each; returns the last step."""
    for choice in choices:
        last = env.step(np.full(len(env.action_space.nvec), choice))
    return last


def seen(env, observation, name):
    """The feature of that name, for every slot that has one."""
    return [float(v) for n, v in zip(env.feature_names, observation, strict=True) if n.rpartition(": ")[2] == name]


def test_gymnasium_finds_nothing_wrong():
    env = made(epochs=2)
    check_env(env, skip_render_check=True)
    env.close()


def test_the_same_seed_gives_the_same_episode_and_another_one_another():
    def episode(seed):
        env = made(epochs=2)
        observation, info = env.reset(seed=seed)
        env.action_space.seed(seed)
        observations, rewards = [observation], []
        for _ in range(2):
            action = env.action_space.sample(mask=info["action_mask"])
            observation, reward, *_, info = env.step(action)
            observations.append(observation)
            rewards.append(reward)
        env.close()
        return np.stack(observations), rewards

    first, second, other = episode(1), episode(1), episode(2)
    assert np.array_equal(first[0], second[0])
    assert first[1] == second[1]
    assert first[1] != other[1]


def test_masked_random_episodes_stay_in_the_spaces_and_nothing_is_refused(env):
    for episode in range(2):
        env.action_space.seed(episode)
        _, info = env.reset(seed=episode)
        terminated = False
        while not terminated:
            assert np.array_equal(env.action_masks(), np.concatenate(info["action_mask"]).astype(bool))
            assert env.action_masks().shape == (sum(env.action_space.nvec),)
            observation, reward, terminated, truncated, info = env.step(
                env.action_space.sample(mask=info["action_mask"])
            )
            assert observation in env.observation_space
            assert np.isfinite(reward)
            assert info["refused"] == {}
            assert not truncated


def test_rewards_add_up_to_accuracy_minus_the_cost_of_what_has_grown():
    env = GrowthEnv(epochs=6, parameter_cost=5.0, gates=frozenset({Gate.NO_COST}), blueprints=["norm"])
    env.reset(seed=0)
    rewards = [env.step(waiting(env) + choice)[1] for choice in (GERMINATE, ADVANCE, WAIT)]
    slots = env._env.slots.values()
    grown = sum(p.numel() for slot in slots for p in slot.seed.parameters())
    host = sum(p.numel() for p in env._env.host.parameters())
    assert grown > 0
    assert sum(rewards) == pytest.approx(env._env.accuracy - 5.0 * grown / host)
    # What is pruned costs nothing any more.
    rewards += [env.step(waiting(env) + PRUNE)[1]]
    assert sum(rewards) == pytest.approx(env._env.accuracy)
    env.close()


def test_what_is_chosen_is_what_happens(tmp_path):
    env = made(epochs=7, blueprints=["norm"], run_dir=tmp_path / "run", gates=frozenset())
    env.reset(seed=3)

    def stages():
        return {slot.state.stage for slot in env._env.slots.values()}

    assert stages() == {SeedStage.DORMANT}
    observation, *_ = all_do(env, GERMINATE)
    assert stages() == {SeedStage.TRAINING}
    assert seen(env, observation, "norm") == [1.0] * 3
    assert seen(env, observation, "measured") == [1.0] * 3
    observation, *_ = all_do(env, HOLD)
    assert seen(env, observation, "paused") == [1.0] * 3
    *_, info = all_do(env, ADVANCE)
    assert stages() == {SeedStage.TRAINING}
    assert set(info["refused"]) == set(env._env.slots)
    all_do(env, RESUME, ADVANCE)
    assert stages() == {SeedStage.BLENDING}
    all_do(env, PRUNE)
    assert stages() == {SeedStage.EMBARGOED}
    *_, terminated, _, info = all_do(env, WAIT)
    assert terminated
    assert all(mask[GERMINATE:].sum() == 0 for mask in info["action_mask"])
    env.close()
    with Source(tmp_path / "run") as source:
        events = [event.payload for event in source.read()]
    assert [type(one) for one in events].count(SeedGerminated) == 3
    assert {one.rule for one in events if isinstance(one, SeedPruned)} == {"the agent"}
    assert sum(isinstance(one, EnvCompleted) for one in events) == 1


def test_episodes_are_envs_of_one_run(tmp_path):
    env = made(epochs=2, run_dir=tmp_path / "run")
    for seed in range(3):
        env.reset(seed=seed)
        env.step(waiting(env))
    env.close()
    env.close()
    with Source(tmp_path / "run") as source:
        events = source.read()
    assert {event.env_id for event in events} == {None, 0, 1, 2}
    ended = [event.env_id for event in events if isinstance(event.payload, EnvCompleted)]
    assert ended == [0, 1, 2]  # also those that were broken off


def test_rules_act_beside_the_agent_and_end_an_episode():
    stop = Rule(name="enough", when=Condition.RATIO_ABOVE, level=0.0, for_epochs=1, actions=("stop",))
    env = GrowthEnv(epochs=5, rules=[stop])
    env.reset(seed=0)
    env.step(waiting(env))
    *_, terminated, truncated, info = env.step(np.array([GERMINATE, WAIT, WAIT]))
    assert terminated
    assert not truncated
    assert all(mask[GERMINATE:].sum() == 0 for mask in info["action_mask"])
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(waiting(env))
    env.close()


def test_rules_call_the_functions_of_installed_packages(monkeypatch):
    called = []
    monkeypatch.setattr(journals, "ring", called.append, raising=False)
    points = [EntryPoint("ring", "journals:ring", "sapflow.functions")]
    monkeypatch.setattr(functions, "entry_points", lambda **_: points)
    env = GrowthEnv(epochs=1, rules=[CALLING])
    env.reset(seed=0)
    all_do(env, GERMINATE)
    assert [alert.rule for alert in called] == ["bell"] * 3
    env.close()


def test_what_breaks_on_what_the_host_feeds_it_is_refused_and_legal_no_more(monkeypatch):
    monkeypatch.setattr(catalogue, "_catalogue", catalogue.Catalogue())
    blueprint("picky", dimensions=1)(lambda shape: Picky(*shape, *shape))
    env = GrowthEnv(epochs=2, blueprints=["picky", "mlp"])
    env.reset(seed=0)
    *_, info = env.step(np.array([GERMINATE, WAIT, WAIT]))
    assert "not on these" in info["refused"]["early"]
    assert [list(mask[GERMINATE:]) for mask in info["action_mask"]] == [[0, 1]] * 3
    env.close()


def test_a_step_before_an_episode_is_refused(env):
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(waiting(env))


def test_a_vectorised_environment_takes_it():
    envs = gymnasium.make_vec(gym_env.ID, num_envs=2, vectorization_mode="sync", epochs=1)
    observations, _ = envs.reset(seed=0)
    assert observations.shape[0] == 2
    _, rewards, terminated, *_ = envs.step(np.full(envs.action_space.shape, WAIT))
    assert rewards.shape == (2,)
    assert terminated.all()
    envs.close()


def test_better_hosts_are_rewarded_over_an_untouched_episode(env):
    env.reset(seed=0)
    accuracies = [all_do(env, WAIT)[-1]["accuracy"] for _ in range(4)]
    assert accuracies[-1] > accuracies[0] > 0
    assert all(0 <= a <= 100 for a in accuracies)
    assert [a != b for a, b in pairwise(accuracies)].count(True) >= 1


def test_torch_is_left_as_it_was(env):
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    env.reset(seed=0)
    all_do(env, GERMINATE)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"epochs": 0}, "epochs=0"),
        ({"parameter_cost": float("nan")}, "parameter_cost=nan"),
        ({"task": "nothing"}, "unknown task"),
        ({"blueprints": ["nothing"]}, "no blueprint 'nothing'"),
        ({"rules": [CALLING]}, "no function is registered as 'ring'"),
    ],
)
def test_bad_input_is_named_and_nothing_is_made(tmp_path, options, said):
    with pytest.raises(InputError, match=said):
        GrowthEnv(**options, run_dir=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_gymnasium_makes_it_by_the_name_of_its_module(monkeypatch):
    monkeypatch.delitem(sys.modules, "sapflow.training.gym_env")
    monkeypatch.delitem(gymnasium.registry, gym_env.ID)
    env = gymnasium.make("sapflow.training.gym_env:sapflow/Growth-v0", epochs=1)
    assert env.reset(seed=0)[0].shape == env.observation_space.shape
    env.close()
