"""Native vector environments, and vector wrappers inside and outside of the recorder, against what they returned."""

import importlib
from contextlib import nullcontext

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import vector as wrappers

from gym_replay import check_buffer
from gym_replay.wrappers.vector import RecordToBuffer


class Witness(gym.vector.VectorWrapper):
    """Keeps whole episodes of what passes, told apart one by one, as ``(observations, actions, rewards, flags)``."""

    def __init__(self, env):
        super().__init__(env)
        self.mode, self.episodes, self.open = env.metadata.get("autoreset_mode"), [], {}

    def reset(self, **options):
        mask = (options.get("options") or {}).get("reset_mask", np.ones(self.num_envs, bool))
        result = self.env.reset(**options)
        for i in np.flatnonzero(mask):
            self._cut(i)
            self.open[i] = ([_copy(result[0][i])], [], [], [])
        return result

    def _cut(self, i):
        if i in self.open and self.open[i][1]:
            self.episodes.append((i, self.open.pop(i)))

    def step(self, actions):
        before = np.array(actions)
        result = self.env.step(actions)
        observations, rewards, terminated, truncated, infos = result
        for i in range(self.num_envs):
            if i not in self.open:  # next-step: this step has reset it
                self.open[i] = ([_copy(observations[i])], [], [], [])
                continue
            ends = bool(terminated[i]) or bool(truncated[i])
            same = ends and self.mode is AutoresetMode.SAME_STEP
            episode = self.open[i]
            episode[0].append(_copy(infos["final_obs"][i] if same else observations[i]))
            episode[1].append(before[i])
            episode[2].append(float(rewards[i]))
            episode[3].append((bool(terminated[i]), bool(truncated[i])))
            if ends:
                self._cut(i)
            if same:
                self.open[i] = ([_copy(observations[i])], [], [], [])
        return result

    def end(self):
        for i in list(self.open):
            self._cut(i)
        return sorted(self.episodes, key=lambda pair: pair[0])


def _copy(value):
    return np.array(value)


def play(envs, steps, *, seed=3):
    envs.action_space.seed(0)
    envs.reset(seed=seed)
    for _ in range(steps):
        _, _, terminated, truncated, _ = envs.step(envs.action_space.sample())
        done = np.asarray(terminated) | np.asarray(truncated)
        if envs.metadata.get("autoreset_mode") is AutoresetMode.DISABLED and done.any():
            envs.reset(options={"reset_mask": done})


def assert_witnessed(recorded, witness, *, at_least=1):
    recorded.close()
    expected = witness.end()
    found = sorted(recorded.buffer, key=lambda episode: int(episode.meta["env_index"]))
    assert len(found) == len(expected) >= at_least
    for episode, (i, (observations, actions, rewards, flags)) in zip(found, expected, strict=True):
        assert int(episode.meta["env_index"]) == i
        assert episode["observation"].tobytes() == np.stack(observations).tobytes()
        assert episode["action"].tobytes() == np.stack(actions).astype(episode["action"].dtype).tobytes()
        assert episode["reward"].tolist() == rewards
        assert episode["terminated"].tolist() == [terminated for terminated, _ in flags]
        cut = not any(flags[-1])
        assert episode.complete == (not cut)
        assert episode["truncated"].tolist() == [*[truncated for _, truncated in flags[:-1]], cut or flags[-1][1]]
    report = check_buffer(recorded.buffer.folder, progress=False)
    assert report.ok, str(report)


@pytest.mark.parametrize("num_envs", [1, 3, 300])
def test_cartpole(tmp_path, num_envs):
    witness = Witness(
        gym.make_vec("CartPole-v1", num_envs=num_envs, vectorization_mode="vector_entry_point", max_episode_steps=30)
    )
    recorded = RecordToBuffer(witness, tmp_path)
    play(recorded, 80)
    recorded.reset(seed=9)
    recorded.step(recorded.action_space.sample())
    assert_witnessed(recorded, witness, at_least=num_envs)


@pytest.mark.filterwarnings("ignore:there is no infos..final_info")  # ale-py gives none in same-step mode
@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_atari(tmp_path, mode):
    ale = pytest.importorskip("ale_py.vector_env")
    small = {"img_height": 20, "img_width": 20, "noop_max": 3, "max_num_frames_per_episode": 120}
    witness = Witness(ale.AtariVectorEnv("breakout", num_envs=3, autoreset_mode=mode, **small))
    recorded = RecordToBuffer(witness, tmp_path, record_info=["lives", "env_id"])
    play(recorded, 70)
    assert_witnessed(recorded, witness, at_least=6)
    seeds = {}
    for episode in recorded.buffer:
        there = episode["info_present.env_id"]
        assert there[:-1].all()  # with same-step autoreset, the last infos are not given
        assert (episode["info.env_id"][there] == episode.meta["env_index"]).all()
        assert (np.diff(episode["info.lives"][there]) <= 0).all()  # none of the next episode's
        assert episode["info.lives"][0] == 5
        seeds.setdefault(int(episode.meta["env_index"]), int(episode.meta["episode_seed"]))
    assert seeds == {0: 3, 1: 4, 2: 5}


