"""What a recorded folder may ask of the environment that is made of it."""

import json
import warnings

import gymnasium as gym
import numpy as np
import pytest
from format_helpers import read_metadata, write_metadata

from gym_replay import FieldError, GymReplayError, MakeEnvError, RecordToBuffer, ReplayBuffer, replay
from gym_replay.cli import main

ID = "gym_replay_tests/Asked-v0"
ASKED: list[dict] = []


class Asked(gym.Env):
    """Notes what it is asked for."""

    metadata = {"render_modes": ["human", "rgb_array"]}  # noqa: RUF012
    observation_space = gym.spaces.Box(0, 1, (2,))
    action_space = gym.spaces.Discrete(2)

    def __init__(self, render_mode=None, **asked):
        self.render_mode = render_mode
        ASKED.append({**asked, "render_mode": render_mode})

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        ASKED.append({"options": options})
        return np.zeros(2, np.float32), {}

    def step(self, action):
        return np.zeros(2, np.float32), 0.0, True, False, {}

    def render(self):
        return np.zeros((4, 4, 3), np.uint8)


@pytest.fixture(scope="module", autouse=True)
def registered():
    gym.register(ID, Asked, kwargs={"horizon": 5_000})
    yield
    del gym.registry[ID]


def record(folder, *, options=None, wrap=lambda env: env, **kwargs):
    env = RecordToBuffer(wrap(gym.make(ID, disable_env_checker=True, **kwargs)), folder)
    env.reset(seed=1, options=options)
    env.step(1)
    env.close()
    ASKED.clear()
    return ReplayBuffer.from_folder(folder, read_only=True)


HARMLESS = {
    "small numbers": {"size": 1000, "gap": -3, "gravity": 9.81, "wide": True, "name": None},
    "not finite": {"low": float("-inf"), "high": float("inf")},
    "words": {"map_name": "4x4", "obs_type": "rgb", "mode": "left to right_2"},
    "maps": {"desc": ["SFFF", "FHFH", "FFFH", "HFFG"], "maze": [[1, 0, 1]] * 20},
    "nested": {"config": {"lanes": 4, "rates": (0.1, 0.2), "deeper": {"x": [1, 2]}}},
    "arrays": {"weights": np.arange(100.0)},
    "as registered": {"horizon": 5_000},
}
REFUSED = {
    "a large number": {"size": 43_000},
    "a large number below": {"config": {"grid": [[5, 10**6]]}},
    "a large float": {"size": 1e9},
    "a large array": {"table": np.zeros(5000)},
    "large values": {"table": np.array([1, 1 << 40])},
    "an absolute file": {"model": "/etc/passwd"},
    "a file": {"model": "model.pkl"},
    "a file above": {"config": {"xml": "../secret"}},
    "an address": {"url": "http://example.org"},
    "a module": {"env_id": "os:system"},
    "a home": {"path": "~"},
    "a file as a key": {"config": {"/etc/passwd": 1}},
    "a long text": {"text": "a" * 1000},
    "a window": {"config": {"gui": True}},
    "another window": {"render": True},
    "a human": {"config": {"mode": "human"}},
}


@pytest.mark.parametrize("kwargs", HARMLESS.values(), ids=list(HARMLESS))
def test_harmless_arguments_are_handed_on(kwargs, tmp_path):
    buffer = record(tmp_path, **kwargs)
    buffer.make_env().close()
    expected = {"horizon": 5_000, **kwargs, "render_mode": None}
    assert json.dumps(ASKED[0], default=list, sort_keys=True) == json.dumps(expected, default=list, sort_keys=True)
    assert replay(buffer, 0).equal


@pytest.mark.parametrize("kwargs", REFUSED.values(), ids=list(REFUSED))
def test_others_are_refused_unless_somebody_vouches_or_names_them(kwargs, tmp_path, capsys):
    buffer = record(tmp_path, **kwargs)
    (name,) = kwargs
    for attempt in (
        buffer.make_env,
        lambda: replay(buffer, 0),
        lambda: next(replay(buffer, 0, render=True)),
    ):
        with pytest.raises(MakeEnvError, match=f"'{name}'.*trust=True"):
            attempt()
    assert main(["replay", str(tmp_path)]) == 2
    assert "--trust" in capsys.readouterr().err
    assert ASKED == []

    buffer.make_env(**{name: 3}).close()
    assert [{"horizon": 5_000, name: 3, "render_mode": None}] == ASKED
    with gym.make(ID) as env:
        assert replay(buffer, 0, env=env).equal
    ASKED.clear()
    assert replay(buffer, 0, trust=True).equal
    np.testing.assert_equal(ASKED[0][name], kwargs[name])
    assert main(["replay", str(tmp_path), "--trust"]) == 0


