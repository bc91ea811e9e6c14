"""Environments that do what they should not: what comes is recorded right or refused by name, what was recorded before
is safe, and recording goes on after the next reset."""

import warnings

import numpy as np
import pytest
import torch
from gymnasium import spaces
from internals import small_sizes
from wrappers.scripted import Scripted, full_disk, play

from gym_replay import FieldError, RecordToBuffer, ReplayBuffer, StorageError, check_buffer, register_space

EXTRAS = {"extra_fields": {"value": ("float", (), -1.0)}, "record_info": True}


def contents(folder, name="reward"):
    """Of each episode, as a reader finds it: the rows of a field, and whether it was cut."""
    assert check_buffer(folder, progress=False).ok
    with ReplayBuffer.from_folder(folder, read_only=True) as buffer:
        return [(episode[name].tolist(), episode.complete) for episode in buffer]


def play_and_refuse(folder, answers, message, **options):
    """Three episodes of four steps; in the second one, step 3 is answered with what is refused."""
    given = {
        name: lambda env, t, name=name, value=value: value if (env.number, t) == (1, 3) else GOOD[name](t)
        for name, value in answers.items()
    }
    env = RecordToBuffer(Scripted(4, **given), folder, **options)
    play(env)
    env.reset()
    env.step(1)
    if "extra_fields" in options:
        env.annotate_step(value=7)
    env.step(1)
    with pytest.raises(FieldError, match=message):
        env.step(1)
    for _ in range(2):
        with pytest.warns(UserWarning, match="not recorded"):
            env.step(1)
    play(env)
    env.close()
    if "extra_fields" in options:
        assert contents(folder, "value") == [([-1.0] * 4, True), ([-1.0, 7.0], False), ([-1.0] * 4, True)]
    return env


GOOD = {
    "observation": lambda t: np.full(2, t, np.float32),
    "reward": float,
    "terminated": lambda t: t >= 4,
    "truncated": lambda t: False,
}
REFUSED = {
    "observation of another shape": (
        "observation",
        np.zeros(3, np.float32),
        r"'observation': expected shape \(2,\).*\(3,\)",
    ),
    "observation with an axis more": ("observation", np.zeros((1, 2), np.float32), r"'observation'.*reshape"),
    "observation None": ("observation", None, "'observation': expected numbers, got NoneType None"),
    "observation of strings": ("observation", ["a", "b"], "'observation': expected numbers, got list"),
    "observation of a dict": ("observation", {"a": 1}, "'observation': expected numbers, got dict"),
    "observation too large": ("observation", np.array([1e300, 0]), r"'observation': 1e\+300 is too large for float32"),
    "reward None": ("reward", None, "'reward': expected a number, got None; return 0.0"),
    "reward of a string": ("reward", "1.0", "'reward': expected numbers, got str '1.0'; convert it"),
    "reward of two": ("reward", np.ones(2), r"'reward': expected shape \(\), got \(2,\)"),
    "reward of none": ("reward", [], r"'reward': expected shape \(\), got \(0,\)"),
    "complex reward": ("reward", 1j, "'reward': expected numbers, got complex"),
    "terminated None": ("terminated", None, "terminated.* got (NoneType )?None; return True or False"),
    "terminated 0": ("terminated", 0, "terminated.* got (int )?0; return True or False"),
    "terminated string": ("terminated", "False", "terminated.*; return True or False"),
    "truncated of two": ("truncated", np.array([True, False]), "truncated.*; return True or False"),
    "truncated 0.0": ("truncated", np.float64(0), "truncated.*; return True or False"),
}


@pytest.mark.parametrize("options", [{}, EXTRAS], ids=["plain", "extras"])
@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_refused(tmp_path, kind, options):
    name, value, message = REFUSED[kind]
    play_and_refuse(tmp_path, {name: value}, message, **options)
    assert contents(tmp_path) == [([1, 2, 3, 4], True), ([1, 2], False), ([1, 2, 3, 4], True)]


def test_an_episode_that_is_not_kept_where_something_is_refused(tmp_path):
    play_and_refuse(tmp_path, {"reward": None}, "reward", on_incomplete="discard")
    assert contents(tmp_path) == [([1, 2, 3, 4], True)] * 2


