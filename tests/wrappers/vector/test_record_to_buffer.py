"""The vector recorder around the episodes: seeds, notes, infos, limits, bad values, full disks, interrupts, memory."""

import copy
import gc
import os
import pickle
import subprocess
import sys
import tempfile
from contextlib import suppress

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from internals import Counters, generator_state, small_sizes
from wrappers.scripted import Releasing, Scripted, full_disk

from gym_replay import (
    BufferFullError,
    BufferLockedError,
    EpisodeStateError,
    EpisodeTooLongError,
    FieldError,
    ReplayBuffer,
    StorageError,
    check_buffer,
)
from gym_replay import RecordToBuffer as RecordSingle
from gym_replay.wrappers.vector import RecordToBuffer

from .pairs import SPACES, Play, Varied, assert_same, play_both


def scripted(lengths, mode=AutoresetMode.SAME_STEP, **answers):
    return SyncVectorEnv([lambda own=own: Scripted(own, **answers) for own in lengths], autoreset_mode=mode)


def step_many(envs, count):
    for _ in range(count):
        envs.step(np.zeros(envs.num_envs, np.int64))


def assert_whole(buffer, *, lengths=None):
    """Every episode of :class:`Scripted` that is there is what its environment did."""
    for episode in buffer:
        own = np.arange(len(episode) + 1)
        assert episode["observation"].tolist() == np.stack((own, own), axis=1).tolist()
        assert episode["reward"].tolist() == own[1:].tolist()
        assert episode.meta["episode_return"] == own.sum()
    assert lengths is None or sorted(map(len, buffer)) == sorted(lengths)
    report = check_buffer(buffer.folder, progress=False)
    assert report.ok, str(report)


# --- what is known of an episode ---


def test_seeds(tmp_path):
    envs = RecordToBuffer(scripted([2, 1, 3], AutoresetMode.NEXT_STEP), tmp_path)
    for seed in (10, [4, None, 6], None):
        envs.reset(seed=seed)
        step_many(envs, 7)
    envs.close()
    first = {}  # of each explicit reset, and each sub-environment
    for episode in envs.buffer:
        first.setdefault(int(episode.meta["env_index"]), []).append(int(episode.meta["episode_seed"]))
    assert [seed for seed in first[0] if seed >= 0] == [10, 4]
    assert [seed for seed in first[1] if seed >= 0] == [11]
    assert [seed for seed in first[2] if seed >= 0] == [12, 6]
    assert len(first[0]) == 9  # three episodes each: 2 steps, a reset, 2 steps, a reset, and one that is cut


def test_generator_states(tmp_path):
    def make():
        return Varied(SPACES["box"], spaces.Discrete(2), longest=3)

    envs = RecordToBuffer(SyncVectorEnv([make] * 2), tmp_path)
    envs.reset(seed=0)
    before = []
    for _ in range(8):
        states = [generator_state(env) for env in envs.unwrapped.envs]
        waiting = envs.unwrapped._autoreset_envs
        before += [(i, states[i]) for i in range(2) if waiting[i]]
        envs.step(np.zeros(2, np.int64))
    envs.close()
    for i in range(2):
        episodes = [episode for episode in envs.buffer if episode.meta["env_index"] == i]
        assert not episodes[0].meta["episode_rng"].any()  # it has a seed
        expected = [state for number, state in before if number == i]
        for episode, state in zip(episodes[1:], expected, strict=False):
            assert (episode.meta["episode_rng"] == state).all()


def test_times_and_runs(tmp_path):
    envs = RecordToBuffer(scripted([1, 2]), tmp_path)
    envs.reset(options={"a": 1})
    step_many(envs, 4)
    envs.close()
    assert len({episode.meta["episode_run"] for episode in envs.buffer}) == 1
    for i, count in ((0, 4), (1, 2)):
        options = [episode.meta["episode_options"] for episode in envs.buffer if episode.meta["env_index"] == i]
        assert options == ['{"a": 1}'] + [""] * (count - 1)
    starts = [float(episode.meta["episode_start"]) for episode in envs.buffer]
    assert all(float(episode.meta["episode_duration"]) >= 0 for episode in envs.buffer)
    assert starts[-1] > starts[0]


