"""What each step of each autoreset mode holds, written down by hand with environments that count."""

import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from gymnasium.vector.utils import batch_space

from gym_replay import FieldError, check_buffer
from gym_replay.wrappers.vector import RecordToBuffer


class Counting(gym.Env):
    """Observation t of episode k is ``100 * k + t``, the reward of the step to it is that too; lengths are given."""

    observation_space = spaces.Box(-1e6, 1e6, (1,), np.float64)
    action_space = spaces.Discrete(1000)

    def __init__(self, lengths, truncates=False, reuses=False):
        self.lengths, self.truncates, self.reuses, self.k = lengths, truncates, reuses, -1
        self.array = np.zeros(1)

    def _observe(self):
        if not self.reuses:
            return np.array([100.0 * self.k + self.t])
        self.array[0] = 100 * self.k + self.t
        return self.array

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.k, self.t = self.k + 1, 0
        return self._observe(), {"at": 100 * self.k}

    def step(self, action):
        self.t += 1
        ends = self.t >= self.lengths[self.k % len(self.lengths)]
        value = 100 * self.k + self.t
        return self._observe(), float(value), ends and not self.truncates, ends and self.truncates, {"at": value}


def make(lengths, mode, kind=SyncVectorEnv, **options):
    makers = [lambda own=own, truncates=i == 1: Counting(own, truncates) for i, own in enumerate(lengths)]
    return kind(makers, autoreset_mode=mode, **options)


def actions(step, count=2):
    return np.array([10 * step + i for i in range(count)])


def held(buffer):
    """By sub-environment and episode: observations, actions, rewards, terminated, truncated."""
    found = {}
    for episode in buffer:
        found.setdefault(int(episode.meta["env_index"]), []).append(
            (
                episode["observation"][:, 0].tolist(),
                episode["action"].tolist(),
                episode["reward"].tolist(),
                episode["terminated"].tolist(),
                episode["truncated"].tolist(),
            )
        )
    return found


@pytest.mark.parametrize("kind", [SyncVectorEnv, AsyncVectorEnv])
def test_next_step(tmp_path, kind):
    envs = RecordToBuffer(make([[2], [1, 3]], AutoresetMode.NEXT_STEP, kind), tmp_path, record_info=["at"])
    envs.reset(seed=5)
    for step in range(6):
        envs.step(actions(step))
    envs.close()
    assert held(envs.buffer) == {
        # steps 0 and 1; step 2 resets, and its action 20 is ignored; steps 3 and 4; step 5 resets
        0: [
            ([0, 1, 2], [0, 10], [1, 2], [False, True], [False, False]),
            ([100, 101, 102], [30, 40], [101, 102], [False, True], [False, False]),
        ],
        # step 0; step 1 resets; steps 2 to 4; step 5 resets
        1: [
            ([0, 1], [1], [1], [False], [True]),
            ([100, 101, 102, 103], [21, 31, 41], [101, 102, 103], [False] * 3, [False, False, True]),
        ],
    }
    for episode in envs.buffer:
        assert episode["info.at"].tolist() == episode["observation"][:, 0].tolist()
        assert episode["info_present.at"].all()
        assert episode.complete
    assert sorted(int(episode.meta["episode_seed"]) for episode in envs.buffer) == [-1, -1, 5, 6]


@pytest.mark.parametrize("kind", [SyncVectorEnv, AsyncVectorEnv])
def test_same_step(tmp_path, kind):
    envs = RecordToBuffer(make([[2], [1, 3]], AutoresetMode.SAME_STEP, kind), tmp_path, record_info=["at"])
    envs.reset()
    for step in range(5):
        envs.step(actions(step))
    envs.close()
    assert held(envs.buffer) == {
        0: [
            ([0, 1, 2], [0, 10], [1, 2], [False, True], [False, False]),
            ([100, 101, 102], [20, 30], [101, 102], [False, True], [False, False]),
            ([200, 201], [40], [201], [False], [True]),  # cut by close
        ],
        1: [
            ([0, 1], [1], [1], [False], [True]),
            ([100, 101, 102, 103], [11, 21, 31], [101, 102, 103], [False] * 3, [False, False, True]),
            ([200, 201], [41], [201], [False], [True]),  # of length 1
        ],
    }
    for episode in envs.buffer:
        assert episode["info.at"].tolist() == episode["observation"][:, 0].tolist()
    assert [episode.complete for episode in envs.buffer if episode.meta["env_index"] == 0] == [True, True, False]