@pytest.mark.parametrize("kind", [kind for kind in REFUSED if kind.startswith("observation")])
def test_a_reset_whose_observation_is_refused(tmp_path, kind):
    _, value, message = REFUSED[kind]
    env = RecordToBuffer(
        Scripted(4, observation=lambda env, t: value if (env.number, t) == (1, 0) else GOOD["observation"](t)), tmp_path
    )
    env.reset()
    env.step(1)
    with pytest.raises(FieldError, match=message):
        env.reset()
    with pytest.warns(UserWarning, match="not recorded"):
        env.step(1)
    play(env)
    env.close()
    assert contents(tmp_path) == [([1], False), ([1, 2, 3, 4], True)]


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ((np.zeros(2), 1.0, False, {}), r"step.*expected \(observation, reward, terminated, truncated, info\)"),
        (None, r"step.*expected \(observation, reward, terminated, truncated, info\)"),
    ],
    ids=["four", "None"],
)
def test_a_step_of_another_interface(tmp_path, result, message):
    inner = Scripted(4)
    env = RecordToBuffer(inner, tmp_path)
    play(env)
    env.reset()
    env.step(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inner, "step", lambda action: result)
        with pytest.raises(FieldError, match=message):
            env.step(1)
    with pytest.warns(UserWarning, match="not recorded"):
        env.step(1)
    env.close()
    assert contents(tmp_path) == [([1, 2, 3, 4], True), ([1], False)]


@pytest.mark.parametrize("result", [np.zeros(2, np.float32), None, (np.zeros(2), {}, 1)], ids=["bare", "None", "three"])
def test_a_reset_of_another_interface(tmp_path, result):
    inner = Scripted(4)
    env = RecordToBuffer(inner, tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inner, "reset", lambda **options: result)
        with pytest.raises(FieldError, match=r"reset.*expected \(observation, info\)"):
            env.reset()
    play(env)
    env.close()
    assert contents(tmp_path) == [([1, 2, 3, 4], True)]


# --- what is recorded right ---

REWARDS = {
    "int": 3,
    "bool": True,
    "float32": np.float32(0.1),
    "float16": np.float16(0.1),
    "int8": np.int8(-3),
    "uint64": np.uint64(1 << 60),
    "0-d": np.array(2.5),
    "one element": np.array([2.5]),
    "list": [2.5],
    "tensor": torch.tensor(2.5),
    "tensor of one": torch.tensor([2.5]),
    "bfloat16": torch.tensor(2.5, dtype=torch.bfloat16),
    "nan": np.nan,
    "inf": -np.inf,
}


@pytest.mark.parametrize("kind", REWARDS)
@pytest.mark.parametrize("chunk_rows", [2, 1 << 14])
def test_rewards(tmp_path, monkeypatch, kind, chunk_rows):
    small_sizes(monkeypatch, chunk_rows=chunk_rows)
    env = RecordToBuffer(Scripted(6, reward=dict.fromkeys((1, 5), REWARDS[kind])), tmp_path)
    play(env)
    env.close()
    value = float(torch.as_tensor(REWARDS[kind], dtype=torch.float64).reshape(()))
    (episode,) = env.buffer
    np.testing.assert_array_equal(episode["reward"], [value, 2, 3, 4, value, 6])
    np.testing.assert_array_equal(episode.meta["episode_return"], np.cumsum(episode["reward"])[-1])


class Several(Scripted):
    reward_space = spaces.Box(-9, 9, (2,), np.float32)


@pytest.mark.parametrize(
    "reward", [np.float32([1, 2]), [1.0, 2], (1, 2), torch.tensor([1.0, 2.0]), np.array([1, 2])], ids=repr
)
def test_several_rewards(tmp_path, reward):
    env = RecordToBuffer(Several(2, reward=lambda env, t: reward), tmp_path)
    play(env)
    env.close()
    (episode,) = env.buffer
    assert episode["reward"].tolist() == [[1, 2]] * 2
    assert episode["reward"].dtype == np.float64
    assert episode.meta["episode_return"].tolist() == [2, 4]


@pytest.mark.parametrize("reward", [1.0, None, [1, 2, 3], "x"], ids=repr)
def test_another_number_of_rewards(tmp_path, reward):
    env = RecordToBuffer(Several(2, reward=lambda env, t: reward if t == 2 else [1, 2]), tmp_path)
    env.reset()
    env.step(0)
    with pytest.raises(FieldError, match="reward"):
        env.step(0)
    env.close()
    assert contents(tmp_path) == [([[1, 2]], False)]


