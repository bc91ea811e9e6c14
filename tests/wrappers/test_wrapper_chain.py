"""Inside and outside of Gymnasium's wrappers, and calls in an order that nobody planned: what is recorded is what the
loop saw."""

import copy
import json
import pickle
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces, wrappers
from gymnasium.envs.registration import EnvSpec
from wrappers.scripted import Scripted, Witness, assert_witnessed, play

from gym_replay import Field, FieldError, RecordToBuffer, ReplayBuffer, check_buffer
from gym_replay.wrappers.vector import RecordToBuffer as VectorRecordToBuffer


class Picture(gym.Env):
    """Random images, actions in a box, and five steps."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012
    render_mode = "rgb_array"
    observation_space = spaces.Box(0, 255, (16, 16, 3), np.uint8)
    action_space = spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.render(), {}

    def step(self, action):
        self.t += 1
        return self.render(), float(self.np_random.normal(scale=3)), self.t >= 5, False, {}

    def render(self):
        return self.np_random.integers(0, 256, (16, 16, 3), np.uint8)


class Paired(Scripted):
    """Observes a dict of two."""

    observation_space = spaces.Dict({"a": spaces.Box(-9, 99, (2,)), "b": spaces.Discrete(100)})

    def _observation(self):
        return {"a": np.full(2, self.t, np.float32), "b": self.t}


def cartpole():
    env = gym.make("CartPole-v1", render_mode="rgb_array")
    env.unwrapped.metadata = {**env.metadata, "render_fps": 10_000}  # nobody watches
    return env


def torch_actions(action):
    import torch

    return torch.as_tensor(action)


def same(observation):
    return observation


WRAPPERS = {
    "AddRenderObservation": (cartpole, wrappers.AddRenderObservation),
    "AddRenderObservation, as a dict": (cartpole, lambda env: wrappers.AddRenderObservation(env, render_only=False)),
    "AddWhiteNoise": (cartpole, lambda env: wrappers.AddWhiteNoise(env, 0.5)),
    "Autoreset": (Scripted, wrappers.Autoreset),
    "ClipAction": (Picture, wrappers.ClipAction),
    "ClipReward": (Picture, lambda env: wrappers.ClipReward(env, -1, 1)),
    "DelayObservation": (cartpole, lambda env: wrappers.DelayObservation(env, 2)),
    "DiscretizeAction": (Picture, lambda env: wrappers.DiscretizeAction(env, 3)),
    "DiscretizeObservation": (Scripted, lambda env: wrappers.DiscretizeObservation(env, 7)),
    "DtypeObservation": (cartpole, lambda env: wrappers.DtypeObservation(env, np.float64)),
    "FilterObservation": (Paired, lambda env: wrappers.FilterObservation(env, ["b"])),
    "FlattenObservation": (Paired, wrappers.FlattenObservation),
    "FrameStackObservation": (cartpole, lambda env: wrappers.FrameStackObservation(env, 3)),
    "GrayscaleObservation": (Picture, wrappers.GrayscaleObservation),
    "HumanRendering": (cartpole, wrappers.HumanRendering),
    "MaxAndSkipObservation": (cartpole, lambda env: wrappers.MaxAndSkipObservation(env, 2)),
    "NormalizeObservation": (cartpole, wrappers.NormalizeObservation),
    "NormalizeReward": (cartpole, wrappers.NormalizeReward),
    "NumpyToTorch": (cartpole, lambda env: wrappers.NumpyToTorch(env)),
    "NumpyToTorch, as a dict": (Paired, lambda env: wrappers.NumpyToTorch(env)),
    "ObstructView": (Picture, lambda env: wrappers.ObstructView(env, 0.5, 3)),
    "OrderEnforcing": (Scripted, wrappers.OrderEnforcing),
    "PassiveEnvChecker": (Scripted, wrappers.PassiveEnvChecker),
    "RecordEpisodeStatistics": (cartpole, wrappers.RecordEpisodeStatistics),
    "RenderCollection": (cartpole, wrappers.RenderCollection),
    "RepeatAction": (cartpole, lambda env: wrappers.RepeatAction(env, 2)),
    "RescaleAction": (Picture, lambda env: wrappers.RescaleAction(env, np.float32(0), np.float32(1))),
    "RescaleObservation": (Scripted, lambda env: wrappers.RescaleObservation(env, np.float32(0), np.float32(1))),
    "ReshapeObservation": (Picture, lambda env: wrappers.ReshapeObservation(env, (8, 96))),
    "ResizeObservation": (Picture, lambda env: wrappers.ResizeObservation(env, (4, 4))),
    "StickyAction": (cartpole, lambda env: wrappers.StickyAction(env, 0.5)),
    "TimeAwareObservation": (cartpole, wrappers.TimeAwareObservation),
    "TimeLimit": (cartpole, lambda env: wrappers.TimeLimit(env, 5)),
    "TransformAction": (Picture, lambda env: wrappers.TransformAction(env, lambda a: a / 2, env.action_space)),
    "TransformObservation": (
        cartpole,
        lambda env: wrappers.TransformObservation(env, lambda o: o / 2, env.observation_space),
    ),
    "TransformReward": (cartpole, lambda env: wrappers.TransformReward(env, lambda r: r - 0.1)),
}
NEEDS = {"ResizeObservation": "cv2", "NumpyToTorch": "array_api_compat", "NumpyToTorch, as a dict": "array_api_compat"}
ELSEWHERE = {
    "vector",  # other environments
    "AtariPreprocessing",  # tried with ale-py
    "ArrayConversion",  # NumpyToTorch is one
    "JaxToNumpy",
    "JaxToTorch",
    "RecordVideo",  # writes with moviepy, and leaves observations alone
}


def test_every_wrapper_is_tried():
    assert {name.partition(",")[0] for name in WRAPPERS} == set(wrappers.__all__) - ELSEWHERE


@pytest.fixture(autouse=True)
def no_screen(monkeypatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")


@pytest.mark.parametrize("where", ["inside", "outside"])
@pytest.mark.parametrize("name", WRAPPERS)
def test_wrappers(tmp_path, name, where):
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    make, wrap = WRAPPERS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of wrappers that their environment is bare
        if where == "inside":
            witness = Witness(wrap(make()))
            env = recorder = RecordToBuffer(witness, tmp_path)
        else:
            witness = Witness(make())
            recorder = RecordToBuffer(witness, tmp_path)
            env = wrap(recorder)
        env.action_space.seed(0)
        play(env, 3, convert=torch_actions if "Torch" in name else same)
    if name == "Autoreset" and where == "outside":
        env.step(0)  # resets
    env.close()
    # What ends outside of the recorder is cut by the next reset.
    cut = range(3) if (name, where) == ("TimeLimit", "outside") else ()
    assert_witnessed(recorder.buffer, [episode for episode in witness.episodes if episode[1]], cut=cut)
    assert recorder.buffer.num_episodes == 3
    assert check_buffer(tmp_path, progress=False).ok


def test_stacked_frames_inside_are_warned_about(tmp_path):
    with pytest.warns(UserWarning, match="several times over"):
        RecordToBuffer(wrappers.TimeLimit(wrappers.FrameStackObservation(Scripted(), 4), 9), tmp_path / "a")
    wrappers.FrameStackObservation(RecordToBuffer(Scripted(), tmp_path / "b"), 4)


# --- Autoreset ---


def autoreset_episodes(env, steps):
    """Length and completeness of what is kept of so many steps, and the number of warnings."""
    env.reset()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(steps):
            try:
                env.step(1)
            except (FieldError, RuntimeError):  # noqa: PERF203
                continue
    env.close()
    for episode in env.buffer:
        assert episode["observation"][:, 0].tolist() == [0.0, *episode["reward"].tolist()]
    return [(len(episode), episode.complete) for episode in env.buffer], len(caught)


def test_a_dummy_step_is_no_transition(tmp_path):
    env = RecordToBuffer(wrappers.TimeLimit(wrappers.Autoreset(Scripted(3)), 99), tmp_path)
    assert autoreset_episodes(env, 14) == ([(3, True)] * 3 + [(2, False)], 0)
    first, *_, last = env.buffer
    assert first.meta["episode_seed"] == last.meta["episode_seed"] == -1
    assert first.meta["episode_start"] < last.meta["episode_start"]


def test_a_reset_right_after_the_end(tmp_path):
    env = RecordToBuffer(wrappers.Autoreset(Scripted(2)), tmp_path)
    for seed in range(2):
        env.reset(seed=seed)
        for _ in range(2):
            env.step(0)
    env.reset(seed=2)
    env.step(0)
    env.close()
    assert [(len(episode), int(episode.meta["episode_seed"])) for episode in env.buffer] == [(2, 0), (2, 1), (1, 2)]


@pytest.mark.parametrize("bad", [np.zeros(3, np.float32), RuntimeError("simulator")], ids=["shape", "raises"])
def test_autoreset_goes_on_after_a_transition_that_was_not_stored(tmp_path, bad):
    inner = Scripted(4, observation=lambda env, t: bad if (env.number, t) == (0, 2) else np.full(2, t, np.float32))
    env = RecordToBuffer(wrappers.Autoreset(inner), tmp_path)
    # Steps 3 and 4 of the first episode are not recorded; step 5 resets.
    assert autoreset_episodes(env, 14) == ([(1, False), (4, True), (4, True)], 2)


def test_a_reset_that_fails_inside_autoreset_is_tried_again(tmp_path):
    inner = Scripted(2)
    failures = [RuntimeError("once"), RuntimeError("twice")]

    def reset(real=inner.reset, **options):
        if inner.number == 0 and failures:
            raise failures.pop()
        return real(**options)

    inner.reset = reset
    env = RecordToBuffer(wrappers.Autoreset(inner), tmp_path)
    assert autoreset_episodes(env, 7) == ([(2, True), (2, True)], 0)


def test_a_time_limit_that_autoreset_does_not_see(tmp_path):
    """No reset follows, so no episode begins."""
    env = RecordToBuffer(wrappers.TimeLimit(wrappers.Autoreset(Scripted(9)), 4), tmp_path)
    assert autoreset_episodes(env, 8) == ([(4, True)], 4)


# --- calls in any order ---


def test_steps_between_episodes(tmp_path):
    env = RecordToBuffer(Scripted(2), tmp_path, extra_fields={"value": "int"})
    for number in range(2):
        with pytest.warns(UserWarning, match="not recorded; call reset"):
            result = env.step(0)
        assert result[1] == env.unwrapped.t
        env.annotate_step(value=7)  # of a step that is not recorded
        env.reset(seed=number)
        env.reset(seed=10 + number)
        env.step(1)
        env.step(2)
    env.close()
    assert [(int(e.meta["episode_seed"]), e["action"].tolist(), e["value"].tolist()) for e in env.buffer] == [
        (10, [1, 2], [0, 0]),
        (11, [1, 2], [0, 0]),
    ]


def test_one_step_episodes(tmp_path):
    witness = Witness(Scripted(1))
    env = RecordToBuffer(witness, tmp_path)
    play(env, 5)
    env.close()
    assert_witnessed(env.buffer, witness.episodes)


@pytest.mark.parametrize("calls", ["", "reset", "close", "reset close"])
def test_close_with_nothing_recorded(tmp_path, calls):
    env = RecordToBuffer(Scripted(), tmp_path)
    for call in [*calls.split(), "close"]:
        getattr(env, call)()
    assert len(env.buffer) == 0
    assert check_buffer(tmp_path, progress=False).ok


def test_recording_goes_on_after_close(tmp_path):
    env = RecordToBuffer(Scripted(2), tmp_path)
    env.reset()
    env.step(0)
    for _ in range(2):
        env.close()
    with ReplayBuffer.from_folder(tmp_path) as other:
        other.delete(0)  # the folder is free
    with pytest.warns(UserWarning, match="not recorded"):
        env.step(0)
    play(env, 1)
    env.close()
    assert [(episode.id, len(episode)) for episode in env.buffer] == [(1, 2)]


COPIES = {
    "pickle": pickle.dumps,
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "inside another wrapper": lambda env: copy.deepcopy(wrappers.TimeLimit(env, 9)),
}


@pytest.mark.parametrize("way", COPIES)
def test_a_recorder_is_not_copied(tmp_path, way):
    env = RecordToBuffer(Scripted(2), tmp_path)
    env.reset()
    env.step(0)
    with pytest.raises(TypeError, match=r"only writer.*pickle env\.spec"):
        COPIES[way](env)
    env.step(0)
    env.close()
    assert [len(episode) for episode in env.buffer] == [2]


DECLARATIONS = [
    {"meta_fields": {"x": Field("int")}},
    {"meta_fields": {"s": str, "t": np.dtype("f4"), "u": Field("float64", (2,), default=[1, np.nan])}},
    {"extra_fields": {"a": Field("float", ragged=True), "b": np.float32, "c": ("int", 3), "d": "bool"}},
    {"dtypes": {"observation": np.float64, "action": "int32", "info.x": np.int16}, "record_info": {"x"}},
    {"dtypes": {"info.x": Field("float32", ragged=True)}, "record_info": True},
]


@pytest.mark.parametrize("options", DECLARATIONS, ids=range(len(DECLARATIONS)))
@pytest.mark.parametrize("kind", ["single", "vector"])
def test_the_spec_is_written_as_json_whatever_is_declared(tmp_path, options, kind):
    if kind == "vector":
        env = VectorRecordToBuffer(gym.make_vec("CartPole-v1", num_envs=2), tmp_path, **options)
        arguments = {name: json.loads(json.dumps(value)) for name, value in env._saved_kwargs.items()}
        again = VectorRecordToBuffer(gym.make_vec("CartPole-v1", num_envs=2), **arguments)
    else:
        env = RecordToBuffer(gym.make("CartPole-v1"), tmp_path, **options)
        again = gym.make(EnvSpec.from_json(env.spec.to_json()))
    assert again.buffer.folder == env.buffer.folder
    assert again.buffer.metadata == env.buffer.metadata  # it has opened the same, or would have been refused
    env.close()
    again.close()


@pytest.mark.parametrize("way", [same, copy.deepcopy, lambda spec: pickle.loads(pickle.dumps(spec))])
def test_an_environment_made_from_the_spec_records_further(tmp_path, monkeypatch, way):
    monkeypatch.chdir(tmp_path)
    env = RecordToBuffer(
        gym.make("CartPole-v1", max_episode_steps=3), "data", meta_fields={"task": "str"}, record_info=["x"]
    )
    play(env, 1)
    env.close()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for _ in range(2):
        again = gym.make(way(env.spec))
        again.reset(seed=9)
        again.unwrapped.state *= 0
        again.get_wrapper_attr("annotate")(task="again")
        for _ in range(3):
            again.step(0)
        again.close()
    assert not list((tmp_path / "elsewhere").iterdir())
    with ReplayBuffer.from_folder(tmp_path / "data") as buffer:
        assert [episode.meta["task"] for episode in buffer] == ["", "again", "again"]


def test_two_recorders_in_one_chain(tmp_path):
    inner = RecordToBuffer(Scripted(3), tmp_path / "inner")
    halved = wrappers.TransformReward(inner, lambda reward: reward / 2)
    outer = RecordToBuffer(halved, tmp_path / "outer", extra_fields={"value": "int"})
    outer.reset()
    outer.annotate_step(value=5)
    for _ in range(3):
        outer.step(1)
    outer.close()
    assert inner.buffer.episode(0)["reward"].tolist() == [1, 2, 3]
    assert outer.buffer.episode(0)["reward"].tolist() == [0.5, 1, 1.5]
    assert outer.buffer.episode(0)["value"].tolist() == [5, 0, 0]
