"""evaluate(): the same episodes whoever plays them, and what is said of their returns."""

import random

import gymnasium as gym
import numpy as np
import pytest
from collecting_helpers import Drawing, Remembering, Uneven, Wander, brightest, lean
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st

from gym_replay import (
    ConfigMismatchError,
    EmptyBufferError,
    Evaluation,
    FieldError,
    MakeEnvError,
    ReferenceReturns,
    ReplayBuffer,
    collect,
    evaluate,
    measure_reference,
)


def same(one, other):
    return one.returns.tobytes() == other.returns.tobytes() and one.lengths.tolist() == other.lengths.tolist()


class TwoGoals(gym.Env):
    """Rewards of two values, and episodes of one to four steps."""

    observation_space = spaces.Box(0, 9, (1,), np.float32)
    action_space = spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = int(self.np_random.integers(1, 5))
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.left -= 1
        return np.zeros(1, np.float32), np.array([0.1 * action, self.left]), self.left == 0, False, {}


# --- which episodes there are ---


@pytest.mark.parametrize("policy", ["random", brightest, Drawing, Remembering])
@pytest.mark.parametrize("making", [{"num_envs": 3}, {"num_envs": 2, "vectorization": "async"}, {"num_envs": 30}])
def test_the_same_episodes_whoever_plays_them(policy, making):
    def made():
        return policy() if isinstance(policy, type) else policy

    one = evaluate(made(), Wander, episodes=11, seed=5)
    assert same(one, evaluate(made(), Wander, episodes=11, seed=5, **making))
    assert len(set(one.lengths.tolist())) > 2
    assert not same(one, evaluate(made(), Wander, episodes=11, seed=6))


def test_fewer_episodes_are_the_first_of_more():
    more = evaluate("random", Uneven, episodes=20, num_envs=4)
    less = evaluate("random", Uneven, episodes=7, num_envs=3)
    assert same(less, Evaluation(more.returns[:7], more.lengths[:7]))


def test_recorded_episodes_are_those_of_collect(tmp_path):
    plain = evaluate(lean, "CartPole-v1", episodes=6, seed=2)
    recorded = evaluate(lean, "CartPole-v1", episodes=6, seed=2, num_envs=3, folder=tmp_path / "a", progress=False)
    assert same(plain, recorded)
    with collect("CartPole-v1", tmp_path / "b", policy=lean, episodes=9, seed=2, progress=False) as buffer:
        assert Evaluation.of(buffer).returns[:6].tolist() == plain.returns.tolist()
    # What is there is not played again, and more than was asked for does no harm.
    assert same(plain, evaluate(lean, "CartPole-v1", episodes=6, seed=2, folder=tmp_path / "b", progress=False))
    with pytest.raises(ConfigMismatchError, match="seed"):
        evaluate(lean, "CartPole-v1", episodes=6, seed=3, folder=tmp_path / "b", progress=False)
    done = evaluate(lean, "CartPole-v1", episodes=6, seed=3, folder=tmp_path / "b", progress=False, overwrite=True)
    assert same(done, evaluate(lean, "CartPole-v1", episodes=6, seed=3))


def test_returns_of_fractions_are_the_recorded_ones_to_the_last_bit(tmp_path):
    plain = evaluate("random", "Pendulum-v1", episodes=3, seed=1, max_episode_steps=60)
    for number, num_envs in enumerate((1, 2)):
        found = evaluate(
            "random",
            "Pendulum-v1",
            episodes=3,
            seed=1,
            num_envs=num_envs,
            max_episode_steps=60,
            folder=tmp_path / str(number),
            progress=False,
        )
        assert same(plain, found)


def test_a_model_with_predict_is_called_as_collect_calls_it():
    class Model:
        action_space = spaces.Discrete(2)

        def predict(self, observation, state=None, episode_start=None, deterministic=False):
            return lean(observation) if deterministic else np.int64(random.random() < 0.5), state

    assert same(evaluate(Model(), "CartPole-v1", episodes=3), evaluate(lean, "CartPole-v1", episodes=3))
    drawn = evaluate(Model(), "CartPole-v1", episodes=5, deterministic=False)
    assert same(drawn, evaluate(Model(), "CartPole-v1", episodes=5, deterministic=False, num_envs=2))


@pytest.mark.parametrize("num_envs", [1, 3])
def test_rewards_of_several_values(tmp_path, num_envs):
    found = evaluate("random", TwoGoals, episodes=8, seed=1, num_envs=num_envs)
    assert found.returns.shape == (8, 2)
    assert found.mean.shape == found.std.shape == found.median.shape == found.interval()[0].shape == (2,)
    assert found.returns[:, 1].tolist() == [length * (length - 1) / 2 for length in found.lengths]
    assert same(found, evaluate("random", TwoGoals, episodes=8, seed=1))
    assert same(found, evaluate("random", TwoGoals, episodes=8, seed=1, folder=tmp_path, progress=False))
    assert "return [" in repr(found)
    with pytest.raises(FieldError, match="weigh the values"):
        found.normalized_score(ReferenceReturns(0, 1))