def test_the_sum_of_negative_zeros_is_that_of_a_single_recorder(tmp_path):
    rewards = {"reward": lambda env, t: -0.0}
    for length in (5, 80):
        envs = RecordToBuffer(scripted([length], **rewards), tmp_path / f"vector{length}")
        single = RecordSingle(Scripted(length, **rewards), tmp_path / f"single{length}")
        for env in (envs, single):
            env.reset()
            for _ in range(length):
                env.step([0] if env is envs else 0)
            env.close()
        pair = [env.buffer.episode(0).meta["episode_return"].tobytes() for env in (envs, single)]
        assert pair[0] == pair[1]


def test_annotations(tmp_path):
    envs = RecordToBuffer(
        scripted([1, 3], AutoresetMode.NEXT_STEP),
        tmp_path,
        meta_fields={"skill": "int", "goal": ("float", 2), "task": "str"},
        extra_fields={"log_prob": "float", "value": ("float", (2,), 7.0)},
    )
    with pytest.raises(EpisodeStateError, match="reset"):
        envs.annotate(skill=1)
    envs.reset()
    goal = np.array([[1, 2], [3, 4]], np.float32)
    envs.annotate(skill=np.array([4, 5]), goal=goal, task=["a", "b"])
    goal[:] = 0
    envs.annotate_step(log_prob=np.array([-0.5, -1.5]))
    step_many(envs, 1)
    envs.annotate(skill=[8, 9], task="c")  # the first one has ended
    envs.annotate_step(value=np.ones((2, 2)))
    step_many(envs, 1)  # resets the first one
    step_many(envs, 1)
    with pytest.raises(FieldError, match="nothing"):
        envs.annotate(nothing=1)
    with pytest.raises(FieldError, match="itself"):
        envs.annotate(env_index=[1, 2])
    with pytest.raises(FieldError, match="skill"):
        envs.annotate(skill=[1, 2, 3])
    with pytest.raises(FieldError, match="log_prob"):
        envs.annotate_step(log_prob=np.zeros(3))
    with pytest.raises(FieldError, match="nothing"):
        envs.annotate_step(nothing=1)
    envs.close()
    first, again, second = sorted(envs.buffer, key=lambda episode: (episode.meta["env_index"], episode.id))
    assert (int(first.meta["skill"]), first.meta["goal"].tolist(), first.meta["task"]) == (4, [1, 2], "a")
    assert (int(again.meta["skill"]), again.meta["goal"].tolist(), again.meta["task"]) == (0, [0, 0], "")
    assert (int(second.meta["skill"]), second.meta["goal"].tolist(), second.meta["task"]) == (9, [3, 4], "c")
    assert second["log_prob"].tolist() == [-1.5, 0, 0]
    assert second["value"].tolist() == [[7, 7], [1, 1], [7, 7]]


def test_on_episode(tmp_path):
    seen = []

    def look(episode):
        seen.append((episode.env_index, len(episode), episode["observation"][-1, 0], episode.complete))
        assert episode.episode_return == episode["reward"].sum()
        if episode.env_index == 1:
            return False
        if episode.env_index == 2:
            raise RuntimeError("seen")
        return {"score": 10 * len(episode), "note": "good"}

    fields = {"score": "int", "note": "str"}
    envs = RecordToBuffer(scripted([2, 2, 2]), tmp_path, meta_fields=fields, on_episode=look)
    envs.reset()
    step_many(envs, 1)
    with pytest.raises(RuntimeError, match="seen"):
        step_many(envs, 1)
    assert [(int(e.meta["env_index"]), int(e.meta["score"]), e.meta["note"]) for e in envs.buffer] == [
        (0, 20, "good"),
        (2, 0, ""),
    ]
    assert seen == [(0, 2, 2.0, True), (1, 2, 2.0, True), (2, 2, 2.0, True)]
    with pytest.raises(RuntimeError, match="seen"):
        step_many(envs, 2)
    envs.close()
    assert_whole(envs.buffer, lengths=[2] * 4)


# --- infos ---