FLAGS = {
    "NumPy": np.bool_,
    "0-d": np.array,
    "one element": lambda flag: np.array([flag]),
    "tensor": torch.tensor,
    "tensor of one": lambda flag: torch.tensor([flag]),
}


@pytest.mark.parametrize("kind", FLAGS)
@pytest.mark.parametrize("end", ["terminated", "truncated"])
def test_flags(tmp_path, kind, end):
    wrap = FLAGS[kind]
    answers = {name: lambda env, t, name=name: wrap(t >= 3 and name == end) for name in ("terminated", "truncated")}
    env = RecordToBuffer(Scripted(9, **answers), tmp_path)
    play(env, 2)
    env.close()
    assert len(env.buffer) == 2
    for episode in env.buffer:
        assert episode.complete
        for name in ("terminated", "truncated"):
            assert episode[name].tolist() == [False, False, name == end]


DTYPES = {
    # the space's dtype, what comes, whether it is warned about
    "float64 for float32": ("float32", np.array([0.1, 2]), True),
    "float16 for float32": ("float32", np.array([0.5, 2], np.float16), True),
    "int for float32": ("float32", np.array([1, 2]), True),
    "big-endian": ("float32", np.array([0.5, 2], ">f4"), True),
    "list": ("float32", [0.5, 2], False),
    "tensor": ("float32", torch.tensor([0.5, 2]), False),
    "strided": ("float32", np.arange(4, dtype=np.float32)[::2], False),
    "int64 for uint8": ("uint8", np.array([0, 255]), True),
    "bool for uint8": ("uint8", np.array([True, False]), True),
    "nan": ("float32", np.array([np.nan, -np.inf], np.float32), False),
}


@pytest.mark.parametrize("kind", DTYPES)
@pytest.mark.parametrize("is_nested", [False, True])
def test_observations_of_another_dtype(tmp_path, kind, is_nested):
    dtype, value, is_warned = DTYPES[kind]
    space = spaces.Box(
        -np.inf if dtype == "float32" else 0, np.inf if dtype == "float32" else 255, (2,), np.dtype(dtype)
    )
    inner = Scripted(3, observation=lambda env, t: {"x": value} if is_nested else value)
    inner.observation_space = spaces.Dict({"x": space}) if is_nested else space
    name = "observation.x" if is_nested else "observation"
    env = RecordToBuffer(inner, tmp_path)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        play(env, 3)
    env.close()
    assert len(caught) == is_warned
    for warning in caught:
        assert name in str(warning.message)
        assert dtype in str(warning.message)
    for episode in env.buffer:
        assert episode[name].dtype == dtype
        np.testing.assert_array_equal(episode[name], np.array([np.asarray(value)] * 4).astype(dtype))


@pytest.mark.parametrize("is_nested", [False, True])
def test_the_advice_about_dtypes_can_be_taken(tmp_path, is_nested):
    inner = Scripted(3, observation=lambda env, t: {"x": np.array([0.1, t])} if is_nested else np.array([0.1, t]))
    name = "observation.x" if is_nested else "observation"
    if is_nested:
        inner.observation_space = spaces.Dict({"x": inner.observation_space})
    env = RecordToBuffer(inner, tmp_path, dtypes={name: "float64"})
    play(env, 2)  # no warning
    env.close()
    assert env.buffer.episode(1)[name].tolist() == [[0.1, t] for t in range(4)]


@pytest.mark.parametrize("value", [np.array([0.5, 1]), np.array([256, 0]), np.array([-1, 0])], ids=repr)
def test_observations_that_an_integer_space_does_not_hold(tmp_path, value):
    inner = Scripted(3, observation=lambda env, t: value if t == 2 else np.zeros(2, np.uint8))
    inner.observation_space = spaces.Box(0, 255, (2,), np.uint8)
    env = RecordToBuffer(inner, tmp_path)
    env.reset()
    env.step(0)
    with pytest.raises(FieldError, match=r"'observation'.*uint8"):
        env.step(0)
    env.close()
    assert contents(tmp_path) == [([1], False)]


def test_another_space_after_reset(tmp_path):
    """The fields are those of the space that was there at first."""

    class Growing(Scripted):
        def reset(self, **options):
            result = super().reset(**options)
            if self.number == 1:
                self.observation_space = spaces.Box(-9, 9, (3,), np.float32)
                return np.zeros(3, np.float32), {}
            return result

    env = RecordToBuffer(Growing(2), tmp_path)
    play(env)
    with pytest.raises(FieldError, match=r"expected shape \(2,\), got \(3,\)"):
        env.reset()
    play(env)
    env.close()
    assert contents(tmp_path) == [([1, 2], True)] * 2


