"""Info fields that take a wider dtype while they are recorded: every value stays what it was."""

import os
import shutil
import tempfile
import warnings
from contextlib import suppress
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st
from internals import edits, small_sizes
from wrappers.scripted import MEMORY, Scripted, full_disk, play

from gym_replay import ConfigMismatchError, Field, FieldError, RecordToBuffer, ReplayBuffer, check_buffer
from gym_replay.wrappers.vector import RecordToBuffer as VectorRecordToBuffer

LIMITS = {"linear": {}, "ring": {"circular": True, "max_episodes": 50}}


def record(recorder, episodes=1):
    """The recorder, closed after some episodes."""
    play(recorder, episodes)
    recorder.close()
    return recorder


class Listed(VectorEnv):
    """Scripted environments that are reset in the next step, with one info each."""

    def __init__(self, count, length, info):
        self.envs = [Scripted(length, info=info) for _ in range(count)]
        self.num_envs, self._done = count, np.zeros(count, bool)
        self.single_observation_space, self.single_action_space = Scripted.observation_space, Scripted.action_space
        self.observation_space = gym.vector.utils.batch_space(Scripted.observation_space, count)
        self.action_space = gym.vector.utils.batch_space(Scripted.action_space, count)
        self.metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}

    def reset(self, *, seed=None, options=None):
        self._done[:] = False
        found = [env.reset() for env in self.envs]
        return np.stack([each[0] for each in found]), [each[1] for each in found]

    def step(self, actions):
        found = [
            (*env.reset(), 0.0, False, False) if done else (lambda o, r, e, u, i: (o, i, r, e, u))(*env.step(0))
            for env, done in zip(self.envs, self._done, strict=True)
        ]
        observations, given_infos, rewards, ends, cuts = zip(*found, strict=True)
        self._done = np.array(ends)
        return np.stack(observations), np.array(rewards), np.array(ends), np.array(cuts), list(given_infos)


def step(env, count, action=0):
    for _ in range(count):
        env.step(action)


def saying(values):
    """Infos in which one entry takes these values, one after another, over all episodes; None where it is missing."""

    def info(env, t):
        value = values[(env.number * (env.length + 1) + t) % len(values)]
        return {"other": t} if value is None else {"x": value, "other": t}

    return info


def expected(values, number, length):
    return [values[(number * (length + 1) + t) % len(values)] for t in range(length + 1)]


def assert_recorded(buffer, values, numbers, length):
    """The episodes hold the values exactly; ``numbers`` says which of its environment each is."""
    for episode, number in zip(buffer, numbers, strict=True):
        given_values = expected(values, number, length)
        assert episode["info.other"].tolist() == list(range(length + 1))
        if "info.x" not in buffer.fieldnames:
            assert all(value is None for value in given_values)
            continue
        assert episode["info_present.x"].tolist() == [value is not None for value in given_values]
        for got, value in zip(episode["info.x"].tolist(), given_values, strict=True):
            want = 0 if value is None else np.asarray(value).item()
            assert got == want or (got != got and want != want)


NUMBERS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 300),
    st.integers(-(1 << 53), 1 << 53),
    st.integers(0, 255).map(np.uint8),
    st.integers(-(1 << 15), (1 << 15) - 1).map(np.int16),
    st.integers(0, 1 << 53).map(np.uint64),
    st.floats(),
    st.floats(width=32).map(np.float32),
    st.floats(width=16).map(np.float16),
)


@given(st.lists(NUMBERS, min_size=1, max_size=30), st.sampled_from(list(LIMITS)), st.sampled_from([3, 1 << 14]))
@settings(max_examples=30)
def test_no_number_is_lost(tmp_path_factory, monkeypatch, values, limits, chunk_rows):
    small_sizes(monkeypatch, chunk_rows=chunk_rows, vector_staging_bytes=100 * chunk_rows)
    folder = tmp_path_factory.mktemp("wider")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = RecordToBuffer(Scripted(9, info=saying(values)), folder / "single", record_info=True, **LIMITS[limits])
        play(env, 3)
        env.close()
        envs = VectorRecordToBuffer(Listed(2, 9, saying(values)), folder / "vector", record_info=True, **LIMITS[limits])
        envs.reset()
        for _ in range(29):
            envs.step(np.zeros(2, int))
        envs.close()
    for recorder, numbers in ((env, [0, 1, 2]), (envs, [0, 0, 1, 1, 2, 2])):
        assert_recorded(recorder.buffer, values, numbers, 9)
        recorder.buffer.close()
        assert check_buffer(recorder.buffer.folder, progress=False).ok