def test_infos_of_an_episode_are_its_own(tmp_path):
    def info(env, t):
        entry = {"t": t, "deep": {"x": np.full(2, t, np.float32)}}
        return {**entry, "last": True} if t == env.length else entry

    envs = RecordToBuffer(scripted([2, 3], info=info), tmp_path, record_info=True)
    envs.reset()
    step_many(envs, 6)
    envs.close()
    assert len(envs.buffer) == 5
    for episode in envs.buffer:
        own = np.arange(len(episode) + 1)
        assert episode["info.t"].tolist() == own.tolist()
        assert episode["info.t"].dtype == np.int64
        assert episode["info.deep.x"].tolist() == np.stack((own, own), axis=1).tolist()
        assert episode["info_present.last"].tolist() == [False] * len(episode) + [True]
    assert not {"info.final_obs", "info.final_info", "info._t"} & set(envs.buffer.fieldnames)


def test_dense_infos_and_last_observations_without_masks(tmp_path):
    class Dense(gym.vector.VectorEnv):
        """As native environments do it: arrays over all sub-environments, whatever they mean."""

        metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012
        num_envs = 2
        single_observation_space, single_action_space = Scripted.observation_space, spaces.Discrete(3)
        observation_space = gym.vector.utils.batch_space(single_observation_space, 2)
        action_space = gym.vector.utils.batch_space(single_action_space, 2)

        def _result(self, t):
            return np.repeat(t[:, None], 2, axis=1).astype(np.float32)

        def reset(self, *, seed=None, options=None):
            self.t = np.zeros(2)
            return self._result(self.t), {"lives": self.t.astype(np.int32)}

        def step(self, actions):
            self.t = last = self.t + 1
            done = last >= [2, 3]
            self.t = np.where(done, 0, last)
            infos = {"lives": self.t.astype(np.int32), "final_obs": self._result(last), "final_info": {"lives": last}}
            return self._result(self.t), last, done, np.zeros(2, bool), infos

    envs = RecordToBuffer(Dense(), tmp_path, record_info=True)
    envs.reset()
    step_many(envs, 6)
    envs.close()
    assert_whole(envs.buffer, lengths=[2, 2, 2, 3, 3])
    for episode in envs.buffer:
        assert episode["info.lives"].tolist() == list(range(len(episode) + 1))


# --- limits ---


def test_limits(tmp_path):
    envs = RecordToBuffer(scripted([9, 9]), tmp_path / "long", max_timesteps=2)
    envs.reset()
    step_many(envs, 2)
    with pytest.raises(EpisodeTooLongError, match="max_timesteps=2"):
        step_many(envs, 1)
    assert envs.unwrapped.envs[0].t == 2  # not stepped
    envs.close()
    assert_whole_cut(envs.buffer, [2, 2])
    envs = RecordToBuffer(scripted([2, 2]), tmp_path / "full", max_episodes=3)
    envs.reset()
    step_many(envs, 2)
    with pytest.raises(BufferFullError, match="max_episodes=3"):
        step_many(envs, 1)
    envs.close()
    assert len(envs.buffer) == 2
    envs = RecordToBuffer(scripted([2, 2]), tmp_path / "steps", max_steps=7)
    envs.reset()
    with pytest.raises(BufferFullError, match="max_steps=7"):
        step_many(envs, 4)
    envs.close()
    assert envs.buffer.num_steps == 6


def assert_whole_cut(buffer, lengths):
    assert sorted(map(len, buffer)) == lengths
    assert not any(episode.complete for episode in buffer)
    assert all(episode["truncated"][-1] for episode in buffer)


@pytest.mark.parametrize("limits", [{"max_episodes": 5}, {"max_steps": 40}, {"max_episodes": 64}])
def test_rings(tmp_path, limits):
    envs = RecordToBuffer(scripted([1, 2, 3, 4, 5, 1, 1, 1, 6]), tmp_path, circular=True, **limits)
    envs.reset()
    step_many(envs, 40)
    buffer = envs.buffer
    ids = [episode.id for episode in buffer]
    assert ids == list(range(ids[0], ids[-1] + 1))
    assert len(ids) == limits.get("max_episodes", len(ids))
    assert buffer.num_steps <= limits.get("max_steps", 1 << 60)
    envs.close()
    assert_whole(buffer)


# --- what does not fit ---


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({"observation": {2: np.zeros(3, np.float32)}}, None),
        ({"reward": {2: "much"}}, None),
        ({"observation": {2: ValueError("broken")}}, "broken"),
    ],
)
def test_an_exception_inside_a_step_cuts_what_runs(tmp_path, answers, message):
    envs = RecordToBuffer(scripted([1, 9], **answers), tmp_path)
    envs.reset()
    step_many(envs, 1)
    with pytest.raises(Exception, match=message):
        step_many(envs, 1)
    for env in envs.unwrapped.envs:
        env.t, env.answers = 2, {}
    with pytest.warns(UserWarning, match="not recorded"):
        step_many(envs, 1)
    envs.close()
    assert [(len(e), e.complete) for e in envs.buffer] == [(1, True), (1, False)]
    assert_whole(envs.buffer)


