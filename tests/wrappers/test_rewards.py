"""The shape of rewards: the first one counts more than any declaration, and what the user says counts most."""

from contextlib import closing

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from wrappers.scripted import Scripted, play

from gym_replay import FieldError, RecordToBuffer, ReplayBuffer, check_buffer, collect
from gym_replay.wrappers.vector import RecordToBuffer as VectorRecorder

PAIR = spaces.Box(-1000, 1000, (2,), np.float32)


class Paired(Scripted):
    """Rewards of two values, declared."""

    reward_space = PAIR

    def __init__(self, length=3, kind=np.array):
        super().__init__(length, reward=lambda env, t: kind([t, -t]))


class Undeclared(Scripted):
    """Rewards of two values in a list, as multi-agent environments return them."""

    def __init__(self, length=3):
        super().__init__(length, reward=lambda env, t: [t, -t])


class Summed(gym.RewardWrapper):
    """A number out of two values; it declares nothing."""

    def reward(self, reward):
        return float(10 * reward[0] + reward[1])


class Declaring(Summed):
    reward_space = spaces.Box(-1000, 1000, (), np.float32)


class Doubled(gym.RewardWrapper):
    """Two values out of a number."""

    reward_space = PAIR

    def reward(self, reward):
        return np.array([reward, -reward])


class Stacked(gym.vector.VectorEnv):
    """Three sub-environments in step, with episodes of two steps and the rewards that are given for each time."""

    metadata = {"autoreset_mode": gym.vector.AutoresetMode.NEXT_STEP}  # noqa: RUF012
    num_envs = 3
    single_observation_space, observation_space = spaces.Box(0, 9, (1,)), spaces.Box(0, 9, (3, 1))
    single_action_space, action_space = spaces.Discrete(2), spaces.MultiDiscrete([2] * 3)

    def __init__(self, rewards, **spaces_of_rewards):
        self.rewards, self.t = rewards, 0
        self.__dict__.update(spaces_of_rewards)

    def _observe(self):
        return np.full((3, 1), self.t, np.float32)

    def reset(self, *, seed=None, options=None):
        self.t = 0
        return self._observe(), {}

    def step(self, actions):
        self.t = (self.t + 1) % 3
        rewards = self.rewards(self.t) if self.t else np.zeros_like(np.asarray(self.rewards(1)))
        return self._observe(), rewards, np.full(3, self.t == 2), np.zeros(3, bool), {}


def stored(folder):
    """The rewards and returns of each episode, as a reader finds them; both files and metadata are sound."""
    assert check_buffer(folder, progress=False).ok
    with ReplayBuffer.from_folder(folder, read_only=True) as buffer:
        for episode in buffer:
            assert len(episode["observation"]) == len(episode) + 1
        return [(episode["reward"].tolist(), np.asarray(episode.meta["episode_return"]).tolist()) for episode in buffer]


PAIRS = [[1, -1], [2, -2], [3, -3]], [6, -6]
NUMBERS = [9, 18, 27], 54

SINGLE = {
    "declared": (Paired, PAIRS),
    "a list, declared": (lambda: Paired(kind=list), PAIRS),
    "a tensor, declared": (lambda: Paired(kind=torch.tensor), PAIRS),
    "an undeclared list": (Undeclared, PAIRS),
    "a wrapper that makes numbers": (lambda: Summed(Paired()), NUMBERS),
    "a wrapper that makes and declares numbers": (lambda: Declaring(Paired()), NUMBERS),
    "a wrapper that makes pairs": (lambda: Doubled(Scripted(3)), PAIRS),
    "a wrapper that makes pairs of pairs": (
        lambda: Doubled(Paired()),
        ([[p, [-x for x in p]] for p in PAIRS[0]], [[6, -6], [-6, 6]]),
    ),
    "one value": (lambda: Scripted(3, reward=lambda env, t: np.array([t])), ([1, 2, 3], 6)),
}


@pytest.mark.parametrize("record_info", [False, True])
@pytest.mark.parametrize("kind", SINGLE)
def test_the_first_reward_decides(tmp_path, kind, record_info):
    make, expected = SINGLE[kind]
    env = RecordToBuffer(make(), tmp_path, record_info=record_info, extra_fields={"mark": ("int", (), -1)})
    env.reset(seed=4)
    env.annotate_step(mark=5)
    for _ in range(3):
        env.step(1)
    play(env)
    env.close()
    assert stored(tmp_path) == [expected] * 2
    assert env.buffer.episode(0)["mark"].tolist() == [5, -1, -1]
    assert env.buffer.episode(0)["action"].tolist() == [1, 1, 1]
    assert env.buffer.episode(0).meta["episode_seed"] == 4
    assert np.isfinite(env.buffer.episode(1)["reward"]).all()


