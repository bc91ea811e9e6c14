"""Observing again: the same episodes with other observations, and each that did not come out as it was is named."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit, TransformObservation, TransformReward

from gym_replay import (
    ConcatReplayBuffer,
    ConfigMismatchError,
    EmptyBufferError,
    Field,
    FieldError,
    RecordToBuffer,
    ReplayBuffer,
    check_buffer,
    collect,
    merge,
    reobserve,
    replay,
)
from gym_replay.cli import main
from gym_replay.wrappers import SimulatorState, vector

TESTS = Path(__file__).parents[1]


class Drifting(gym.Env):
    """A point that is pushed about. Its goal is no part of what it observes.

    Args:
        source: ``"generator"`` of the environment; ``"inside"``, one that only a seed begins anew; or ``"nothing"``.
        length: of an episode.
    """

    observation_space = spaces.Box(-99, 99, (2,), np.float64)
    action_space = spaces.Discrete(3)

    def __init__(self, source="generator", length=6):
        self.source, self.length = source, length
        self.inside = np.random.default_rng()
        self.goal = np.zeros(2)
        self.place = np.zeros(2)

    def _noise(self):
        if self.source == "generator":
            return self.np_random.random(2)
        return (self.inside if self.source == "inside" else np.random.default_rng()).random(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.inside = np.random.default_rng(seed)
        self.t, self.place, self.goal = 0, self._noise(), self._noise()
        return self.place.copy(), {"goal": self.goal.copy()}

    def step(self, action):
        self.t += 1
        self.place = self.place + self._noise() * (action - 1)
        return self.place.copy(), float(self.place.sum()) / 3, self.t == self.length, False, {"goal": self.goal.copy()}


class SeesGoal(gym.ObservationWrapper):
    """Observes where the point is and where it is to go."""

    def __init__(self, env):
        super().__init__(env)
        self.observation_space = spaces.Dict({"place": env.observation_space, "goal": env.observation_space})

    def observation(self, observation):
        inner = self.unwrapped
        return {"place": inner.place.copy(), "goal": inner.goal.copy()}


@pytest.fixture(autouse=True)
def registered():
    for source in ("generator", "inside", "nothing"):
        gym.register(f"Drifting-{source}-v0", Drifting, kwargs={"source": source}, disable_env_checker=True)
    yield
    for source in ("generator", "inside", "nothing"):
        del gym.registry[f"Drifting-{source}-v0"]


def record(env, folder, seeds, *, limit=99, **options):
    recorder = RecordToBuffer(env, folder, **options)
    recorder.action_space.seed(4)
    for seed in seeds:
        recorder.reset(seed=seed)
        for t in range(limit):
            if "log_prob" in (options.get("extra_fields") or {}):
                recorder.annotate_step(log_prob=-t / 7)
            if any(recorder.step(recorder.action_space.sample())[2:4]):
                break
        if options.get("meta_fields"):
            recorder.buffer.update(-1, task=f"task {seed}", weight=[seed, 0.5]) if limit == 99 else None
    recorder.close()
    return ReplayBuffer.from_folder(folder)


def doubled(env):
    space = env.observation_space
    return TransformObservation(
        env, lambda observation: 2 * observation, spaces.Box(-np.inf, np.inf, space.shape, space.dtype)
    )


def rows_of(buffer, *names):
    return [[np.asarray(episode[name]).tolist() for name in names] for episode in buffer]


STEPS = ("action", "reward", "terminated", "truncated")


def observe(source, folder, **arguments):
    return reobserve(source, folder, progress=False, **arguments)


# --- what comes out ---


@pytest.mark.parametrize("num_workers", [1, 2])
def test_episodes_are_as_if_they_had_been_recorded_so_at_once(tmp_path, num_workers):
    states = collect("Drifting-generator-v0", tmp_path / "states", episodes=5, progress=False)
    at_once = collect(lambda: SeesGoal(Drifting()), tmp_path / "at once", episodes=5, progress=False)
    found = observe(states, tmp_path / "found", wrappers=[SeesGoal], num_workers=num_workers)
    assert not found.left_out
    assert not found.restored
    names = ("observation.place", "observation.goal", *STEPS)
    assert rows_of(found.buffer, *names) == rows_of(at_once, *names)
    assert found.buffer.meta["source_episode"].tolist() == [episode.id for episode in states]
    assert set(found.buffer.meta["source_buffer"]) == {states.metadata.uuid}
    for name in ("episode_seed", "episode_return", "collect_index", "episode_options"):
        assert list(found.buffer.meta[name]) == list(states.meta[name])
    for part in found.buffer.buffers if num_workers > 1 else [found.buffer]:
        assert check_buffer(part.folder, progress=False).verified


def test_meta_fields_extra_fields_infos_and_labels_come_along(tmp_path):
    extra, meta = {"log_prob": "float64"}, {"task": "str", "weight": ("float64", 2)}
    options = {"extra_fields": extra, "meta_fields": meta, "record_info": True}
    states = record(gym.make("Drifting-generator-v0"), tmp_path / "a", [3, 1, 2], **options)
    states.add_field("later", "float32", [np.ones(len(each)) for each in states])
    states.close()
    for episode, label in (("0", "good"), ("2", "odd")):
        assert main(["label", str(tmp_path / "a"), "--set", label, "--episodes", episode]) == 0
    found = observe(tmp_path / "a", tmp_path / "b", wrappers=[doubled]).buffer
    assert found.meta["task"] == ["task 3", "task 1", "task 2"]
    assert found.meta["weight"].tolist() == [[3.0, 0.5], [1.0, 0.5], [2.0, 0.5]]
    source = ReplayBuffer.from_folder(tmp_path / "a", read_only=True)
    assert rows_of(found, "log_prob", "info.goal", *STEPS) == rows_of(source, "log_prob", "info.goal", *STEPS)
    assert "later" not in found.fieldnames
    labels = json.loads((found.folder / "labels.json").read_text())["labels"]
    assert labels == {found.metadata.uuid: {"0": "good", "2": "odd"}}
    for mine, theirs in zip(found, source, strict=True):
        assert (mine["observation"] == 2 * theirs["observation"]).all()
    plain = observe(tmp_path / "a", tmp_path / "c", wrappers=[doubled], record_info=False).buffer
    assert "info.goal" not in plain.fieldnames


def test_cut_episodes_and_those_without_a_seed(tmp_path):
    states = record(gym.make("Drifting-generator-v0"), tmp_path / "a", [7, None, None, 8, None], limit=4)
    found = observe(states, tmp_path / "b", wrappers=[SeesGoal])
    assert not found.left_out
    assert rows_of(found.buffer, "observation.place", *STEPS) == rows_of(states, "observation", *STEPS)
    assert [episode.complete for episode in found.buffer] == [episode.complete for episode in states] == [False] * 5
    for name in ("episode_rng", "episode_seed", "episode_complete"):
        assert found.buffer.meta[name].tolist() == states.meta[name].tolist()


@pytest.mark.parametrize("num_workers", [1, 3])
def test_what_an_environment_carries_from_one_episode_to_the_next(tmp_path, num_workers):
    states = record(gym.make("Drifting-inside-v0"), tmp_path / "a", [7, None, None, None, 9, None])
    found = observe(states, tmp_path / "b", wrappers=[SeesGoal], num_workers=num_workers)
    assert not found.left_out, found.left_out
    assert rows_of(found.buffer, "observation.place", *STEPS) == rows_of(states, "observation", *STEPS)


def test_episodes_of_a_vector_environment_of_several_folders_and_chosen_ones(tmp_path):
    for name, seed in (("a", 0), ("b", 100)):
        envs = gym.make_vec("CartPole-v1", 3, vectorization_mode="sync")
        recorder = vector.RecordToBuffer(envs, tmp_path / "all" / name)
        recorder.action_space.seed(seed)
        recorder.reset(seed=seed)
        for _ in range(60):
            recorder.step(recorder.action_space.sample())
        recorder.close()
    with ConcatReplayBuffer(tmp_path / "all") as states:
        found = observe(states, tmp_path / "b", wrappers=[doubled], num_workers=2)
        assert not found.left_out
        assert rows_of(found.buffer, *STEPS) == rows_of(states, *STEPS)
        some = observe(states, tmp_path / "c", wrappers=[doubled], episodes=[1, 3, len(states) - 1]).buffer
        assert rows_of(some, *STEPS) == [rows_of(states, *STEPS)[index] for index in (1, 3, len(states) - 1)]
        longest = max(states.episode_lens)
        some = observe(states, tmp_path / "d", wrappers=[doubled], where=f"length == {longest}").buffer
        assert set(some.episode_lens) == {longest}


def test_another_environment_of_the_same_actions(tmp_path):
    states = collect("Drifting-generator-v0", tmp_path / "a", episodes=3, progress=False)
    found = observe(states, tmp_path / "b", env=lambda: SeesGoal(Drifting()))
    assert not found.left_out
    assert rows_of(found.buffer, "observation.place", *STEPS) == rows_of(states, "observation", *STEPS)
    found = observe(states, tmp_path / "c", env_kwargs={"length": 5})
    assert [each.index for each in found.left_out] == [0, 1, 2]


# --- what does not come out as it was ---


@pytest.mark.parametrize("field", ["reward", "observation", "terminated"])
def test_an_episode_that_differs_is_named_and_left_out(tmp_path, field):
    states = collect("Drifting-generator-v0", tmp_path / "a", episodes=4, progress=False)
    rows = states[2][field].copy()
    rows[3] = ~rows[3] if field == "terminated" else rows[3] + 1
    states.update(2, **{field: rows})
    found = observe(states, tmp_path / "b", wrappers=[SeesGoal])
    assert found.buffer.meta["source_episode"].tolist() == [0, 1, 3]
    (left_out,) = found.left_out
    assert (left_out.index, left_out.episode) == (2, 2)
    assert f"{field}[3]" in left_out.reason
    assert "1 left out" in str(found)
    again = observe(states, tmp_path / "b", wrappers=[SeesGoal])
    assert again.left_out == found.left_out
    assert len(again.buffer) == 3


@pytest.mark.parametrize(
    ("wrapper", "reason"),
    [
        (lambda env: TransformReward(env, lambda reward: reward + 1), "'reward', as it is recorded"),
        (lambda env: TimeLimit(env, 3), "it ended after 3 steps, and was recorded with 6"),
    ],
)
def test_wrappers_that_change_more_than_observations(tmp_path, wrapper, reason):
    states = collect("Drifting-generator-v0", tmp_path / "a", episodes=2, progress=False)
    found = observe(states, tmp_path / "b", wrappers=[wrapper])
    assert len(found.buffer) == 0
    assert [reason in each.reason for each in found.left_out] == [True, True]


def test_what_depends_on_nothing_that_was_recorded(tmp_path):
    states = record(gym.make("Drifting-nothing-v0"), tmp_path / "a", [1, 2])
    found = observe(states, tmp_path / "b", wrappers=[SeesGoal])
    assert len(found.left_out) == 2


# --- states of a simulator ---


def place_of(env):
    return {"place": env.unwrapped.place, "t": env.unwrapped.t}


def put(env, state):
    env.unwrapped.place = state["place"].copy()


def test_what_cannot_be_executed_again_is_restored_from_its_states(tmp_path):
    env = SimulatorState(gym.make("Drifting-nothing-v0"), place_of)
    states = record(env, tmp_path / "a", [1, 2], record_info=["simulator"])
    assert states[0]["info.simulator.place"].tolist() == states[0]["observation"].tolist()
    assert states[0]["info.simulator.t"].tolist() == list(range(7))
    assert states.make_env().unwrapped.length == 6
    found = observe(states, tmp_path / "b", wrappers=[SeesGoal], restore=put)
    assert (found.restored, found.left_out) == ((0, 1), ())
    assert rows_of(found.buffer, "observation.place", *STEPS) == rows_of(states, "observation", *STEPS)
    assert found.buffer.meta["source_restored"].tolist() == [True, True]
    assert "2 of them restored" in str(found)
    without = observe(states, tmp_path / "c", wrappers=[SeesGoal])
    assert len(without.left_out) == 2
    cut = record(SimulatorState(Drifting("nothing"), place_of), tmp_path / "d", [1, 2], limit=4, record_info=True)
    found = observe(cut, tmp_path / "e", env=lambda: Drifting("nothing"), wrappers=[SeesGoal], restore=put)
    assert found.restored == (0, 1)
    assert [episode.complete for episode in found.buffer] == [False, False]


def test_an_environment_of_another_simulator():
    with pytest.raises(FieldError, match="MuJoCo"):
        SimulatorState(Drifting())


# --- interruptions ---


class Failing(gym.Wrapper):
    """Is interrupted after so many steps of all its instances."""

    left = [1 << 62]  # noqa: RUF012  # what a list holds does not tell one wrapper from another

    def step(self, action):
        self.left[0] -= 1
        if self.left[0] < 0:
            raise KeyboardInterrupt
        return self.env.step(action)


def test_a_run_that_was_interrupted_goes_on(tmp_path):
    states = collect("Drifting-generator-v0", tmp_path / "a", episodes=7, progress=False)
    rewards = states[1]["reward"].copy()
    rewards[0] = 9
    states.update(1, reward=rewards)
    whole = observe(states, tmp_path / "whole", wrappers=[SeesGoal, Failing])
    for step in (8, 15):
        Failing.left[0] = step
        with pytest.raises(KeyboardInterrupt):
            observe(states, tmp_path / "b", wrappers=[SeesGoal, Failing])
        with ReplayBuffer.from_folder(tmp_path / "b") as part:  # nobody holds its lock
            part.acquire()
            assert 0 < len(part) < 6
    Failing.left[0] = 1 << 62
    found = observe(states, tmp_path / "b", wrappers=[SeesGoal, Failing])
    names = ("observation.place", "observation.goal", *STEPS)
    assert rows_of(found.buffer, *names) == rows_of(whole.buffer, *names)
    assert found.left_out == whole.left_out
    assert len(found.left_out) == 1


CHILD = """
import sys, time
import gymnasium as gym
from gym_replay import reobserve