class Odd(gym.vector.VectorWrapper):
    """Puts something else into what a step returns."""

    def __init__(self, env, place, value):
        super().__init__(env)
        self.place, self.value, self.steps = place, value, 0

    def step(self, actions):
        result = list(self.env.step(actions))
        self.steps += 1
        if self.steps == 2:
            result[self.place] = self.value
        return tuple(result)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (0, np.zeros((2, 3), np.float32), "observation"),
        (0, np.zeros((3, 2), np.float32), "observation"),
        (0, "what", "observation"),
        (1, None, "reward"),
        (1, np.array([1.0, None]), "reward"),
        (1, np.zeros((2, 2)), "reward"),
        (2, np.array([0, 1]), "terminated"),
        (3, np.zeros(3, bool), "truncated"),
        (3, False, "truncated"),
    ],
)
def test_bad_values_are_named_and_what_was_stored_is_safe(tmp_path, place, value, message):
    envs = RecordToBuffer(Odd(scripted([1, 9]), place, value), tmp_path)
    envs.reset()
    step_many(envs, 1)
    with pytest.raises(FieldError, match=message):
        step_many(envs, 1)
    assert [(len(e), e.complete) for e in envs.buffer] == [(1, True), (1, False)]
    envs.reset()
    step_many(envs, 1)
    envs.close()
    assert len(envs.buffer) == 4
    assert_whole(envs.buffer)


def test_the_sub_environment_is_named(tmp_path):
    space = spaces.Dict({"said": spaces.Text(3)})
    envs = SyncVectorEnv([lambda: Varied(space, spaces.Discrete(2))] * 3)
    envs = RecordToBuffer(Odd(envs, 0, {"said": ("a", 5, "c")}), tmp_path)
    envs.reset(seed=0)
    step_many(envs, 1)
    with pytest.raises(FieldError, match=r"sub-environment 1: .*observation\.said"):
        step_many(envs, 1)
    envs.close()


def test_an_action_that_does_not_fit_steps_nothing(tmp_path):
    envs = RecordToBuffer(scripted([2, 2]), tmp_path)
    envs.reset()
    for wrong in (np.zeros(3, np.int64), np.zeros(2), "ab"):
        with pytest.raises(FieldError, match="action"):
            envs.step(wrong)
    step_many(envs, 2)
    envs.close()
    assert_whole(envs.buffer, lengths=[2, 2])


def test_bounds_are_counted(tmp_path):
    envs = scripted([3, 3], observation={2: np.full(2, 2000, np.float32)})
    envs = RecordToBuffer(envs, tmp_path)
    envs.reset()
    step_many(envs, 3)
    with pytest.warns(UserWarning, match=r"observation: 2000.0 is outside .* \(episode 0, row 2, index \(0,\)\)"):
        assert envs.out_of_bounds == {"observation": 2}
    envs.close()


# --- the wrong class, and the same folder ---


def test_the_right_class_is_named(tmp_path):
    with pytest.raises(TypeError, match=r"gym_replay\.RecordToBuffer"):
        RecordToBuffer(Scripted(), tmp_path)
    with pytest.raises(TypeError, match=r"gym_replay\.wrappers\.vector\.RecordToBuffer"):
        RecordSingle(scripted([1]), tmp_path)
    with pytest.raises(TypeError, match="lacks reset, step, num_envs"):
        RecordToBuffer("CartPole-v1", tmp_path)
    assert not list(tmp_path.iterdir())


def test_both_recorders_append_to_one_folder(tmp_path):
    def make():
        return gym.make("CartPole-v1")

    for envs in (
        SyncVectorEnv([make] * 2),
        gym.make_vec("CartPole-v1", num_envs=3),
        gym.make_vec("CartPole-v1", num_envs=2, vectorization_mode="async"),
    ):
        recorded = RecordToBuffer(envs, tmp_path)
        recorded.reset(seed=0)
        for _ in range(30):
            recorded.step(recorded.action_space.sample())
        recorded.close()
        before = len(recorded.buffer)
        single = RecordSingle(make(), tmp_path)
        single.reset(seed=1)
        single.step(0)
        single.close()
        assert len(single.buffer) == before + 1
    assert single.buffer.make_env().spec.id == "CartPole-v1"
    assert check_buffer(tmp_path, progress=False).ok