@pytest.mark.parametrize("kind", [SyncVectorEnv, AsyncVectorEnv])
@pytest.mark.parametrize("on_incomplete", ["keep", "discard"])
def test_disabled(tmp_path, kind, on_incomplete):
    envs = RecordToBuffer(make([[3], [1]], AutoresetMode.DISABLED, kind), tmp_path, on_incomplete=on_incomplete)
    envs.reset(seed=1)
    envs.step(actions(0))
    options = {"reset_mask": np.array([False, True])}
    envs.reset(seed=[None, 40], options=options)
    assert options["reset_mask"].tolist() == [False, True]
    envs.step(actions(1))
    envs.reset(options={"reset_mask": np.array([True, True])})  # the first one is running
    envs.step(actions(2))
    envs.close()
    cut = [([0, 1, 2], [0, 10], [1, 2], [False, False], [False, True])]
    unfinished = [([100, 101], [20], [101], [False], [True])]
    keep = on_incomplete == "keep"
    found = held(envs.buffer)
    assert found.get(0, []) == (cut + unfinished if keep else [])
    assert found[1] == [
        ([0, 1], [1], [1], [False], [True]),
        ([100, 101], [11], [101], [False], [True]),
        ([200, 201], [21], [201], [False], [True]),
    ]
    seeds = [int(episode.meta["episode_seed"]) for episode in envs.buffer if episode.meta["env_index"] == 1]
    assert seeds == [2, 40, -1]
    options = [episode.meta["episode_options"] for episode in envs.buffer if episode.meta["env_index"] == 1]
    assert options == ["", "{}", "{}"]


def test_what_is_done_and_not_reset_is_not_recorded(tmp_path):
    class Lenient(gym.vector.VectorEnv):
        """Steps what is done, as native environments without autoreset may."""

        metadata = {"autoreset_mode": AutoresetMode.DISABLED}  # noqa: RUF012
        num_envs = 2
        single_observation_space, single_action_space = Counting.observation_space, Counting.action_space
        observation_space, action_space = (
            batch_space(space, 2) for space in (single_observation_space, single_action_space)
        )

        def reset(self, *, seed=None, options=None):
            self.t = np.zeros((2, 1))
            return self.t.copy(), {}

        def step(self, actions):
            self.t += 1
            return self.t.copy(), self.t[:, 0].copy(), self.t[:, 0] >= [2, 9], np.zeros(2, bool), {}

    envs = RecordToBuffer(Lenient(), tmp_path)
    envs.reset()
    envs.step(actions(0))
    envs.step(actions(1))
    with pytest.warns(UserWarning, match=r"\[0\] have ended and were not reset"):
        envs.step(actions(2))
    envs.step(actions(3))
    envs.close()
    assert held(envs.buffer) == {
        0: [([0, 1, 2], [0, 10], [1, 2], [False, True], [False, False])],
        1: [([0, 1, 2, 3, 4], [1, 11, 21, 31], [1, 2, 3, 4], [False] * 4, [False, False, False, True])],
    }


@pytest.mark.parametrize("mode", AutoresetMode)
def test_episodes_of_one_step(tmp_path, mode):
    envs = RecordToBuffer(make([[1], [1], [1]], mode), tmp_path)
    envs.reset()
    for step in range(5):
        envs.step(actions(step, 3))
        if mode is AutoresetMode.DISABLED:
            envs.reset(options={"reset_mask": np.ones(3, bool)})
    envs.close()
    for episodes in held(envs.buffer).values():
        count = 3 if mode is AutoresetMode.NEXT_STEP else 5
        assert [episode[0] for episode in episodes] == [[100 * k, 100 * k + 1] for k in range(count)]


def test_a_commit_comes_before_the_step_returns(tmp_path):
    envs = RecordToBuffer(make([[2], [3]], AutoresetMode.SAME_STEP), tmp_path)
    envs.reset()
    counts = []
    for step in range(6):
        envs.step(actions(step))
        counts.append(len(envs.buffer))
    assert counts == [0, 1, 2, 3, 3, 5]
    envs.close()


@pytest.mark.parametrize("named", ["SameStep", AutoresetMode.SAME_STEP])
def test_modes_are_taken_by_value(tmp_path, named):
    envs = make([[2], [3]], AutoresetMode.SAME_STEP)
    envs.metadata = {"autoreset_mode": named}
    envs = RecordToBuffer(envs, tmp_path)
    envs.reset()
    for step in range(2):
        envs.step(actions(step))
    assert held(envs.buffer)[0][0][0] == [0, 1, 2]
    envs.close()