# --- actions ---


@pytest.mark.parametrize(
    ("space", "action", "message"),
    [
        (spaces.Discrete(3), [1, 1], "'action': expected shape"),
        (spaces.Discrete(3), None, "'action': expected numbers"),
        (spaces.Discrete(3), 1.5, "'action': expected int64, got float64"),
        (spaces.Discrete(3), "1", "'action': expected numbers"),
        (spaces.Box(-1, 1, (2,)), np.zeros(3), "'action': expected shape"),
        (spaces.Dict({"a": spaces.Discrete(3)}), {"b": 1}, "'action'.*missing"),
        (spaces.Tuple((spaces.Discrete(3),)), (), "'action'.*tuple of 1"),
    ],
    ids=repr,
)
def test_an_action_that_does_not_fit_is_not_stepped(tmp_path, space, action, message):
    inner = Scripted(2)
    inner.action_space = space
    env = RecordToBuffer(inner, tmp_path)
    env.reset()
    for _ in range(2):
        with pytest.raises(FieldError, match=message):
            env.step(action)
        assert inner.t == 0
    for _ in range(2):
        env.step(space.sample())
    env.close()
    assert contents(tmp_path) == [([1, 2], True)]


@pytest.mark.parametrize(
    "action", [1, np.int64(1), np.int8(1), True, np.array(1), np.array([1]), torch.tensor(1)], ids=repr
)
def test_discrete_actions(tmp_path, action):
    env = RecordToBuffer(Scripted(3), tmp_path)
    env.reset()
    for each in (2, action, np.int64(0)):
        env.step(each)
    env.close()
    assert env.buffer.episode(0)["action"].tolist() == [2, 1, 0]


BOX = spaces.Box(-1, 1, (2,), np.float32)
ACTIONS = {
    "float64": (BOX, np.array([0.5, -0.5])),
    "list": (BOX, [0.5, -0.5]),
    "tensor": (BOX, torch.tensor([0.5, -0.5])),
    "strided": (BOX, np.float32([0.5, 9, -0.5, 9])[::2]),
    "int32": (spaces.Discrete(3, dtype=np.int32), 2),
    "MultiDiscrete": (spaces.MultiDiscrete([3, 3]), [2, 1]),
    "MultiBinary": (spaces.MultiBinary(2), np.array([True, False])),
    "dict of one": (spaces.Dict({"a": spaces.Discrete(3)}), {"a": 2}),
    "tuple of one": (spaces.Tuple((BOX,)), (np.float32([0.5, -0.5]),)),
    "text": (spaces.Text(5), "ab"),
}