def test_spec_of_a_native_environment(tmp_path):
    envs = gym.make_vec("CartPole-v1", num_envs=3, vectorization_mode="vector_entry_point", sutton_barto_reward=True)
    RecordToBuffer(envs, tmp_path).close()
    with ReplayBuffer.from_folder(tmp_path) as buffer:
        assert buffer.make_env().spec.kwargs["sutton_barto_reward"]


def test_one_writer(tmp_path):
    first, second = (RecordToBuffer(scripted([2, 2]), tmp_path) for _ in range(2))
    first.reset()
    step_many(first, 1)
    second.reset()
    with pytest.raises(BufferLockedError, match="this process"):
        step_many(second, 1)
    with pytest.raises(EpisodeStateError):
        first.buffer.store_episode()
    first.close()
    second.close()


def test_no_copies(tmp_path):
    envs = RecordToBuffer(scripted([2]), tmp_path)
    for copied in (pickle.dumps, copy.deepcopy):
        with pytest.raises(TypeError, match="only writer"):
            copied(envs)
    envs.close()
    envs.close()


def test_a_buffer_that_is_passed_in_stays_open(tmp_path):
    RecordToBuffer(scripted([2]), tmp_path).close()
    with ReplayBuffer.from_folder(tmp_path) as buffer:
        envs = RecordToBuffer(scripted([2]), buffer)
        envs.reset()
        step_many(envs, 3)
        envs.close()
        assert [len(episode) for episode in buffer] == [2, 1]