def test_a_missing_mode_is_next_step_and_an_unknown_one_an_error(tmp_path):
    envs = make([[2], [3]], AutoresetMode.NEXT_STEP)
    envs.metadata = {}
    with pytest.warns(UserWarning, match="autoreset_mode"):
        recorded = RecordToBuffer(envs, tmp_path)
    recorded.reset()
    for step in range(5):
        recorded.step(actions(step))
    recorded.close()
    assert [episode[0] for episode in held(recorded.buffer)[0]] == [[0, 1, 2], [100, 101, 102]]
    envs.metadata = {"autoreset_mode": "sometimes"}
    with pytest.raises(FieldError, match="sometimes"):
        RecordToBuffer(envs, tmp_path / "other")


# --- what Gymnasium loses before a wrapper sees it ---


def test_a_reused_array_in_same_step_mode_is_no_last_observation(tmp_path):
    envs = SyncVectorEnv([lambda: Counting([2], reuses=True)], autoreset_mode=AutoresetMode.SAME_STEP)
    envs = RecordToBuffer(envs, tmp_path)
    envs.reset()
    envs.step([1])
    with pytest.warns(UserWarning, match="same-step"):
        envs.step([2])
    envs.step([3])
    envs.close()
    first, second = envs.buffer
    assert not first.has_final
    assert first["observation"][:, 0].tolist() == [0, 1]  # and not 100, where the next one begins
    assert first["reward"].tolist() == [1, 2]
    assert second.has_final
    assert second["observation"][:, 0].tolist() == [100, 101]
    assert check_buffer(tmp_path, progress=False).ok


def test_a_reused_array_of_a_worker_is_warned_about(tmp_path):
    envs = AsyncVectorEnv([lambda: Counting([2], reuses=True)], autoreset_mode=AutoresetMode.SAME_STEP)
    envs = RecordToBuffer(envs, tmp_path)
    envs.reset()
    envs.step([1])
    with pytest.warns(UserWarning, match="may have been overwritten"):
        envs.step([2])
    envs.close()


def test_workers_without_shared_memory_reset_twice(tmp_path):
    envs = make([[2], [9]], AutoresetMode.NEXT_STEP, AsyncVectorEnv, shared_memory=False)
    envs = RecordToBuffer(envs, tmp_path)
    envs.reset()
    envs.step(actions(0))
    envs.step(actions(1))  # the first one ends
    with pytest.warns(UserWarning, match="shared_memory=True"):
        envs.reset()
    for step in range(2, 7):
        envs.step(actions(step))
    envs.close()
    for observations, _, rewards, *_ in held(envs.buffer)[0]:
        assert np.diff(observations).tolist() == [1] * len(rewards)  # whatever was lost, nothing is shifted
        assert observations[1:] == rewards


def test_strings_in_shared_memory_are_warned_about(tmp_path):
    class Talking(Counting):
        observation_space = spaces.Dict({"said": spaces.Text(4)})

        def _observe(self):
            return {"said": str(self.t)}

    envs = AsyncVectorEnv([lambda: Talking([2])], shared_memory=True)
    with pytest.warns(UserWarning, match="shared_memory=False"):
        recorded = RecordToBuffer(envs, tmp_path)
    recorded.close()


def test_a_mask_that_the_environment_does_not_know(tmp_path):
    envs = gym.make_vec("CartPole-v1", num_envs=3, vectorization_mode="vector_entry_point")
    envs = RecordToBuffer(envs, tmp_path)
    envs.reset(seed=0)
    for _ in range(4):
        envs.step(np.array([0, 1, 0]))
    with pytest.warns(UserWarning, match="does not know"):
        first, _ = envs.reset(options={"reset_mask": np.array([True, False, False])})
    envs.step(np.array([0, 1, 0]))
    envs.close()
    assert sorted(len(episode) for episode in envs.buffer) == [1, 1, 1, 4, 4, 4]
    for episode in list(envs.buffer)[3:]:
        assert (episode["observation"][0] == first[int(episode.meta["env_index"])]).all()


@pytest.mark.parametrize(
    "mask", [np.array([True]), np.zeros(2, bool), np.array([1, 0]), [True, False]], ids=["short", "none", "int", "list"]
)
def test_a_wrong_mask_is_an_error_before_anything_happens(tmp_path, mask):
    envs = RecordToBuffer(make([[3], [3]], AutoresetMode.DISABLED), tmp_path)
    envs.reset()
    envs.step(actions(0))
    with pytest.raises(FieldError, match="reset_mask"):
        envs.reset(options={"reset_mask": mask})
    envs.step(actions(1))
    envs.step(actions(2))
    assert [episode[0] for episode in held(envs.buffer)[0]] == [[0, 1, 2, 3]]
    envs.close()


def test_no_warning_in_ordinary_use(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        envs = RecordToBuffer(make([[2], [3]], AutoresetMode.NEXT_STEP), tmp_path)
        envs.reset(seed=0)
        for step in range(10):
            envs.step(actions(step))
        envs.reset()
        envs.close()