SEQUENCES = {
    "ints, then floats": [1, 2, 3, 4, 0.5],
    "bools, then ints, then floats": [True, False, 7, 1, 1 / 3],
    "small ints, then large ones": [np.uint8(1), np.uint8(255), -1, 1 << 40, 2],
    "float32, then float64": [np.float32(0.1), np.float32(2), 0.1, np.nan, -0.0],
}


@pytest.mark.parametrize("limits", LIMITS)
@pytest.mark.parametrize("kind", SEQUENCES)
def test_a_folder_that_is_recorded_further(tmp_path, kind, limits):
    """What was recorded before, and what deleted episodes left, is converted; readers see the old or the new."""
    *first, wider, last = SEQUENCES[kind]
    env = RecordToBuffer(Scripted(5, info=saying(first)), tmp_path, record_info=True, **LIMITS[limits])
    play(env, 3)
    env.buffer.delete(1)
    env.close()
    env.buffer.close()
    with ReplayBuffer.from_folder(tmp_path, read_only=True) as reader:
        before = reader.episode(0)["info.x"]
        held = before.copy()
        env = RecordToBuffer(Scripted(5, info=saying([wider, last])), tmp_path, record_info=True, **LIMITS[limits])
        play(env, 1)
        env.close()
        assert before.tobytes() == held.tobytes()
        assert before.dtype == held.dtype
        reader.refresh()
        assert reader.metadata.fields["info.x"] == env.buffer.metadata.fields["info.x"]
        stored = np.load(tmp_path / "steps" / "info" / "x.npy", mmap_mode="r")
        assert (
            stored.dtype == reader.metadata.fields["info.x"].dtype == np.result_type(*map(np.asarray, SEQUENCES[kind]))
        )
        for episode, number in zip(list(reader)[:2], (0, 2), strict=True):
            assert episode["info.x"].tolist() == [np.asarray(value).item() for value in expected(first, number, 5)]
        np.testing.assert_array_equal(list(reader)[2]["info.x"], expected([wider, last], 0, 5))
    assert check_buffer(tmp_path, progress=False).ok


DECLARED = {
    "int64": ("int64", [1, 2.5, 3, 4.0], [1, None, 3, 4]),
    "bool": ("bool", [True, 2, False, 1], [True, None, False, True]),
    "uint8": ("uint8", [1, 256, -1, 255], [1, None, None, 255]),
    "float32": ("float32", [0.1, 1, np.nan, 1e300], [np.float32(0.1), 1, np.nan, None]),
    "field": (Field("int16"), [1, 1 << 20, 2, 0.5], [1, None, 2, None]),
}


@pytest.mark.parametrize("kind", DECLARED)
def test_what_is_declared_stays_as_it_is_declared(tmp_path, kind):
    declared, values, kept = DECLARED[kind]
    with pytest.warns(UserWarning, match=r"info\.x.*left out|values .* info\.x") as caught:
        env = record(
            RecordToBuffer(Scripted(3, info=saying(values)), tmp_path, record_info=True, dtypes={"info.x": declared})
        )
    assert len(caught) == 2
    assert "declared" in str(caught[0].message)
    (episode,) = env.buffer
    assert episode["info.x"].dtype == Field(declared).dtype if isinstance(declared, str) else declared.dtype
    assert episode["info_present.x"].tolist() == [value is not None for value in kept]
    np.testing.assert_array_equal(episode["info.x"], [0 if value is None else value for value in kept])
    env.buffer.close()
    with pytest.raises(ConfigMismatchError, match=r"info\.x.*stored"):
        RecordToBuffer(Scripted(), tmp_path, record_info=True, dtypes={"info.x": "float64"})