class Slow(gym.Wrapper):
    def step(self, action):
        time.sleep(0.01)
        return self.env.step(action)

if __name__ == "__main__":
    reobserve(sys.argv[1], sys.argv[2], wrappers=[Slow], num_workers=int(sys.argv[3]), progress=False)
"""


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_run_that_was_killed_goes_on(tmp_path, num_workers):
    states = collect("CartPole-v1", tmp_path / "a", episodes=12, progress=False)
    states.close()
    (tmp_path / "child.py").write_text(CHILD)
    command = [sys.executable, "child.py", "a", "b", str(num_workers)]
    process = subprocess.Popen(command, cwd=tmp_path, start_new_session=True)
    parts = [tmp_path / "b"] if num_workers == 1 else [tmp_path / f"b/shards/part-{k:05}" for k in range(2)]

    def counts():
        there = [part for part in parts if (part / "reobserve.json").exists()]
        return [len(ReplayBuffer.from_folder(part, read_only=True)) for part in there]

    deadline = time.monotonic() + 60
    while sum(counts()) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = sum(counts())
    assert before >= 2
    subprocess.run(command, cwd=tmp_path, check=True, timeout=120)
    with ConcatReplayBuffer(parts) as found:
        assert found.meta["source_episode"].tolist() == list(range(12))
        source = ReplayBuffer.from_folder(tmp_path / "a", read_only=True)
        assert rows_of(found, "observation", *STEPS) == rows_of(source, "observation", *STEPS)


# --- wrong arguments ---


def turned(env):
    return gym.wrappers.TransformAction(env, lambda action: 2 - action, spaces.Discrete(2))


@pytest.mark.parametrize(
    ("arguments", "error", "what"),
    [
        ({"frames": "both"}, FieldError, "expected one of"),
        ({"frames": "only", "env": Drifting}, FieldError, "no render mode"),
        ({"wrappers": "SeesGoal"}, FieldError, "wrappers"),
        ({"wrappers": [turned]}, ConfigMismatchError, "other actions"),
        ({"env": "CartPole-v1"}, ConfigMismatchError, "action"),
        ({"where": "length > 100"}, EmptyBufferError, "no episode"),
        ({"num_workers": 0}, FieldError, "num_workers"),
        ({"wrapper": [SeesGoal]}, TypeError, "did you mean 'wrappers'"),
    ],
)
def test_wrong_arguments_leave_nothing_behind(tmp_path, arguments, error, what):
    states = collect("Drifting-generator-v0", tmp_path / "a", episodes=2, progress=False)
    with pytest.raises(error, match=what):
        observe(states, tmp_path / "b", **arguments)
    assert not (tmp_path / "b").exists()


def test_folders_that_are_of_something_else(tmp_path):
    states = collect("Drifting-generator-v0", tmp_path / "a", episodes=3, progress=False)
    with pytest.raises(FieldError, match="the source itself"):
        observe(states, tmp_path / "a")
    with merge([states], tmp_path / "copy", progress=False), pytest.raises(ConfigMismatchError, match="did not make"):
        observe(states, tmp_path / "copy")
    observe(states, tmp_path / "b", wrappers=[SeesGoal])
    with pytest.raises(ConfigMismatchError, match="wrappers"):
        observe(states, tmp_path / "b", wrappers=[doubled])
    with pytest.raises(ConfigMismatchError, match="episodes"):
        observe(states, tmp_path / "b", wrappers=[SeesGoal], episodes=[0])
    with ReplayBuffer(tmp_path / "hand", fields={"observation": Field("float", (2,), state=True)}) as hand:
        hand.store_episode(observation=np.zeros((3, 2)))
        with pytest.raises(FieldError, match="not made by RecordToBuffer"):
            observe(hand, tmp_path / "c")


def test_overwriting_begins_anew(tmp_path):
    states = collect("Drifting-generator-v0", tmp_path / "a", episodes=3, progress=False)
    found = observe(states, tmp_path / "b", overwrite=True).buffer  # where nothing is, too
    rows = rows_of(found, "observation", *STEPS)
    for mistake, error in ({"wrappers": [turned]}, ConfigMismatchError), ({"num_workers": 2}, FieldError):
        with pytest.raises(error):
            observe(states, tmp_path / "b", overwrite=True, **mistake)
        assert rows_of(ReplayBuffer.from_folder(tmp_path / "b"), "observation", *STEPS) == rows  # nothing is lost
    with pytest.raises(ConfigMismatchError, match="overwrite=True to replace the buffer"):
        observe(states, tmp_path / "b", wrappers=[SeesGoal])
    found = observe(states, tmp_path / "b", wrappers=[SeesGoal], episodes=[0, 2], overwrite=True).buffer
    assert found.meta["source_episode"].tolist() == [0, 2]
    assert rows_of(found, "observation.place") == [row[:1] for row in (rows[0], rows[2])]
    assert len(observe(states, tmp_path / "b", wrappers=[SeesGoal], episodes=[0, 2]).buffer) == 2  # and goes on
    assert main(["reobserve", str(tmp_path / "a"), str(tmp_path / "b"), "--overwrite", "--quiet"]) == 0
    assert rows_of(ReplayBuffer.from_folder(tmp_path / "b"), "observation", *STEPS) == rows
    observe(states, tmp_path / "c", num_workers=2)
    with pytest.raises(ConfigMismatchError, match="several processes"):
        observe(states, tmp_path / "c", overwrite=True)


def test_the_new_buffer_replays_where_its_environment_can_be_made(tmp_path):
    states = collect("CartPole-v1", tmp_path / "a", episodes=2, progress=False)
    found = observe(states, tmp_path / "b").buffer
    assert [replay(found, index).status for index in range(2)] == ["equal", "equal"]


def test_frames_are_replayed_and_observed_again(tmp_path):
    pytest.importorskip("pygame")
    states = collect("CartPole-v1", tmp_path / "a", episodes=2, max_episode_steps=5, progress=False)
    for frames in "only", "beside":
        found = observe(states, tmp_path / frames, frames=frames).buffer
        assert replay(found, 0).status == "equal"
        name = "observation" if frames == "only" else "observation.pixels"
        wrap = gym.wrappers.GrayscaleObservation if frames == "only" else gym.wrappers.FlattenObservation
        again = observe(found, tmp_path / f"{frames} again", wrappers=[wrap])
        assert not again.left_out
        assert again.buffer[0]["observation"].ndim == found[0][name].ndim - (1 if frames == "only" else 2)


# --- the verb ---


def test_the_verb(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "seeing.py").write_text(
        "import gymnasium as gym\n\n\ndef doubled(env):\n    space = gym.spaces.Box(-1e9, 1e9, (4,), 'float32')\n"
        "    return gym.wrappers.TransformObservation(env, lambda o: 2 * o, space)\n"
    )
    states = collect("CartPole-v1", "a", episodes=4, progress=False)
    rewards = states[0]["reward"].copy()
    rewards[0] = 7
    states.update(0, reward=rewards)
    states.close()
    status = main(["reobserve", "a", "b", "--wrapper", "seeing:doubled", "--episodes", "0:3", "--quiet", "--json"])
    said = json.loads(capsys.readouterr().out)
    assert status == 1
    assert (said["num_episodes"], said["restored"]) == (2, [])
    assert said["left_out"][0]["index"] == 0
    assert "reward[0]" in said["left_out"][0]["reason"]
    status = main(["reobserve", "a", "c", "--wrapper", "seeing:doubled", "--episodes", "1:", "--workers", "2"])
    out = capsys.readouterr().out
    assert (status, out.count("0 left out")) == (0, 1)
    with ConcatReplayBuffer("c") as found, ReplayBuffer.from_folder("a", read_only=True) as source:
        assert len(found) == 3
        assert (found[0]["observation"] == 2 * source[1]["observation"]).all()