@pytest.mark.parametrize("trust", [False, True])
@pytest.mark.parametrize(("mode", "expected"), [("human", None), ("rgb_array", "rgb_array"), ("rgb_array_list", None)])
def test_a_recorded_window_does_not_open(mode, expected, trust, tmp_path):
    buffer = record(tmp_path / "data")
    told = read_metadata(tmp_path / "data")
    told["environment"]["env_spec"]["kwargs"]["render_mode"] = mode
    write_metadata(tmp_path / "data", told)
    buffer = ReplayBuffer.from_folder(tmp_path / "data", read_only=True)
    buffer.make_env(trust=trust).close()
    assert replay(buffer, 0, trust=trust).equal
    assert {asked["render_mode"] for asked in ASKED if "render_mode" in asked} == {expected}
    ASKED.clear()
    buffer.make_env(render_mode="rgb_array").close()
    assert ASKED[0]["render_mode"] == "rgb_array"


def test_a_wrapper_that_opens_a_window_is_left_out(tmp_path):
    record(tmp_path).close()
    told = read_metadata(tmp_path)
    wrapper = {"name": "HumanRendering", "entry_point": "gymnasium.wrappers.rendering:HumanRendering", "kwargs": {}}
    told["environment"]["env_spec"]["additional_wrappers"] = [wrapper]
    write_metadata(tmp_path, told)
    with ReplayBuffer.from_folder(tmp_path, read_only=True) as buffer, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        env = buffer.make_env()
    while isinstance(env, gym.Wrapper):
        assert type(env).__name__ != "HumanRendering"
        env = env.env


def test_arguments_of_wrappers_are_looked_at_too(tmp_path):
    with record(tmp_path, wrap=lambda env: gym.wrappers.DelayObservation(env, 5)) as buffer:
        buffer.make_env().close()
    told = json.loads(json.dumps(read_metadata(tmp_path)).replace('"delay": 5', '"delay": 10000000'))
    write_metadata(tmp_path, told)
    with pytest.raises(MakeEnvError, match=r"'delay' is 10000000.*trust=True"):
        ReplayBuffer.from_folder(tmp_path, read_only=True).make_env()


def test_a_long_time_limit_is_harmless(tmp_path):
    with record(tmp_path, wrap=lambda env: gym.wrappers.TimeLimit(env, 10**9)) as buffer:
        assert replay(buffer, 0).equal


@pytest.mark.parametrize("options", [{"size": 10**6}, {"file": "/etc/passwd"}, {"render": True}, {"a": [{"b": "x.y"}]}])
def test_recorded_reset_options_are_looked_at_too(options, tmp_path, capsys):
    buffer = record(tmp_path, options=options)
    for attempt in (lambda: replay(buffer, 0), lambda: replay(buffer, 0, env=gym.make(ID))):
        with pytest.raises(MakeEnvError, match=r"reset options.*trust=True"):
            attempt()
    assert {"options": options} not in ASKED
    assert main(["replay", str(tmp_path)]) == 2
    assert replay(buffer, 0, trust=True).equal
    assert {"options": options} in ASKED
    assert main(["replay", str(tmp_path), "--trust"]) == 0


def test_harmless_reset_options_are_handed_on(tmp_path):
    assert replay(record(tmp_path, options={"start": [1, 2], "mode": "easy", "low": -0.5}), 0).equal
    assert {"options": {"start": [1, 2], "mode": "easy", "low": -0.5}} in ASKED


def _changed(folder, **members):
    told = read_metadata(folder)
    for info in (*told["fields"], *told["meta_fields"]):
        info |= members.get(info["name"], {})
    write_metadata(folder, told)


@pytest.mark.parametrize(
    "members",
    [
        {"episode_seed": {"dtype": "float64", "default": 0.0}},
        {"episode_rng": {"shape": [10], "dtype": "uint32"}},
        {"terminated": {"dtype": "int8", "default": 0}},
        {"observation": {"shape": [1, 2]}},
        {"episode_options": {"name": "other"}},
        {"truncated": {"name": "other"}},
        {"action": {"name": "other"}},
    ],
)
def test_what_was_stored_as_something_else_is_said(members, tmp_path):
    record(tmp_path).close()
    _changed(tmp_path, **members)
    with pytest.raises(GymReplayError), ReplayBuffer.from_folder(tmp_path, read_only=True) as buffer:
        replay(buffer, 0)


@pytest.mark.parametrize("spec", [[], "x", 3, True, {}, {"id": 3}, {"id": ID}, [{"id": ID}]])
def test_an_env_spec_that_is_none_is_an_error_of_ours(spec, tmp_path, capsys):
    record(tmp_path).close()
    told = read_metadata(tmp_path)
    told["environment"]["env_spec"] = spec
    write_metadata(tmp_path, told)
    buffer = ReplayBuffer.from_folder(tmp_path, read_only=True)
    for attempt in (
        buffer.make_env,
        lambda: buffer.env_spec,
        lambda: replay(buffer, 0),
        lambda: RecordToBuffer(gym.make("CartPole-v1"), tmp_path),
    ):
        with pytest.raises(GymReplayError):
            attempt()
    for verb in ("info", "replay", "check"):
        main([verb, str(tmp_path)])
        assert "--debug" not in capsys.readouterr().err


def test_a_buffer_that_nobody_recorded_cannot_be_replayed(tmp_path):
    with ReplayBuffer(tmp_path, fields={"x": "float"}) as buffer:
        buffer.store_episode(x=[1.0])
        with pytest.raises(FieldError, match="not made by RecordToBuffer"):
            replay(buffer, 0)