GROWING = {
    "lists": ([[1, 2], [3], [], [4, 5, 6]], Field("int64", ragged=True), "Field('int64', ragged=True)"),
    "first empty": ([[], [0.5], [1, 2]], Field("float64", ragged=True), "Field('float64', ragged=True)"),
    "points": (
        [np.zeros((1, 2), np.float32), np.ones((3, 2), np.float32), np.zeros((0, 2), np.float32)],
        Field("float32", (2,), ragged=True),
        "Field('float32', (2,), ragged=True)",
    ),
}


@pytest.mark.parametrize("kind", GROWING)
@pytest.mark.parametrize("chunk_rows", [3, 1 << 14])
@pytest.mark.parametrize("limits", LIMITS)
def test_a_shape_that_grows(tmp_path, monkeypatch, kind, chunk_rows, limits):
    """The first warning says how to ask for it, and what it asks for is recorded."""
    small_sizes(monkeypatch, ragged_chunk_rows=chunk_rows)
    values, field, asked = GROWING[kind]
    info = lambda env, t: {"x": values[t % len(values)]} if t != 1 or env.number else {}  # noqa: E731
    with pytest.warns(UserWarning, match="left out") as caught:
        record(RecordToBuffer(Scripted(9, info=info), tmp_path / "not", record_info=True))
    assert f"dtypes={{'info.x': {asked}}}" in str(caught[0].message)
    options = {"record_info": True, "dtypes": {"info.x": field}, **LIMITS[limits]}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        single = RecordToBuffer(Scripted(9, info=info), tmp_path / "single", **options)
        play(single, 2)
        single.close()
        several = VectorRecordToBuffer(Listed(2, 9, info), tmp_path / "several", **options)
        several.reset()
        for _ in range(19):
            several.step(np.zeros(2, int))
        several.close()
    for env, numbers in ((single, (0, 1)), (several, (0, 0, 1, 1))):
        for episode, number in zip(env.buffer, numbers, strict=True):
            assert episode["info_present.x"].tolist() == [t != 1 or number > 0 for t in range(10)]
            for t, row in enumerate(episode["info.x"]):
                there = t != 1 or number
                np.testing.assert_array_equal(row, values[t % len(values)] if there else row[:0])
        env.buffer.close()
        assert check_buffer(env.buffer.folder, progress=False).ok


def test_declarations_that_are_none(tmp_path):
    for wrong in (Field("str"), {"dtype": "int", "size": 3}, ("int",) * 4, "text"):
        with pytest.raises(FieldError):
            RecordToBuffer(Scripted(), tmp_path, record_info=True, dtypes={"info.x": wrong})
    assert list(tmp_path.iterdir()) == []


def test_stored_integers_that_no_float_holds(tmp_path):
    """They are never rounded: the float is left out, and integers go on."""
    values = [(1 << 60) + 1, 5, 0.5, 7, 1 << 63]
    with pytest.warns(UserWarning, match=r"info\.x|values") as caught:
        env = record(RecordToBuffer(Scripted(4, info=saying(values)), tmp_path, record_info=True), 2)
    assert str((1 << 60) + 1) in str(caught[0].message)
    assert [episode["info.x"].tolist() for episode in env.buffer] == [[(1 << 60) + 1, 5, 0, 7, 0]] * 2
    assert "4 values" in str(caught[-1].message)


def test_integers_that_a_float_field_rounds(tmp_path):
    values = [0.5, (1 << 60) + 1, (1 << 53) + 1, 1 << 60]
    with pytest.warns(UserWarning, match=r"rounded") as caught:
        env = record(RecordToBuffer(Scripted(3, info=saying(values)), tmp_path, record_info=True))
    assert len(caught) == 2
    assert env.buffer.episode(0)["info.x"].tolist() == [0.5, float(1 << 60), float(1 << 53), float(1 << 60)]
    assert "2 values" in str(caught[-1].message)


@pytest.mark.parametrize("count", [1, 2, 9])
@pytest.mark.parametrize("big", [0, (1 << 60) + 1])
def test_episodes_that_are_held_back(tmp_path, count, big):
    """Where nothing says how an environment resets itself, the first episodes are committed one step later."""
    envs = Listed(count, 3, lambda env, t: {"x": big + t if env.number == 0 else 0.5})
    envs.metadata = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        recorder = VectorRecordToBuffer(envs, tmp_path, record_info=True)
        recorder.reset()
        step(recorder, 9, np.zeros(count, int))
        recorder.close()
    episodes = list(recorder.buffer)
    assert len(episodes) > count
    for episode in episodes[:count]:
        assert episode["info.x"].tolist() == [big + t for t in range(4)]
    for episode in episodes[count:]:
        assert set(episode["info.x"].tolist()) == {0 if big else 0.5}
    assert check_buffer(tmp_path, progress=False).ok