def test_leaving_the_interpreter_commits_what_runs(tmp_path):
    code = f"""
import gymnasium as gym, numpy as np
from gym_replay.wrappers.vector import RecordToBuffer
envs = RecordToBuffer(gym.make_vec("CartPole-v1", num_envs=3), {str(tmp_path)!r})
envs.reset(seed=0)
envs.step(np.zeros(3, np.int64))
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    with ReplayBuffer.from_folder(tmp_path) as buffer:
        assert [len(episode) for episode in buffer] == [1, 1, 1]


def test_a_recorder_that_is_dropped_commits_what_runs(tmp_path):
    envs = RecordToBuffer(scripted([5, 5]), tmp_path)
    envs.reset()
    step_many(envs, 2)
    del envs
    gc.collect()
    with ReplayBuffer.from_folder(tmp_path) as buffer:
        assert [len(episode) for episode in buffer] == [2, 2]


# --- full disks and interrupts ---


@pytest.mark.parametrize("ending", ["step", "reset", "close"])
def test_a_full_disk_loses_nothing(tmp_path, monkeypatch, ending):
    envs = RecordToBuffer(scripted([2, 3, 4]), tmp_path)
    envs.reset()
    step_many(envs, 1)
    with full_disk(monkeypatch):
        with pytest.raises(StorageError):
            step_many(envs, 1)
        for _ in range(2):
            with pytest.raises(StorageError):
                step_many(envs, 1)
        assert len(envs.buffer) == 0
    assert [env.t for env in envs.unwrapped.envs] == [0, 2, 2]  # not stepped while something waits
    if ending == "step":
        step_many(envs, 1)
        assert sorted(map(len, envs.buffer)) == [2, 3]
    elif ending == "reset":
        envs.reset()
        assert sorted(map(len, envs.buffer)) == [2, 2, 2]
    envs.close()
    assert_whole(envs.buffer)


def test_a_reset_that_a_full_disk_refuses_resets_nothing(tmp_path, monkeypatch):
    envs = RecordToBuffer(scripted([3, 4]), tmp_path)
    envs.reset()
    step_many(envs, 2)
    with full_disk(monkeypatch), pytest.raises(StorageError):
        envs.reset()
    assert [env.t for env in envs.unwrapped.envs] == [2, 2]
    step_many(envs, 2)
    assert [(len(e), e.complete) for e in envs.buffer] == [(3, True), (4, True)]
    envs.close()
    assert_whole(envs.buffer, lengths=[3, 4, 1])


@pytest.mark.parametrize("times", range(1, 25, 3))
def test_a_disk_that_refuses_now_and_then(tmp_path, monkeypatch, times):
    envs = RecordToBuffer(scripted([1, 2, 3], info=lambda env, t: {"t": t}), tmp_path, record_info=True)
    envs.reset()
    with full_disk(monkeypatch, times=times):
        for _ in range(30):
            with suppress(StorageError):
                step_many(envs, 1)
    step_many(envs, 7)
    envs.close()
    assert_whole(envs.buffer)
    for i, env in enumerate(envs.unwrapped.envs):
        assert sum(e.meta["env_index"] == i for e in envs.buffer) >= env.number


class Interrupt:
    """Raises KeyboardInterrupt at the n-th line that this package executes."""

    def __init__(self, at):
        self.left = at

    def __enter__(self):
        gc.disable()  # what is raised where garbage of an earlier round is collected is lost
        sys.settrace(self._trace)
        return self

    def __exit__(self, *details):
        sys.settrace(None)
        gc.enable()

    def _trace(self, frame, event, argument):
        if "gym_replay" not in frame.f_code.co_filename or "tests" in frame.f_code.co_filename:
            return None
        if event == "line":
            self.left -= 1
            if self.left == 0:
                sys.settrace(None)
                raise KeyboardInterrupt
        return self._trace


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP])
def test_an_interrupt_anywhere_loses_and_doubles_nothing(tmp_path, mode):
    """One that comes in the step in which two episodes end, at every eleventh line of it."""
    total = 0
    for at in range(1, 2000, 11):
        envs = RecordToBuffer(scripted([2, 2, 5], mode), tmp_path / str(at))
        envs.reset()
        step_many(envs, 1)
        interrupted = False
        try:
            with Interrupt(at):
                step_many(envs, 1)
        except KeyboardInterrupt:
            interrupted = True
        stepped = envs.unwrapped.envs[2].t == 2
        envs.close()
        lengths = sorted(map(len, envs.buffer))
        ends = [episode.complete for episode in envs.buffer]
        # The step is there whole, or not at all.
        assert lengths in ([1, 1, 1], [2, 2, 2]), (at, lengths)
        assert ends.count(True) == (2 if lengths == [2, 2, 2] else 0)
        assert stepped or lengths == [1, 1, 1]
        assert_whole(envs.buffer)
        total += interrupted
        if not interrupted:
            break
    assert total > 20


def test_an_interrupt_at_the_counter(tmp_path, monkeypatch):
    envs = RecordToBuffer(scripted([2, 2, 5]), tmp_path)
    envs.reset()
    step_many(envs, 1)
    put = Counters.put

    def interrupted(self, name, value):
        put(self, name, value)
        if name == "next":
            monkeypatch.setattr(Counters, "put", put)
            raise KeyboardInterrupt

    monkeypatch.setattr(Counters, "put", interrupted)
    with pytest.raises(KeyboardInterrupt):
        step_many(envs, 1)
    step_many(envs, 2)
    envs.close()
    assert_whole(envs.buffer, lengths=[2, 2, 2, 2, 4])


# --- memory ---


def files_opened(monkeypatch):
    """Descriptors of the nameless files that are opened from now on."""
    opened, make_file = [], tempfile.TemporaryFile

    def open_file(**options):
        file = make_file(**options)
        opened.append(os.dup(file.fileno()))
        return file

    monkeypatch.setattr(tempfile, "TemporaryFile", open_file)
    return opened


@pytest.mark.parametrize(
    ("name", "infos"), [("box", True), ("large image", False), ("dict", False), ("text in dict", True)]
)
def test_long_episodes_go_to_a_file(tmp_path, monkeypatch, name, infos):
    small_sizes(monkeypatch, vector_staging_bytes=1 << 12)
    opened = files_opened(monkeypatch)

    def make(i):
        return Varied(SPACES[name], spaces.Discrete(3), longest=60 if i else 3, infos=infos)

    play = Play(make, 3, AutoresetMode.NEXT_STEP, [None] * 150, recorder={"record_info": infos})
    recorded, singles = play_both(play, tmp_path)
    assert_same(recorded, singles)
    assert opened
    for descriptor in opened:
        os.close(descriptor)
    assert max(map(len, recorded.buffer)) > 20
    names = {path.name for path in (tmp_path / "vector").iterdir()}
    assert names <= {
        "metadata.json",
        "commit.npy",
        "steps",
        "episodes.npy",
        "checksums.npy",
        "strings.npy",
        "writer.lock",
    }


def test_the_staging_file_is_reused_and_refusals_are_told(tmp_path, monkeypatch):
    small_sizes(monkeypatch, vector_staging_bytes=1 << 10)
    opened = files_opened(monkeypatch)
    envs = RecordToBuffer(scripted([40, 200]), tmp_path)
    envs.reset()
    step_many(envs, 100)
    assert envs._session.staging.rows.nbytes <= 1 << 10
    (descriptor,) = opened
    size = os.fstat(descriptor).st_size
    with full_disk(monkeypatch), pytest.raises(StorageError):
        step_many(envs, 20)
    assert envs.unwrapped.envs[1].t < 120
    step_many(envs, 500)
    assert os.fstat(descriptor).st_size <= 4 * size
    envs.close()
    for descriptor in opened:
        os.close(descriptor)
    assert_whole(envs.buffer)


def test_memory_follows_the_longest_open_episode(tmp_path):
    envs = RecordToBuffer(scripted([3, 7]), tmp_path)
    envs.reset()
    step_many(envs, 20)
    early = envs._session.staging.rows.nbytes
    step_many(envs, 2000)
    assert envs._session.staging.rows.nbytes == early
    envs.close()


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_a_ring_keeps_no_strings_of_episodes_that_have_left(tmp_path, monkeypatch, mode):
    small_sizes(monkeypatch, strings_run=50_000)
    lengths, meta = [1, 2, 5000], {"task": "str"}
    envs = RecordToBuffer(scripted(lengths, mode), tmp_path, max_episodes=16, circular=True, meta_fields=meta)
    envs.reset()
    for number in range(300):
        if number % 10 < 5:  # no text of its own means the empty one
            envs.annotate(task=f"{number} " * 1000)
        envs.step(envs.action_space.sample())
    tasks = {episode.meta["task"][:4] for episode in envs.buffer}
    assert len(tasks) > 1
    envs.close()
    assert (tmp_path / "strings.npy").stat().st_size < 300_000  # of 600,000 that were stored
    assert check_buffer(tmp_path, progress=False).verified


def test_on_episode_may_release_the_buffer(tmp_path):
    releasing = Releasing()
    envs = releasing.recorder = RecordToBuffer(scripted([2] * 8), tmp_path, on_episode=releasing)
    envs.reset()
    with pytest.warns(UserWarning, match="is not recorded"):
        step_many(envs, 5)
    assert len(envs.buffer) == 0
    releasing.other.close()
    envs.reset()
    step_many(envs, 2)
    envs.close()
    assert [len(episode) for episode in envs.buffer] == [2] * 8
    assert check_buffer(tmp_path, progress=False).verified


@pytest.mark.parametrize("count", [2, 8])
def test_flags_whose_true_has_other_bits(tmp_path, count):
    class Odd(gym.vector.VectorWrapper):
        def step(self, actions):
            observations, rewards, terminated, truncated, infos = self.env.step(actions)
            return observations, rewards, (terminated * np.uint8(255)).view(bool), truncated, infos

    envs = RecordToBuffer(Odd(scripted([3] * count)), tmp_path)
    envs.reset()
    step_many(envs, 3)
    envs.close()
    assert len(envs.buffer) == count
    for episode in envs.buffer:
        assert episode["terminated"].view(np.uint8).tolist() == [0, 0, 1]
        assert not episode["truncated"].any()


def test_an_interrupt_that_leaves_the_buffer_half_held(tmp_path):
    RecordToBuffer(scripted([3, 3]), tmp_path).close()
    buffer = ReplayBuffer(tmp_path)
    envs = RecordToBuffer(scripted([3, 3]), buffer)
    envs.reset()
    step_many(envs, 1)
    envs._session.claim._writer = None  # as where an interrupt comes between two statements of its end
    envs.close()
    buffer.clear()
    again = RecordToBuffer(scripted([3, 3]), buffer)
    again.reset()
    step_many(again, 3)
    again.close()
    assert [len(episode) for episode in buffer] == [3, 3]
    buffer.close()