@pytest.mark.parametrize("kind", ACTIONS)
def test_actions_that_are_not_what_the_space_samples(tmp_path, kind):
    inner = Scripted(3)
    inner.action_space, action = ACTIONS[kind]
    env = RecordToBuffer(inner, tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of dtypes
        play(env, 2, convert=lambda sampled: action)
    env.close()
    (name,) = (name for name in env.buffer.fieldnames if name.startswith("action"))
    expected = 2 if kind == "dict of one" else action[0] if kind == "tuple of one" else action
    for episode in env.buffer:
        for row in episode[name]:
            np.testing.assert_array_equal(row, np.frombuffer(b"ab", np.uint8) if kind == "text" else expected)


@pytest.mark.parametrize("is_nested", [False, True])
def test_what_the_environment_changes_afterwards(tmp_path, is_nested):
    """Observations after they were returned, and actions inside of the step."""

    class Changing(Scripted):
        action_space = spaces.Dict({"a": spaces.Box(-9, 9, (2,))}) if is_nested else spaces.Box(-9, 9, (2,))
        observation_space = action_space
        shared = np.zeros(2, np.float32)

        def _observation(self):
            self.shared[:] = self.t
            return {"a": self.shared} if is_nested else self.shared

        def step(self, action):
            (action["a"] if is_nested else action)[:] = -1
            self.shared[:] = -2
            return super().step(action)

    env = RecordToBuffer(Changing(3), tmp_path)
    env.reset()
    for t in range(3):
        action = np.full(2, t, np.float32)
        observation = env.step({"a": action} if is_nested else action)[0]
        (observation["a"] if is_nested else observation)[:] = 7
    env.close()
    end = ".a" if is_nested else ""
    assert env.buffer.episode(0)["action" + end][:, 0].tolist() == [0, 1, 2]
    assert env.buffer.episode(0)["observation" + end][:, 0].tolist() == [0, 1, 2, 3]


class Degrees(spaces.Box):
    """Recorded in half degrees."""


class Reversed(spaces.Discrete):
    """Recorded from the other end."""


register_space(
    Degrees,
    lambda space: spaces.Box(-2000, 2000, space.shape, np.float32),
    encode=lambda space, value: np.asarray(value, np.float32) * 2,
    decode=lambda space, value: value / 2,
)
register_space(
    Reversed,
    lambda space: spaces.Discrete(int(space.n)),
    encode=lambda space, value: space.n - 1 - value,
    decode=lambda space, value: space.n - 1 - value,
)


def test_spaces_of_ones_own_are_encoded_in_every_row(tmp_path):
    inner = Scripted(3)
    inner.observation_space, inner.action_space = Degrees(-1000, 1000, (2,)), Reversed(4)
    env = RecordToBuffer(inner, tmp_path)
    env.reset()
    for action in (0, np.int64(0), 1):
        env.step(action)
    env.close()
    (episode,) = env.buffer
    assert episode["observation"][:, 0].tolist() == [0, 2, 4, 6]
    assert episode["action"].tolist() == [3, 3, 2]


# --- exceptions ---


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, StopIteration])
@pytest.mark.parametrize("at", [1, 3])
def test_a_step_that_raises(tmp_path, error, at):
    env = RecordToBuffer(
        Scripted(4, reward=lambda env, t: error("simulator") if (env.number, t) == (0, at) else float(t)),
        tmp_path,
        **EXTRAS,
    )
    env.reset()
    for _ in range(at - 1):
        env.step(1)
    env.annotate_step(value=5)
    with pytest.raises(error, match="simulator"):
        env.step(1)
    for _ in range(3):
        with pytest.warns(UserWarning, match="not recorded"):
            env.step(1)
    play(env)
    env.close()
    first = [([1.0, 2.0], False)] if at == 3 else []
    assert contents(tmp_path) == [*first, ([1, 2, 3, 4], True)]
    assert [value for rows, _ in contents(tmp_path, "value") for value in rows] == [-1] * (2 * len(first) + 4)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_reset_that_raises(tmp_path, error):
    env = RecordToBuffer(
        Scripted(4, observation=lambda env, t: error() if (env.number, t) == (1, 0) else GOOD["observation"](t)),
        tmp_path,
    )
    env.reset(seed=5)
    env.step(1)
    with pytest.raises(error):
        env.reset(seed=6)
    assert len(env.buffer) == 1
    with pytest.warns(UserWarning, match="not recorded"):
        env.step(1)
    env.reset(seed=7)
    env.step(1)
    env.close()
    assert [(len(episode), int(episode.meta["episode_seed"])) for episode in env.buffer] == [(1, 5), (1, 7)]


def test_an_interrupt_between_steps_loses_nothing(tmp_path):
    env = RecordToBuffer(Scripted(4), tmp_path)
    env.reset()
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012
        env.step(1)
        env.step(1)
        raise KeyboardInterrupt
    env.step(1)
    env.step(1)
    env.close()
    assert contents(tmp_path) == [([1, 2, 3, 4], True)]


@pytest.mark.parametrize(
    "answers", [{"reward": {2: RuntimeError("simulator")}}, {"reward": {2: "x"}}], ids=["raises", "bad"]
)
def test_a_lost_step_and_a_full_disk(tmp_path, monkeypatch, answers):
    """No transition is recorded after the one that is missing, however often the disk refuses."""
    env = RecordToBuffer(Scripted(9, **answers), tmp_path)
    env.reset()
    env.step(1)
    with full_disk(monkeypatch):
        with pytest.raises((RuntimeError, StorageError)):
            env.step(1)
        for _ in range(2):
            with pytest.raises(StorageError):
                env.step(1)
        assert env.unwrapped.t == 2
    with pytest.warns(UserWarning, match="not recorded"):
        env.step(1)
    env.close()
    assert contents(tmp_path) == [([1], False)]


# --- bounds ---


class Bounded(Scripted):
    observation_space = spaces.Box(np.float32([-1, 0]), np.float32([1000, 6]), dtype=np.float32)
    action_space = spaces.Discrete(3, start=1)

    def _observation(self):
        return np.float32([0, self.t])