@pytest.mark.parametrize("make", [gym.vector.SyncVectorEnv, gym.vector.AsyncVectorEnv])
def test_fractions_that_gymnasium_cuts_off(tmp_path, make):
    """Where the first sub-environment gives an integer, those of the others are lost before anybody sees them."""

    def info(env, t):
        return {"deep": {"x": 1 if t == 0 else 1 / 3}, "y": t + 0.5, "n": t}

    envs = VectorRecordToBuffer(make([lambda n=n: Scripted(n, info=info) for n in (3, 9)]), tmp_path, record_info=True)
    envs.reset()
    with pytest.warns(UserWarning, match=r"info\.deep\.x came as integers, though it is a float") as caught:
        step(envs, 12, np.zeros(2, int))
    envs.close()
    assert len(caught) == 1
    for episode in envs.buffer:
        assert episode["info.y"].tolist() == [t + 0.5 for t in range(len(episode) + 1)]
        assert episode["info.n"].dtype == "int64"
    assert envs.buffer.episode(0)["info.deep.x"].tolist() == [1, 1 / 3, 1 / 3, 1 / 3]


def child_dies_at(call, folder):
    """Record floats into a folder of ints in a child process that is killed at a call of the system."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    calls = 0

    def dying(real):
        def function(*arguments, **options):
            nonlocal calls
            calls += 1
            if calls == call:
                os._exit(9)
            return real(*arguments, **options)

        return function

    with suppress(BaseException):
        env = RecordToBuffer(Scripted(4, info=saying([0.5])), folder, record_info=True)
        widen = edits.add_fields

        def add_fields(*arguments):
            for name in ("pwrite", "replace", "open", "unlink", "ftruncate"):
                setattr(os, name, dying(getattr(os, name)))
            widen(*arguments)
            os._exit(0)

        edits.add_fields = add_fields
        env.reset()
    os._exit(7)


@pytest.fixture
def memory_path():
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        yield Path(folder)


def test_killed_in_the_middle(memory_path):
    """All rows are there before or after, and the folder can be recorded further, as every third one is."""
    found, call = set(), 0
    record(RecordToBuffer(Scripted(4, info=saying([1, 2, 3])), memory_path / "ints", record_info=True), 2)
    while True:
        call += 1
        folder = shutil.copytree(memory_path / "ints", memory_path / str(call))
        code = child_dies_at(call, folder)
        with ReplayBuffer.from_folder(folder, read_only=True) as reader:
            found.add(reader.metadata.fields["info.x"].dtype.name)
            assert_recorded(reader, [1, 2, 3], [0, 1], 4)
        if call % 3 == 0 or code == 0:
            env = record(RecordToBuffer(Scripted(4, info=saying([0.25])), folder, record_info=True))
            assert [episode["info.x"].tolist() for episode in env.buffer][2] == [0.25] * 5
            assert_recorded(Two(env.buffer), [1, 2, 3], [0, 1], 4)
            assert check_buffer(folder, progress=False).ok
            env.buffer.close()
        assert code in (0, 9)
        if code == 0:
            break
    assert found == {"int64", "float64"}
    assert call > 20


class Two:
    """The first two episodes of a buffer."""

    def __init__(self, buffer):
        self.fieldnames, self._episodes = buffer.fieldnames, list(buffer)[:2]

    def __iter__(self):
        return iter(self._episodes)


@pytest.mark.parametrize("where", ["before", "after"])
@pytest.mark.parametrize("kind", ["single", "vector"])
@pytest.mark.parametrize("chunk_rows", [3, 1 << 14])
def test_an_interrupt_while_a_field_becomes_wider(tmp_path, monkeypatch, where, kind, chunk_rows):
    """The episode ends with the step before, and all of it is in the dtype that the buffer has."""
    small_sizes(monkeypatch, chunk_rows=chunk_rows)
    info = lambda env, t: {"x": 0.5 if t == 10 and env.number == 0 else t}  # noqa: E731
    if kind == "single":
        env, action = RecordToBuffer(Scripted(20, info=info), tmp_path, record_info=True), 0
    else:
        env, action = VectorRecordToBuffer(Listed(2, 20, info), tmp_path, record_info=True), np.zeros(2, int)
    add_fields = edits.add_fields

    def interrupt(*arguments):
        if where == "after":
            add_fields(*arguments)
        raise KeyboardInterrupt

    env.reset()
    step(env, 9, action)
    with monkeypatch.context() as patch:
        patch.setattr(edits, "add_fields", interrupt)
        with pytest.raises(KeyboardInterrupt):
            env.step(action)
    env.reset()
    step(env, 20, action)
    env.close()
    count = 1 if kind == "single" else 2
    assert [len(episode) for episode in env.buffer] == [9] * count + [20] * count
    for episode in env.buffer:
        assert episode["info.x"].dtype == ("int64" if where == "before" else "float64")
        assert episode["info.x"].tolist() == list(range(len(episode) + 1))
        assert episode["reward"].tolist() == list(range(1, len(episode) + 1))
    assert check_buffer(tmp_path, progress=False).ok


@pytest.mark.parametrize("what", ["switch", "write"])
@pytest.mark.parametrize("limits", LIMITS)
def test_no_room_for_the_wider_column(tmp_path, monkeypatch, what, limits):
    """The value is left out, and the next one is tried some rows later."""
    small_sizes(monkeypatch, rows_between_info_changes=4)
    env = RecordToBuffer(
        Scripted(20, info=lambda env, t: {"x": t + 0.5 if t > 5 else t}), tmp_path, record_info=True, **LIMITS[limits]
    )
    env.reset()
    with full_disk(monkeypatch, times=1, what=what) as refusals:
        with pytest.warns(UserWarning, match=r"info\.x: left out.*space") as caught:
            step(env, 20)
        with pytest.warns(UserWarning, match=r"4 values .* info\.x"):
            env.close()
    assert len(refusals) == len(caught) == 1
    (episode,) = env.buffer
    assert episode["info.x"].tolist() == [0, 1, 2, 3, 4, 5, 0, 0, 0, 0, *(t + 0.5 for t in range(10, 21))]
    assert episode["info_present.x"].tolist() == [t not in (6, 7, 8, 9) for t in range(21)]
    assert check_buffer(tmp_path, progress=False).ok


def test_entries_that_come_one_after_another(tmp_path, monkeypatch):
    """So many become fields at once, and then some now and then, so that a run is not slowed down."""
    small_sizes(monkeypatch, free_info_changes=3, rows_between_info_changes=10)
    info = lambda env, t: {f"k{s}": t for s in range(max(t - 1, 0), t + 1)}  # noqa: E731
    with pytest.warns(UserWarning, match=r"every 10 rows|values .*k3") as caught:
        env = record(RecordToBuffer(Scripted(30, info=info), tmp_path, record_info=True))
    (episode,) = env.buffer
    assert [name for name in env.buffer.fieldnames if name.startswith("info.")] == [
        f"info.k{t}" for t in (0, 1, 2, 11, 12, 21, 22)
    ]
    assert episode["info.k12"].tolist() == [t if t in (12, 13) else 0 for t in range(31)]
    assert "info.k3 " in str(caught[0].message)
    lost = sum(t in (s, s + 1) for s in range(31) if s not in (0, 1, 2, 11, 12, 21, 22) for t in range(31))
    assert str(caught[-1].message).startswith(f"{lost + 2} values")  # and the first ones of k11 and k21


def test_observations_of_another_dtype_than_their_space(tmp_path):
    """They are declared by the space: cast, and said once, also where one comes late."""
    answers = {"observation": lambda env, t: np.full(2, t + 0.1, np.float32 if t < 30 else np.float64)}
    env = Scripted(40, **answers)
    env.observation_space = spaces.Box(-1000, 1000, (2,), np.float32)
    with pytest.warns(UserWarning, match=r"observation.*float64.*dtypes") as caught:
        env = record(RecordToBuffer(env, tmp_path), 2)
    assert len(caught) == 1
    np.testing.assert_array_equal(env.buffer.episode(0)["observation"][:, 0], np.float32(np.arange(41) + 0.1))
