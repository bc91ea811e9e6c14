"""Same-step autoreset: what the last row of an episode holds, and what belongs to the next one's first."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from gymnasium.vector.utils import batch_space
from wrappers.scripted import Scripted

from gym_replay import RecordToBuffer as RecordSingle
from gym_replay.wrappers.vector import RecordToBuffer

POINT = spaces.Box(-1000.0, 1000.0, (2,), np.float64)


class Shaped(Scripted):
    """Observes ``shape(env, point)``, where the point is (episode, t).

    Args:
        shape: makes the observation.
        space: what it is of.
        length: of each episode.
    """

    def __init__(self, shape, space=POINT, length=2):
        super().__init__(length)
        self.shape, self.observation_space = shape, space

    def _observation(self):
        return self.shape(self, np.array([self.number, self.t], np.float64))


def played(folder, make, steps, *, count=2, wrapper=lambda envs: envs, kind=SyncVectorEnv, **options):
    envs = RecordToBuffer(wrapper(kind([make] * count, autoreset_mode=AutoresetMode.SAME_STEP)), folder, **options)
    envs.reset(seed=0)
    for _ in range(steps):
        envs.step(np.zeros(count, int))
    envs.close()
    return envs.buffer


def played_single(folder, env, steps, **options):
    env = RecordSingle(env, folder, **options)
    env.reset(seed=0)
    for _ in range(steps):
        if any(env.step(0)[2:4]):
            env.reset()
    env.close()
    return env.buffer


# --- observations: arrays that are still intact ---

PARTS = spaces.Dict({"goal": POINT, "more": spaces.Tuple((spaces.MultiBinary(2), POINT)), "at": POINT})
GOAL, MASK = np.array([3.0, 4.0]), np.array([1, 0], np.int8)


def constant(env, point):
    return {"goal": GOAL, "more": (MASK, GOAL[:]), "at": point}


def view_of_a_table(env, point):
    if not hasattr(env, "table"):
        env.table, env.column = np.zeros((2, 100)), 0
    env.column += 1
    env.table[:, env.column] = point
    return env.table[:, env.column]


def test_intact_arrays_are_last_observations(tmp_path):
    buffer = played(tmp_path, lambda: Shaped(view_of_a_table, POINT), 5)
    assert len(buffer) == 6
    for place, episode in enumerate(buffer):
        assert episode.has_final
        assert episode["observation"].tolist() == [[place // 2, t] for t in range(len(episode) + 1)]


def flag_in_the_last_row(env, point):
    env.kept = getattr(env, "kept", np.zeros(2))
    env.kept[:] = point[1] == 2
    return {"goal": GOAL.copy(), "more": (MASK.copy(), env.kept), "at": point}


def reused_beside_a_new_one(env, point):
    env.kept = getattr(env, "kept", np.zeros(2))
    env.kept[:] = point
    return {"goal": GOAL, "more": (MASK, env.kept), "at": point}


def reused_alone(env, point):
    env.kept = getattr(env, "kept", np.zeros(2))
    env.kept[:] = point[1] // 2  # 0 but in the last row
    return env.kept


def reused_beside_numbers(env, point):
    return {"level": int(point[1]), "at": reused_alone(env, point)}


@pytest.mark.parametrize(
    ("shape", "space"),
    [
        (reused_beside_a_new_one, PARTS),
        (flag_in_the_last_row, PARTS),
        (constant, PARTS),
        (reused_alone, POINT),
        (reused_beside_numbers, spaces.Dict({"level": spaces.Discrete(9), "at": POINT})),
    ],
)
def test_what_may_have_been_overwritten_is_left_out(tmp_path, shape, space):
    with pytest.warns(UserWarning, match="overwritten"):
        buffer = played(tmp_path, lambda: Shaped(shape, space), 4)
    assert not any(episode.has_final for episode in buffer)


# --- infos ---


def test_an_entry_that_a_later_reset_brings(tmp_path):
    def info(env, t):
        return {"start": 100.0 + env.number} if t == 0 and env.number else {}

    options = {"record_info": True}
    buffer = played(tmp_path / "vector", lambda: Scripted(2, info=info), 5, count=1, **options)
    single = played_single(tmp_path / "single", Scripted(2, info=info), 5, **options)
    assert len(buffer) == len(single) == 3
    for episode, expected in zip(buffer, single, strict=True):
        for name in ("info.start", "info_present.start"):
            assert episode[name].tolist() == expected[name].tolist()


@pytest.mark.parametrize("key", ["episode", "totals"])
@pytest.mark.parametrize("as_list", [False, True])
def test_statistics_of_a_vector_wrapper_are_those_of_the_episode_that_ended(tmp_path, key, as_list):
    def wrapper(envs):
        envs = gym.wrappers.vector.RecordEpisodeStatistics(envs, stats_key=key)
        return gym.wrappers.vector.DictInfoToList(envs) if as_list else envs

    options = {"record_info": [f"{key}.r", f"{key}.l"]}
    buffer = played(tmp_path / "vector", lambda: Scripted(3), 7, count=1, wrapper=wrapper, **options)
    inner = gym.wrappers.RecordEpisodeStatistics(Scripted(3), stats_key=key)
    single = played_single(tmp_path / "single", inner, 7, **options)
    for episode, expected in zip(buffer, single, strict=True):
        assert episode[f"info_present.{key}.r"].tolist() == expected[f"info_present.{key}.r"].tolist()
        assert episode[f"info.{key}.r"].tolist() == expected[f"info.{key}.r"].tolist()
        assert episode[f"info.{key}.l"].tolist() == expected[f"info.{key}.l"].tolist()
    assert buffer[0][f"info.{key}.r"].tolist() == [0, 0, 0, 1 + 2 + 3]


class Dense(gym.vector.VectorEnv):
    """Native, with dense infos and last observations, and no infos of these; all episodes have two steps."""

    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012
    num_envs = 2
    single_observation_space, single_action_space = POINT, spaces.Discrete(3)
    observation_space, action_space = batch_space(POINT, 2), batch_space(spaces.Discrete(3), 2)

    def __init__(self, *, has_infos):
        self.has_infos = has_infos

    def _infos(self):
        return {"t": np.full(2, self.t)} if self.has_infos else {}

    def reset(self, *, seed=None, options=None):
        self.t = 0
        return np.zeros((2, 2)), self._infos()

    def step(self, actions):
        self.t += 1
        ends, last = self.t == 2, np.full((2, 2), float(self.t))
        self.t = 0 if ends else self.t
        infos = self._infos() | ({"final_obs": last} if ends else {})
        return np.full((2, 2), float(self.t)), np.ones(2), np.full(2, ends), np.zeros(2, bool), infos


def test_dense_infos_without_those_of_last_rows(tmp_path):
    envs = RecordToBuffer(Dense(has_infos=True), tmp_path, record_info=True)
    envs.reset()
    envs.step(np.zeros(2, int))
    with pytest.warns(UserWarning, match="final_info"):
        envs.step(np.zeros(2, int))
    for _ in range(4):  # warned once
        envs.step(np.zeros(2, int))
    envs.close()
    for episode in envs.buffer:
        assert episode["observation"][:, 0].tolist() == [0, 1, 2]
        assert episode["info.t"].tolist() == [0, 1, 0]
        assert episode["info_present.t"].tolist() == [True, True, False]


@pytest.mark.parametrize("has_infos", [True, False])
def test_no_warning_where_no_info_is_recorded_or_given(tmp_path, has_infos):
    envs = RecordToBuffer(Dense(has_infos=has_infos), tmp_path, record_info=not has_infos)
    envs.reset()
    for _ in range(4):
        envs.step(np.zeros(2, int))
    envs.close()


@pytest.mark.parametrize("kind", [SyncVectorEnv, AsyncVectorEnv])
@pytest.mark.parametrize("mode", AutoresetMode)
def test_entries_with_the_names_of_special_ones(tmp_path, kind, mode):
    info = {"final_info": {"q": 1.5}, "t": 2.0}

    def make():
        return Scripted(2, info=lambda env, t: info)

    envs = RecordToBuffer(kind([make], autoreset_mode=mode), tmp_path, record_info=True)
    envs.reset()
    envs.step(np.zeros(1, int))
    envs.close()
    names = [name for name in envs.buffer.fieldnames if name.startswith("info.")]
    is_taken = mode is AutoresetMode.SAME_STEP  # it is Gymnasium's own there
    assert names == (["info.t"] if is_taken else ["info.final_info.q", "info.t"])


def test_keys_that_are_no_strings(tmp_path):
    def info(env, t):
        return {1: t, "a": t} if env.number % 2 == 0 else {"a": t}

    makers = [lambda own=own: Scripted(own, info=info) for own in (2, 3)]
    envs = RecordToBuffer(SyncVectorEnv(makers), tmp_path, record_info=True)
    envs.reset()
    for _ in range(8):
        envs.step(np.zeros(2, int))
    envs.close()
    names = [name for name in envs.buffer.fieldnames if name.startswith("info.")]
    assert names == ["info.1", "info.a"]
    seen = {0: [], 1: []}
    for episode in envs.buffer:
        own = seen[int(episode.meta["env_index"])]
        assert (episode["info_present.1"] == (len(own) % 2 == 0)).all()
        own.append(episode)
    assert seen[0][0]["info.1"].tolist() == [0, 1, 2]