def test_what_is_set_before_the_first_reward_is_kept(tmp_path):
    env = RecordToBuffer(Summed(Paired(2)), tmp_path, meta_fields={"name": "str"})
    env.reset(options={"a": 1})
    env.annotate(name="first")
    uuid = env.buffer.metadata.uuid
    env.step(0)
    env.step(0)
    env.close()
    (episode,) = env.buffer
    assert (episode.meta["name"], episode.meta["episode_options"]) == ("first", '{"a": 1}')
    assert env.buffer.metadata.uuid == uuid
    assert stored(tmp_path) == [([9, 18], 27)]


def test_a_folder_keeps_the_shape_of_its_rewards(tmp_path):
    """A second run with the same declaration, which was wrong, appends; other rewards are refused by name."""
    for _ in range(2):
        env = RecordToBuffer(Summed(Paired()), tmp_path)
        play(env)
        env.close()
    assert stored(tmp_path) == [NUMBERS] * 2
    env = RecordToBuffer(Paired(), tmp_path)
    env.reset()
    with pytest.raises(FieldError, match=r"'reward': expected shape \(\), got \(2,\).*reward_shape=\(2,\)"):
        env.step(0)
    env.close()
    assert stored(tmp_path) == [NUMBERS] * 2


@pytest.mark.parametrize("shape", [2, (2,), [2], np.int64(2)], ids=repr)
def test_what_the_user_says(tmp_path, shape):
    env = RecordToBuffer(Undeclared(), tmp_path, reward_shape=shape)
    assert env.buffer.metadata.fields["reward"].shape == (2,)
    play(env)
    env.close()
    assert stored(tmp_path) == [PAIRS]
    refused = RecordToBuffer(Paired(), tmp_path / "other", reward_shape=())
    refused.reset()
    with pytest.raises(FieldError, match=r"expected shape \(\), got \(2,\)"):
        refused.step(0)
    refused.close()
    assert len(refused.buffer) == 0


@pytest.mark.parametrize("shape", ["2", (2, 0), (-1,), 1.5, (True,), {2}], ids=repr)
def test_what_is_no_shape(tmp_path, shape):
    with pytest.raises(FieldError, match="reward_shape"):
        RecordToBuffer(Scripted(), tmp_path / "a", reward_shape=shape)
    assert not (tmp_path / "a").exists()


def test_the_shape_that_a_folder_has_is_not_changed_by_what_the_user_says(tmp_path):
    play(env := RecordToBuffer(Paired(), tmp_path))
    env.close()
    with pytest.raises(ValueError, match=r"different config.*reward"):
        RecordToBuffer(Paired(), tmp_path, reward_shape=())


def test_a_ring_and_limits_take_the_first_reward_too(tmp_path):
    env = RecordToBuffer(Undeclared(3), tmp_path, circular=True, max_steps=7)
    play(env, 5)
    env.close()
    assert stored(tmp_path) == [PAIRS] * 2


# --- vector environments ---

STACKED = {
    "numbers": (lambda t: np.full(3, 5.0 * t), {}, ()),
    "float32": (lambda t: np.full(3, 5.0 * t, np.float32), {}, ()),
    "a column": (lambda t: np.full((3, 1), 5.0 * t), {}, ()),
    "undeclared pairs": (lambda t: np.full((3, 2), 5.0 * t), {}, (2,)),
    "a space of one": (lambda t: np.full((3, 2), 5.0 * t), {"reward_space": PAIR}, (2,)),
    "a space of all": (lambda t: np.full((3, 2), 5.0 * t), {"reward_space": spaces.Box(-9, 9, (3, 2))}, (2,)),
    "a single space": (lambda t: np.full((3, 2), 5.0 * t), {"single_reward_space": PAIR}, (2,)),
    "a space of one, as long as there are sub-environments": (
        lambda t: np.full((3, 3), 5.0 * t),
        {"reward_space": spaces.Box(-9, 9, (3,))},
        (3,),
    ),
    "wrongly declared": (lambda t: np.full(3, 5.0 * t), {"single_reward_space": PAIR}, ()),
    "lists": (lambda t: [[5.0 * t] * 2] * 3, {}, (2,)),
}