@pytest.mark.parametrize(
    ("arguments", "error", "what"),
    [
        ({"episodes": 0}, FieldError, "episodes: expected a positive integer"),
        ({"seed": -1}, FieldError, "seed"),
        ({"num_envs": 0}, FieldError, "num_envs"),
        ({"num_envs": 2, "vectorization": "native"}, FieldError, "would depend on num_envs"),
        ({"overwrite": True}, FieldError, "goes with a folder"),
        ({"episode": 3}, TypeError, "did you mean 'episodes'"),
        ({"env": gym.make("CartPole-v1")}, TypeError, "pass a function that makes it"),
        ({"policy": "best"}, FieldError, "'module:name'"),
    ],
)
def test_wrong_arguments(arguments, error, what):
    with pytest.raises(error, match=what):
        evaluate(**{"policy": "random", "env": "CartPole-v1", **arguments})


def test_what_the_policy_raises_comes_through_and_the_environment_is_closed():
    closed = []

    class Closing(Wander):
        def close(self):
            closed.append(self)

    def fail(observation):
        raise RuntimeError("no idea")

    with pytest.raises(RuntimeError, match="no idea"):
        evaluate(fail, Closing, episodes=2)
    assert len(closed) == 1


# --- what is said of them ---


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=30), st.floats(0.5, 0.99))
def test_an_interval_lies_around_the_mean(returns, confidence):
    found = Evaluation(np.array(returns), np.ones(len(returns)))
    lower, upper = found.interval(confidence)
    rounding = 1e-12 * max(map(abs, returns))  # of the mean of equal numbers
    assert min(returns) - rounding <= lower <= upper <= max(returns) + rounding
    assert found.interval(confidence) == (lower, upper)
    wider = found.interval(0.995)
    assert wider[0] <= lower + rounding
    assert upper <= wider[1] + rounding


def test_an_interval_covers_the_true_mean_as_often_as_it_says():
    generator = np.random.default_rng(0)
    found = [Evaluation(generator.exponential(3.0, 40), np.ones(40)).interval(0.9) for _ in range(100)]
    assert 80 <= sum(lower < 3.0 < upper for lower, upper in found) <= 97


def test_one_episode_has_no_interval():
    found = Evaluation(np.array([2.5]), np.array([3]))
    assert np.isnan(found.interval()).all()
    assert repr(found) == "Evaluation(1 episode: return 2.5, length 3)"


def test_what_cannot_be_evaluated(tmp_path):
    with ReplayBuffer(tmp_path, fields={"reward": "float64"}) as buffer, pytest.raises(EmptyBufferError):
        Evaluation.of(buffer)
    with pytest.raises(FieldError, match="a return and a length"):
        Evaluation(np.zeros(3), np.zeros(2))
    for confidence in (0, 1, True, "0.9"):
        with pytest.raises(FieldError, match="between 0 and 1"):
            Evaluation(np.zeros(3), np.zeros(3)).interval(confidence)


def test_nobody_changes_an_evaluation():
    returns = np.array([1.0, 2.0])
    found = Evaluation(returns, np.array([1, 2]))
    returns[0] = 9.0
    assert found.returns.tolist() == [1.0, 2.0]
    with pytest.raises(ValueError, match="read-only"):
        found.returns[0] = 9.0
    with pytest.raises(AttributeError):
        found.lengths = returns


# --- reference returns ---


def test_reference_returns_are_measured_in_the_recorded_environment(tmp_path):
    env_kwargs = {"max_episode_steps": 40}
    with collect("CartPole-v1", tmp_path, episodes=2, progress=False, **env_kwargs) as buffer:
        found = measure_reference(buffer, expert=lean, episodes=6, seed=4, num_envs=2)
        assert found.random == evaluate("random", "CartPole-v1", episodes=6, seed=4).mean
        assert found.expert == evaluate(lean, "CartPole-v1", episodes=6, seed=4, **env_kwargs).mean == 40
        buffer.set_reference_returns(found)
        assert Evaluation.of(buffer).normalized_score(buffer) < 100
        assert measure_reference(buffer, random=3.0) == ReferenceReturns(3.0, 40.0)
        assert measure_reference(buffer, random=3.0, expert=50) == ReferenceReturns(3.0, 50.0)
        longer = measure_reference(buffer, random=0.0, expert=lean, episodes=2, env="CartPole-v1")
        assert longer.expert > 40


def test_reference_returns_of_what_cannot_be_made_or_has_several_rewards(tmp_path):
    with collect(TwoGoals, tmp_path, episodes=2, progress=False) as buffer:
        with pytest.raises(MakeEnvError):
            measure_reference(buffer)
        with pytest.raises(FieldError, match=r"\(2,\) values"):
            measure_reference(buffer, env=TwoGoals, episodes=2)