def test_atari_batches_are_refused(tmp_path):
    ale = pytest.importorskip("ale_py.vector_env")
    with pytest.raises(ValueError, match="batch_size=1"):
        RecordToBuffer(ale.AtariVectorEnv("breakout", num_envs=2, batch_size=1), tmp_path)


@pytest.mark.parametrize("name", ["CartPole", "Pendulum"])
def test_phys2d(tmp_path, name):
    pytest.importorskip("flax")
    module = importlib.import_module(f"gymnasium.envs.phys2d.{name.lower()}")
    envs = getattr(module, f"{name}JaxVectorEnv")(num_envs=3, max_episode_steps=20)
    witness = Witness(envs)
    is_missing = "autoreset_mode" not in envs.metadata
    with pytest.warns(UserWarning, match="autoreset_mode") if is_missing else nullcontext():
        recorded = RecordToBuffer(witness, tmp_path)
    play(recorded, 50)
    assert_witnessed(recorded, witness, at_least=6)


# --- wrappers ---


def cartpoles(mode=AutoresetMode.NEXT_STEP, **options):
    return SyncVectorEnv([lambda: gym.make("CartPole-v1", max_episode_steps=15)] * 3, autoreset_mode=mode, **options)


@pytest.mark.parametrize("mode", AutoresetMode)
@pytest.mark.parametrize("copy", [True, False])
def test_statistics_inside_and_outside(tmp_path, mode, copy):
    witness = Witness(wrappers.RecordEpisodeStatistics(cartpoles(mode, copy=copy)))
    recorded = RecordToBuffer(witness, tmp_path, record_info=["episode.l", "episode.r"])
    outside = wrappers.RecordEpisodeStatistics(recorded, stats_key="outer")
    play(outside, 60)
    assert_witnessed(recorded, witness, at_least=6)
    whole = [episode for episode in recorded.buffer if episode.complete]
    # Same-step, the wrapper gives them beside the next episode's infos; disabled, it forgets what other masks do.
    if mode is AutoresetMode.NEXT_STEP:
        for episode in whole:
            assert episode["info.episode.l"][-1] == len(episode)
            assert episode["info.episode.r"][-1] == episode.meta["episode_return"]
    assert outside.episode_count == len(whole)


def test_normalised_observations(tmp_path):
    witness = Witness(wrappers.NormalizeObservation(cartpoles()))
    recorded = RecordToBuffer(witness, tmp_path)
    play(wrappers.NormalizeObservation(recorded), 60)
    assert_witnessed(recorded, witness, at_least=6)


@pytest.mark.parametrize("mode", AutoresetMode)
def test_infos_as_a_list(tmp_path, mode):
    plain = RecordToBuffer(
        wrappers.RecordEpisodeStatistics(cartpoles(mode)), tmp_path / "plain", record_info=["episode.l"]
    )
    listed = wrappers.DictInfoToList(wrappers.RecordEpisodeStatistics(cartpoles(mode)))
    recorded = RecordToBuffer(listed, tmp_path / "listed", record_info=["episode.l"])
    for envs in (plain, recorded):
        play(envs, 40)
    for envs in (plain, recorded):
        envs.close()
    assert len(plain.buffer) == len(recorded.buffer) > 5
    for one, other in zip(plain.buffer, recorded.buffer, strict=True):
        assert one.meta["env_index"] == other.meta["env_index"]
        for name in one:
            assert one[name].tobytes() == other[name].tobytes(), name


def test_tensors(tmp_path):
    pytest.importorskip("array_api_compat")
    torch = pytest.importorskip("torch")
    plain = RecordToBuffer(cartpoles(), tmp_path / "plain")
    recorded = RecordToBuffer(wrappers.NumpyToTorch(cartpoles()), tmp_path / "torch")
    for envs, convert in ((plain, np.asarray), (recorded, torch.as_tensor)):
        envs.action_space.seed(0)
        envs.reset(seed=0)
        for _ in range(40):
            envs.step(convert(envs.action_space.sample()))
        envs.close()
    assert len(plain.buffer) == len(recorded.buffer) > 5
    for one, other in zip(plain.buffer, recorded.buffer, strict=True):
        for name in one:
            assert one[name].tobytes() == other[name].tobytes(), name