@pytest.mark.parametrize("kind", STACKED)
def test_rewards_of_vector_environments(tmp_path, kind):
    rewards, declared, shape = STACKED[kind]
    envs = VectorRecorder(Stacked(rewards, **declared), tmp_path, record_info=True)
    for _ in range(3):
        envs.reset()
        for _ in range(5):
            envs.step(np.array([0, 1, 0]))
    envs.close()
    # Of each three: an episode of two steps, a reset, and one more.
    assert [(len(e), e["action"].tolist()) for e in envs.buffer][:3] == [(2, [0, 0]), (2, [1, 1]), (2, [0, 0])]
    assert (
        stored(tmp_path)
        == [(np.full((2, *shape), [5, 10] if not shape else [[5], [10]]).tolist(), np.full(shape, 15).tolist())] * 18
    )


@pytest.mark.parametrize("vectorization", ["sync", "async"])
@pytest.mark.parametrize("make", [Paired, Undeclared, lambda: Summed(Paired())], ids=["pairs", "lists", "numbers"])
def test_collect(tmp_path, make, vectorization):
    """The same episodes from one environment and from several, of which some have nothing to play at first."""
    alone = collect(make, tmp_path / "1", episodes=3, progress=False, policy=lambda observation: 1, policy_name="one")
    with collect(
        make,
        tmp_path / "4",
        episodes=3,
        num_envs=4,
        vectorization=vectorization,
        progress=False,
        policy=lambda observations: np.ones(4, int),
        policy_name="one",
    ) as several:
        for buffer in (alone, several):
            assert sorted(int(episode.meta["collect_index"]) for episode in buffer) == [0, 1, 2]
            expected = NUMBERS if make not in (Paired, Undeclared) else PAIRS
            assert stored(buffer.folder) == [expected] * 3
    alone.close()


def test_collect_goes_on_where_rewards_are_not_as_declared(tmp_path):
    for episodes in (2, 5):
        collect(lambda: Summed(Paired()), tmp_path, episodes=episodes, progress=False, policy_name="random").close()
    assert stored(tmp_path) == [NUMBERS] * 5


def test_collect_takes_a_reward_shape(tmp_path):
    with pytest.raises(FieldError, match=r"expected shape \(\)"):
        collect(Paired, tmp_path, episodes=1, progress=False, reward_shape=())
    collect(Paired, tmp_path / "b", episodes=1, progress=False, reward_shape=2).close()
    assert stored(tmp_path / "b") == [PAIRS]


# --- declarations ---


def shape_before_any_reward(recorder, env, folder):
    """The shape of the field of rewards of a new folder."""
    with closing(recorder(env, folder)) as recorded:
        return recorded.buffer.metadata.fields["reward"].shape


@pytest.mark.parametrize("shapes", [[], [None], [()], [(2,), None], [(2,), (3, 2)], [(3, 2), (), None], [None, (2,)]])
def test_the_outermost_declaration_counts(tmp_path, shapes):
    env = Scripted()
    for shape in shapes:
        env = gym.Wrapper(env)
        if shape is not None:
            env.reward_space = spaces.Box(-1, 1, shape)
    declared = [shape for shape in shapes if shape is not None]
    assert shape_before_any_reward(RecordToBuffer, env, tmp_path) == (declared[-1] if declared else ())


@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (1, 2), (3,)])
def test_a_single_value_has_no_axes(tmp_path, shape):
    env = Scripted(reward=lambda env, t: np.zeros(shape))
    env.reward_space = spaces.Box(-1, 1, shape)
    expected = () if np.prod(shape, dtype=int) == 1 else shape
    assert shape_before_any_reward(RecordToBuffer, env, tmp_path) == expected


def test_the_outermost_vector_layer_counts(tmp_path):
    inner = Stacked(np.zeros, reward_space=spaces.Box(-1, 1, (3, 4)))
    outer = gym.vector.VectorWrapper(inner)
    assert shape_before_any_reward(VectorRecorder, outer, tmp_path / "a") == (4,)
    outer.single_reward_space = spaces.Box(-1, 1, (5,))
    assert shape_before_any_reward(VectorRecorder, outer, tmp_path / "b") == (5,)