@pytest.mark.parametrize("chunk_rows", [3, 1 << 14])
@pytest.mark.parametrize("limits", [{}, {"circular": True, "max_steps": 50}], ids=["linear", "ring"])
def test_values_out_of_bounds_are_kept_and_counted(tmp_path, monkeypatch, chunk_rows, limits):
    small_sizes(monkeypatch, chunk_rows=chunk_rows)
    inner = Bounded(5)
    env = RecordToBuffer(inner, tmp_path, **limits)
    for length in (5, 12, 9):
        inner.length = length
        env.reset()
        for t in range(length):
            env.step(7 if (length, t) in ((12, 4), (12, 11), (9, 8)) else 1 + t % 3)
    with pytest.warns(UserWarning, match="out_of_bounds") as caught:
        assert env.out_of_bounds == {"observation": 6 + 3, "action": 3}
    assert env.out_of_bounds == {"observation": 9, "action": 3}  # nothing is said again
    env.close()
    messages = {str(warning.message).partition(":")[0]: str(warning.message) for warning in caught}
    assert len(caught) == len(messages) == 2
    assert "7.0 is outside of its space's bounds 0.0 to 6.0 (episode 1, row 7, index (1,))" in messages["observation"]
    assert "7 is outside of its space's bounds 1 to 3 (episode 1, row 4)" in messages["action"]
    assert env.buffer.episode(1)["observation"][:, 1].tolist() == list(range(13))
    assert np.flatnonzero(env.buffer.episode(1)["action"] == 7).tolist() == [4, 11]


def test_bounds_of_every_kind_of_space(tmp_path):
    inner = Scripted(2)
    values = {
        "box": (spaces.Box(0, 1, (2,)), np.float32([0, 1]), np.float32([0, 1.5])),
        "int": (spaces.Box(-3, 3, (2,), np.int8), np.int8([-3, 3]), np.int8([-4, 3])),
        "discrete": (spaces.Discrete(3, start=-1), -1, 2),
        "several": (spaces.MultiDiscrete([2, 3], start=[0, 5]), np.array([1, 7]), np.array([1, 8])),
        "bits": (spaces.MultiBinary(2), np.int8([0, 1]), np.int8([2, 1])),
        "free": (spaces.Box(-np.inf, np.inf, (1,)), np.float32([0]), np.float32([np.inf])),
        "half": (spaces.Box(0, np.inf, (1,)), np.float32([0]), np.float32([-1])),
        "nan": (spaces.Box(0, 1, (1,)), np.float32([0]), np.float32([np.nan])),
        "bytes": (spaces.Box(0, 255, (1,), np.uint8), np.uint8([0]), np.uint8([255])),
    }
    inner.observation_space = spaces.Dict({name: space for name, (space, _, _) in values.items()})
    inner.answers["observation"] = lambda env, t: {name: value[1 + (t == 1)] for name, value in values.items()}
    env = RecordToBuffer(inner, tmp_path)
    play(env)
    with pytest.warns(UserWarning, match=r"episode 0, row 1"):
        env.close()
    outside = ("box", "int", "discrete", "several", "bits", "half")
    assert env.out_of_bounds == {f"observation.{name}": 1 for name in outside}


def test_the_default_in_the_last_row_is_no_value(tmp_path):
    """Of an action space that does not hold zero."""
    inner = Scripted(3)
    inner.action_space = spaces.Box(1, 2, (2,))
    env = RecordToBuffer(inner, tmp_path)
    play(env, 3)
    env.close()
    assert env.out_of_bounds == {}


def test_a_warning_about_bounds_that_is_an_error_loses_nothing(tmp_path, monkeypatch):
    small_sizes(monkeypatch, bounds_bytes=100)
    env = RecordToBuffer(Bounded(9), tmp_path)
    raised = 0
    for _ in range(3):
        env.reset()
        for _ in range(9):
            try:
                env.step(1)
            except UserWarning:  # noqa: PERF203
                raised += 1
    env.close()
    assert raised == 1
    assert contents(tmp_path) == [(list(range(1, 10)), True)] * 3
    assert env.out_of_bounds == {"observation": 9}


def test_a_warning_at_close_that_is_an_error_frees_the_folder(tmp_path):
    env = RecordToBuffer(Bounded(9), tmp_path)
    play(env)
    with pytest.raises(UserWarning, match="out_of_bounds"):
        env.close()
    with ReplayBuffer.from_folder(tmp_path) as other:
        other.delete(0)
