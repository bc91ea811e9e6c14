"""ReplayBuffer, fact by fact: what is stored, what is refused, who may write, and what survives."""

import contextlib
import gc
import json
import os
import pickle
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from model import read_counters

from gym_replay import (
    BufferClosedError,
    BufferFullError,
    BufferLockedError,
    BufferNotFoundError,
    ConfigMismatchError,
    EpisodeEvictedError,
    EpisodeStateError,
    EpisodeTooLongError,
    Field,
    FieldError,
    NotABufferError,
    ReadOnlyError,
    ReplayBuffer,
    StorageError,
    check_buffer,
)
from gym_replay.buffer.storage import layout, staging
from gym_replay.buffer.storage.columns import ColumnWriter
from gym_replay.buffer.storage.episodes import Counters

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

FIELDS = {
    "state": Field("float32", (3,), state=True),
    "action": Field("int64", default=-1),
    "reward": Field("float64", default=0.5),
    "done": Field("bool"),
}
META = {"seed": Field("int64", default=-7), "score": Field("float32", (2,))}


def make(folder, **options):
    return ReplayBuffer(folder, **{"fields": FIELDS, "meta_fields": META, **options})


def make_plain(folder, **options):
    """One int64 field ``x``: episode k of T steps holds k*100 .. k*100+T-1."""
    return ReplayBuffer(folder, **{"fields": {"x": "int64"}, **options})


def add(buffer, *lengths, first=None):
    for length in lengths:
        number = buffer.num_episodes if first is None else first
        buffer.store_episode(x=number * 100 + np.arange(length))
        first = None if first is None else first + 1


def contents(buffer, name="x"):
    return [episode[name].tolist() for episode in buffer]


def ids(buffer):
    return [episode.id for episode in buffer]


def files_of(folder):
    """Every file and folder, with its bytes and its time of change."""
    return {
        path.relative_to(folder).as_posix(): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else None)
        for path in sorted(folder.rglob("*"))
    }


def leftovers(folder):
    return sorted(path.name for path in folder.rglob("*.new"))


def run_script(code, *arguments):
    """A process of its own; returns its exit status and what it printed."""
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True)
    return done.returncode, done.stdout.strip() + done.stderr[-2000:]


def in_fork(work):
    """Run ``work`` in a forked child; returns its JSON result, or the name of the error that it raised."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            answer = work()
        except BaseException as error:
            answer = type(error).__name__
        with contextlib.suppress(BaseException):
            os.write(writing, json.dumps(answer).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        content = stream.read()
    os.waitpid(pid, 0)
    return json.loads(content)


def name_of_error(work):
    try:
        work()
    except Exception as error:
        return type(error).__name__
    return "none"


# --- values ---

VECTORS = {
    "list": [1, 2.5, -3],
    "tuple": (1, 2.5, -3),
    "float64": np.array([1, 2.5, -3]),
    "float16": np.array([1, 2.5, -3], np.float16),
    "big-endian": np.array([1, 2.5, -3], ">f4"),
    "every other": np.array([1, 9, 2.5, 9, -3, 9], np.float32)[::2],
    "list of scalars": [np.float32(1), 2.5, torch.tensor(-3.0)],
    "tensor": torch.tensor([1, 2.5, -3], dtype=torch.float64),
    "tensor with grad": torch.tensor([1, 2.5, -3], requires_grad=True),
    "result of a graph": torch.tensor([0.5, 1.25, -1.5], requires_grad=True) * 2,
}
NUMBERS = {
    "float": 2.0,
    "int": 2,
    "float32": np.float32(2),
    "int8": np.int8(2),
    "array of none": np.array(2.0),
    "array of one": np.array([2.0]),
    "list of one": [2.0],
    "tensor": torch.tensor(2.0),
    "tensor of one with grad": torch.tensor([2.0], requires_grad=True),
}


@pytest.mark.parametrize("vector", VECTORS.values(), ids=VECTORS)
def test_a_vector_of_any_kind_is_stored(tmp_path, vector):
    with make(tmp_path) as buffer:
        with buffer.one_episode(score=vector[:2]):
            buffer.store(state=vector)
            buffer.store_final(state=vector)
        with buffer.batched_episode(2):
            buffer.store_batch(state=[vector, vector])
        for state in (buffer.episode(0)["state"], buffer.episode(1)["state"]):
            assert state.dtype == np.float32
            assert all(row.tolist() == [1, 2.5, -3] for row in state)
        assert buffer.episode(0).meta["score"].tolist() == [1, 2.5]
        buffer.update([0], score=[vector[1:]])
        assert buffer.episode(0).meta["score"].tolist() == [2.5, -3]


@pytest.mark.parametrize("number", NUMBERS.values(), ids=NUMBERS)
def test_a_number_of_any_kind_is_stored(tmp_path, number):
    with make(tmp_path) as buffer:
        with buffer.one_episode():
            buffer.store(reward=number)
        assert buffer.episode(0)["reward"].tolist() == [2.0]
        assert buffer.episode(0)["reward"].dtype == np.float64


@pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor])
def test_a_whole_episode_of_any_kind_is_stored(tmp_path, kind):
    with make(tmp_path) as buffer:
        buffer.store_episode(
            state=kind([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]), action=kind([7]), done=kind([True]), seed=3
        )
        episode = buffer.episode(-1)
        assert episode["state"].tolist() == [[1, 2, 3], [4, 5, 6]]
        assert episode["action"].tolist() == [7]
        assert episode["done"].tolist() == [True]
        assert episode["reward"].tolist() == [0.5]
        assert episode.meta["seed"] == 3
        assert episode.has_final


def test_a_tensor_of_a_whole_episode_with_grad_is_stored(tmp_path):
    with make(tmp_path) as buffer:
        buffer.store_episode(state=torch.ones(3, 3, requires_grad=True) * 2, reward=torch.zeros(2, requires_grad=True))
        assert buffer.episode(0)["state"].tolist() == [[2, 2, 2]] * 3


def test_a_number_and_an_array_of_one_number_fit_one_another(tmp_path):
    with ReplayBuffer(tmp_path, fields={"a": "float", "b": ("float", 1)}, meta_fields={"m": ("int", 1)}) as buffer:
        with buffer.one_episode(m=5):
            buffer.store(a=[1.0], b=2.0)
            buffer.store(a=1.0, b=[2.0])
        buffer.store_episode(a=np.ones((2, 1)), b=np.full(2, 2.0), m=[5])
        with buffer.batched_episode(1, m=[[5]]):
            buffer.store_batch(a=[[1.0]], b=[2.0])
            buffer.store_batch(a=[1.0], b=[[2.0]])
        for episode in buffer:
            assert episode["a"].tolist() == [1, 1]
            assert episode["b"].tolist() == [[2], [2]]
            assert episode.meta["m"].tolist() == [5]


def test_the_caller_may_reuse_its_arrays(tmp_path):
    state = np.zeros(3, np.float32)
    with make(tmp_path) as buffer:
        with buffer.one_episode():
            for t in range(3):
                state[:] = t
                buffer.store(state=state)
            state[:] = 3
            buffer.store_final(state=state)
            state[:] = 9
        block = np.zeros((2, 3), np.float32)
        with buffer.batched_episode(2):
            for t in range(3):
                block[:] = t
                buffer.store_batch(state=block)
            block[:] = 9
        assert buffer.episode(0)["state"][:, 0].tolist() == [0, 1, 2, 3]
        assert buffer.episode(2)["state"][:, 0].tolist() == [0, 1, 2]


BAD_STEPS = {
    "shape": {"state": np.zeros(4, np.float32)},
    "scalar for a vector": {"state": 1.0},
    "vector for a scalar": {"reward": [1.0, 2.0]},
    "two axes": {"state": np.zeros((1, 3))},
    "float for an integer": {"action": 1.5},
    "whole float for an integer": {"action": 1.0},
    "too large": {"action": 1 << 63},
    "two for a boolean": {"done": 2},
    "string": {"reward": "1"},
    "none": {"reward": None},
    "object": {"reward": object()},
    "complex": {"reward": 1j},
    "masked": {"state": np.ma.masked_array([1.0, 2.0, 3.0])},
    "ragged": {"state": [[1.0], [1.0, 2.0]]},
    "unknown": {"velocity": 1.0},
    "meta field": {"seed": 1},
}


@pytest.mark.parametrize("bad", BAD_STEPS.values(), ids=BAD_STEPS)
def test_what_does_not_fit_is_an_error_and_stores_nothing(tmp_path, bad):
    (name,) = bad
    with make(tmp_path) as buffer:
        with buffer.one_episode(seed=1):
            buffer.store(state=[1, 1, 1], action=1)
            good = {"action": 5} if name != "action" else {"done": True}
            for values in ({**good, **bad}, {**bad, **good}):
                with pytest.raises(FieldError, match=f"field '{name}'") as caught:
                    buffer.store(**values)
                assert isinstance(caught.value, ValueError)
            buffer.store(state=[2, 2, 2], action=2)
        episode = buffer.episode(0)
        assert episode["action"].tolist() == [1, 2]
        assert episode["state"][:, 0].tolist() == [1, 2]
        if name != "seed" and not isinstance(bad[name], np.ma.MaskedArray):
            rows = {key: [value] for key, value in bad.items()}
            with pytest.raises(FieldError, match=f"'{name}'"):
                buffer.store_episode(**{"action": [1], **rows})
        with buffer.batched_episode(1):
            buffer.store_batch(action=[3])
            rows = {key: value[None] if isinstance(value, np.ndarray) else [value] for key, value in bad.items()}
            with pytest.raises(FieldError, match=f"'{name}'"):
                buffer.store_batch(**{"done": [True], **rows})
        assert len(buffer) == 2
        assert buffer.episode(1)["action"].tolist() == [3]


def test_a_final_observation_that_does_not_fit_can_be_given_again(tmp_path):
    with make(tmp_path) as buffer:
        with buffer.one_episode():
            buffer.store(state=[1, 1, 1])
            for wrong in ({"state": [1, 2]}, {}, {"state": [1, 2, 3], "reward": 1.0}, {"nothing": 1}):
                with pytest.raises(FieldError):
                    buffer.store_final(**wrong)
            buffer.store_final(state=[2, 2, 2])
        assert buffer.episode(0)["state"].tolist() == [[1, 1, 1], [2, 2, 2]]
        with make_plain(tmp_path / "no state") as other, other.one_episode():
            other.store(x=1)
            with pytest.raises(FieldError, match="no state field"):
                other.store_final()


def test_meta_values_that_do_not_fit_are_refused_at_once(tmp_path):
    with make(tmp_path) as buffer:
        for wrong in ({"seed": 1.5}, {"score": [1, 2, 3]}, {"unknown": 1}, {"action": 1}):
            with pytest.raises(FieldError):
                buffer.one_episode(**wrong)
            with pytest.raises(FieldError):
                buffer.batched_episode(2, **wrong)
        for wrong in ({"seed": 1.5}, {"score": [1, 2, 3]}, {"unknown": 1}):
            with pytest.raises(FieldError):
                buffer.store_episode(action=[1], **wrong)
        assert len(buffer) == 0


def test_what_is_left_out_takes_its_default(tmp_path):
    fields = {
        "x": ("float", (2,), 1.5),
        "y": ("int", (), -3),
        "z": "bool",
        "s": Field("float", (2,), [4, 5], state=True),
    }
    with ReplayBuffer(tmp_path, fields=fields, meta_fields={"m": ("float", (), float("nan"))}) as buffer:
        with buffer.one_episode():
            buffer.store()
            buffer.store(y=1)
        buffer.store_episode(y=[-3, 1])
        with buffer.batched_episode(1):
            buffer.store_batch()
            buffer.store_batch(y=[1])
        for episode in buffer:
            assert episode["x"].tolist() == [[1.5, 1.5]] * 2
            assert episode["y"].tolist() == [-3, 1]
            assert episode["z"].tolist() == [False, False]
            assert episode["s"].tolist() == [[4, 5]] * 2
            assert np.isnan(episode.meta["m"])
            assert not episode.has_final


def test_the_row_behind_the_last_transition_holds_defaults(tmp_path):
    with make(tmp_path) as buffer:
        buffer.store_episode(state=np.ones((3, 3)), action=[1, 2], reward=[1.0, 2.0])
    assert np.load(tmp_path / "steps/action.npy").tolist() == [1, 2, -1]
    assert np.load(tmp_path / "steps/reward.npy").tolist() == [1, 2, 0.5]


@pytest.mark.parametrize(
    "arrays",
    [
        {},
        {"seed": 3},
        {"action": []},
        {"action": 5},
        {"action": [1, 2], "reward": [1.0]},
        {"action": [1, 2], "state": np.zeros((4, 3))},
        {"action": [1, 2], "state": np.zeros((1, 3))},
        {"state": np.zeros((1, 3))},
        {"state": np.zeros((0, 3))},
    ],
)
def test_a_whole_episode_whose_lengths_differ_is_refused(tmp_path, arrays):
    with make(tmp_path) as buffer:
        with pytest.raises(FieldError):
            buffer.store_episode(**arrays)
        assert len(buffer) == 0


def test_all_state_fields_have_the_last_observation_or_none(tmp_path):
    fields = {"a": Field("float", state=True), "b": Field("float", state=True), "x": "int"}
    with ReplayBuffer(tmp_path, fields=fields) as buffer:
        for arrays in ({"a": np.zeros(3), "b": np.zeros(2)}, {"a": np.zeros(3)}):
            with pytest.raises(FieldError):
                buffer.store_episode(x=[1, 2], **arrays)
        assert len(buffer) == 0


# --- limits ---


def test_one_step_too_many_leaves_the_episode_as_it_was(tmp_path):
    with make_plain(tmp_path, max_timesteps=3) as buffer:
        with buffer.one_episode():
            for t in range(3):
                buffer.store(x=t)
            for _ in range(2):
                with pytest.raises(EpisodeTooLongError, match="max_timesteps=3") as caught:
                    buffer.store(x=9)
                assert isinstance(caught.value, ValueError)
        with pytest.raises(EpisodeTooLongError):
            buffer.store_episode(x=np.zeros(4, int))
        with buffer.batched_episode(2):
            for t in range(3):
                buffer.store_batch(x=[t, t])
            with pytest.raises(EpisodeTooLongError):
                buffer.store_batch(x=[9, 9])
        assert contents(buffer) == [[0, 1, 2]] * 3


def test_a_full_buffer_refuses_and_goes_on_after_a_delete(tmp_path):
    with make_plain(tmp_path, max_episodes=2) as buffer:
        add(buffer, 2, 3)
        for refused in (
            lambda: buffer.one_episode().__enter__(),
            lambda: buffer.batched_episode(1).__enter__(),
            lambda: buffer.store_episode(x=[1]),
        ):
            with pytest.raises(BufferFullError, match="max_episodes=2") as caught:
                refused()
            assert isinstance(caught.value, ValueError)
        buffer.delete(0)
        add(buffer, 1)
        assert contents(buffer) == [[100, 101, 102], [100]]
        with pytest.raises(BufferFullError):
            buffer.batched_episode(3).__enter__()


def test_max_steps_of_a_linear_buffer(tmp_path):
    with make_plain(tmp_path, max_steps=5) as buffer:
        add(buffer, 3)
        with pytest.raises(BufferFullError, match="max_steps=5"):
            buffer.store_episode(x=[1, 2, 3])
        with buffer.one_episode():
            buffer.store(x=1)
            buffer.store(x=2)
            with pytest.raises(BufferFullError, match="max_steps=5"):
                buffer.store(x=3)
        assert contents(buffer) == [[0, 1, 2], [1, 2]]
        with pytest.raises(BufferFullError):
            buffer.one_episode().__enter__()


def test_an_episode_longer_than_the_ring_is_refused(tmp_path):
    with make_plain(tmp_path, max_steps=5, circular=True) as buffer:
        add(buffer, 3)
        with pytest.raises(EpisodeTooLongError):
            buffer.store_episode(x=np.arange(6))
        with buffer.one_episode():
            for t in range(5):
                buffer.store(x=t)
            with pytest.raises(EpisodeTooLongError, match="max_steps=5"):
                buffer.store(x=5)
        assert contents(buffer) == [[0, 1, 2, 3, 4]]


# --- the open episode ---


def test_an_episode_inside_another_is_refused_and_the_outer_one_goes_on(tmp_path):
    with make_plain(tmp_path) as buffer:
        with buffer.one_episode():
            buffer.store(x=1)
            for refused in (
                buffer.one_episode,
                lambda: buffer.batched_episode(2),
                lambda: buffer.store_episode(x=[1]),
                lambda: buffer.store_batch(x=[1]),
                lambda: buffer.add_field("y", "float"),
                buffer.clear,
            ):
                with pytest.raises(EpisodeStateError) as caught:
                    refused()
                assert isinstance(caught.value, ValueError)
            buffer.store(x=2)
        assert contents(buffer) == [[1, 2]]


def test_two_episodes_made_before_either_is_opened(tmp_path):
    with make_plain(tmp_path) as buffer:
        one, other = buffer.one_episode(), buffer.one_episode()
        with one:
            with pytest.raises(EpisodeStateError):
                other.__enter__()
            buffer.store(x=1)
        with other:
            buffer.store(x=2)
        with pytest.raises(EpisodeStateError):
            one.__enter__()
        assert contents(buffer) == [[1], [2]]


def test_storing_outside_of_an_episode(tmp_path):
    with make(tmp_path) as buffer:
        for call in (
            lambda: buffer.store(action=1),
            lambda: buffer.store_final(state=[1, 2, 3]),
            lambda: buffer.store_batch(action=[1]),
        ):
            with pytest.raises(EpisodeStateError, match="outside"):
                call()
        with buffer.batched_episode(2):
            with pytest.raises(EpisodeStateError, match="store_batch"):
                buffer.store(action=1)
            buffer.store_batch(action=[1, 2])
        with pytest.raises(EpisodeStateError):
            buffer.store_batch(action=[1, 2])
        assert buffer.num_steps == 2


def test_nothing_comes_after_the_last_observation(tmp_path):
    with make(tmp_path) as buffer:
        with buffer.one_episode():
            buffer.store(state=[1, 1, 1])
            buffer.store_final(state=[2, 2, 2])
            with pytest.raises(EpisodeStateError, match="store_final"):
                buffer.store(state=[3, 3, 3])
            with pytest.raises(EpisodeStateError):
                buffer.store_final(state=[4, 4, 4])
        with buffer.batched_episode(1):
            buffer.store_batch(state=[[1, 1, 1]])
            buffer.store_final(state=[[2, 2, 2]])
            with pytest.raises(EpisodeStateError, match="store_final"):
                buffer.store_batch(state=[[3, 3, 3]])
            with pytest.raises(EpisodeStateError):
                buffer.store_final(state=[[4, 4, 4]])
        for episode in buffer:
            assert episode["state"].tolist() == [[1, 1, 1], [2, 2, 2]]
            assert len(episode["action"]) == 1


class _Stop(BaseException):
    """Not even an Exception."""


@pytest.mark.parametrize("error", [RuntimeError("stop"), KeyboardInterrupt(), _Stop()], ids=repr)
@pytest.mark.parametrize("circular", [False, True])
def test_an_exception_inside_discards_the_episode_and_is_raised_on(tmp_path, monkeypatch, error, circular):
    monkeypatch.setattr(staging, "CHUNK_ROWS", 2)
    with make_plain(tmp_path, max_episodes=9, circular=circular) as buffer:
        add(buffer, 2)

        def fail_in_one():
            with buffer.one_episode():
                for _ in range(7):
                    buffer.store(x=8)
                raise error

        def fail_in_a_block():
            with buffer.batched_episode(2):
                buffer.store_batch(x=[8, 8])
                raise error

        for fail in (fail_in_one, fail_in_a_block):
            with pytest.raises(type(error)) as caught:
                fail()
            assert caught.value is error
        add(buffer, 3)
        assert contents(buffer) == [[0, 1], [100, 101, 102]]
        assert ids(buffer) == [0, 1]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checksums",
        "commit.npy",
        "episodes",
        "metadata.json",
        "steps",
        "writer.lock",
    ]


def test_meta_values_known_only_at_the_end(tmp_path):
    with make(tmp_path) as buffer:
        with buffer.one_episode(seed=1) as final:
            buffer.store(action=1)
            final["score"] = [1.0, 2.0]
        with buffer.one_episode(seed=1) as final:
            buffer.store(action=1)
            final["seed"] = 2  # the later value counts
        with buffer.batched_episode(2, seed=[3, 4]) as final:
            buffer.store_batch(action=[1, 2])
            final["score"] = [[1, 2], [3, 4]]
        assert [int(episode.meta["seed"]) for episode in buffer] == [1, 2, 3, 4]
        assert [episode.meta["score"].tolist() for episode in buffer] == [[1, 2], [0, 0], [1, 2], [3, 4]]
        for context, step in (
            (buffer.one_episode(), lambda: buffer.store(action=1)),
            (buffer.batched_episode(1), lambda: buffer.store_batch(action=[1])),
        ):
            final = context.__enter__()
            step()
            final["return"] = 1.0
            with pytest.raises(FieldError, match="unknown meta field 'return'"):
                context.__exit__(None, None, None)
        assert len(buffer) == 4
        buffer.store_episode(action=[5])
        assert buffer.episode(-1)["action"].tolist() == [5]


def test_an_episode_without_a_transition_is_never_committed(tmp_path):
    with make(tmp_path) as buffer:
        with buffer.one_episode(seed=1) as final:
            final["seed"] = 2
        with buffer.one_episode():
            buffer.store_final(state=[1, 2, 3])
        with buffer.batched_episode(3):
            pass
        with buffer.batched_episode(3):
            buffer.store_final(state=np.zeros((3, 3)))
        assert len(buffer) == 0
        buffer.store_episode(action=[1])
        assert ids(buffer) == [0]


@pytest.mark.parametrize("size", [0, -1, 1.0, True, "2", None])
def test_a_batch_has_a_positive_size(tmp_path, size):
    with make_plain(tmp_path) as buffer, pytest.raises(FieldError, match="batch_size"):
        buffer.batched_episode(size)


def test_batched_meta_is_one_value_for_all_or_one_each(tmp_path):
    with make(tmp_path) as buffer:
        with buffer.batched_episode(2, seed=5, score=[1, 2]):
            buffer.store_batch(action=[1, 2])
        assert [int(episode.meta["seed"]) for episode in buffer] == [5, 5]
        # One row of two numbers for two episodes can only be one value for all: the field's own shape is (2,).
        assert [episode.meta["score"].tolist() for episode in buffer] == [[1, 2], [1, 2]]
        with pytest.raises(FieldError):
            buffer.batched_episode(2, seed=[1, 2, 3])


# --- opening ---

OTHER_CONFIGS = {
    "max_episodes": ({"max_episodes": 6}, ["max_episodes: stored 5, passed 6"]),
    "max_timesteps": ({"max_timesteps": 6}, ["max_timesteps: stored 4, passed 6"]),
    "max_steps": ({"max_steps": 9}, ["max_steps: stored None, passed 9"]),
    "circular": ({"circular": True}, ["circular: stored False, passed True"]),
    "dtype": ({"fields": {**FIELDS, "action": "int32"}}, ["fields['action']", "'int64'", "'int32'"]),
    "default": ({"fields": {**FIELDS, "reward": "float64"}}, ["fields['reward']", "0.5", "None"]),
    "state": ({"fields": {**FIELDS, "state": ("float", 3)}}, ["fields['state']", "state=True", "state=False"]),
    "one less": ({"fields": {"action": ("int", (), -1)}}, ["fields['state']", "fields['reward']", "passed None"]),
    "one more": ({"fields": {**FIELDS, "z": "int"}}, ["fields['z']: stored None"]),
    "meta": ({"meta_fields": {**META, "seed": "int32"}}, ["meta_fields['seed']", "'int64'", "'int32'"]),
    "several": ({"max_episodes": 6, "meta_fields": {}}, ["max_episodes", "meta_fields['seed']"]),
}


@pytest.mark.parametrize(("config", "parts"), OTHER_CONFIGS.values(), ids=OTHER_CONFIGS)
def test_another_config_lists_what_is_stored_and_what_was_passed(tmp_path, config, parts):
    make(tmp_path, max_episodes=5, max_timesteps=4).close()
    before = files_of(tmp_path)
    with pytest.raises(ConfigMismatchError, match="was created with a different config") as caught:
        ReplayBuffer(tmp_path, **config)
    assert isinstance(caught.value, ValueError)
    assert all(part in str(caught.value) for part in parts), caught.value
    assert files_of(tmp_path) == before


def test_none_means_what_is_stored(tmp_path):
    make(tmp_path, max_episodes=5, max_timesteps=4, circular=True).close()
    openings = (
        ReplayBuffer(tmp_path),
        ReplayBuffer.from_folder(tmp_path),
        ReplayBuffer.from_folder(str(tmp_path), read_only=True),
        ReplayBuffer(tmp_path, max_episodes=5),
        make(tmp_path, max_episodes=np.int32(5), max_timesteps=4, circular=True),
    )
    for buffer in openings:
        with buffer:
            assert (buffer.max_episodes, buffer.max_timesteps, buffer.max_steps, buffer.circular) == (5, 4, None, True)
            assert buffer.metadata.fields == FIELDS
            assert buffer.fieldnames == ("state", "action", "reward", "done")
            assert buffer.meta_fieldnames == ("seed", "score")
            assert buffer.folder == tmp_path


def test_a_linear_buffer_is_not_opened_with_the_limits_that_it_lacks(tmp_path):
    make_plain(tmp_path).close()
    with ReplayBuffer(tmp_path, circular=False) as buffer:
        assert not buffer.circular
    with pytest.raises(ConfigMismatchError):
        ReplayBuffer(tmp_path, max_episodes=1)


def test_a_missing_buffer_is_not_created_without_fields(tmp_path):
    for call in (
        lambda: ReplayBuffer(tmp_path / "a"),
        lambda: ReplayBuffer(tmp_path / "a", fields={"x": "int"}, read_only=True),
        lambda: ReplayBuffer.from_folder(tmp_path / "a"),
        lambda: ReplayBuffer.from_folder(tmp_path / "a", read_only=True),
    ):
        with pytest.raises(BufferNotFoundError) as caught:
            call()
        assert isinstance(caught.value, FileNotFoundError)
        assert str(tmp_path / "a") in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "config",
    [
        {"circular": True},
        {"max_episodes": 0},
        {"max_steps": -1},
        {"max_timesteps": 1.5},
        {"max_episodes": True},
        {"max_episodes": "5"},
        {"fields": {}},
        {"fields": {"a/b": "int"}},
        {"fields": {"a": "complex64"}},
        {"fields": {"Speed": "int", "speed": "int"}},
        {"meta_fields": {"x": "int"}},
        {"durability": "none"},
        {"overwrite": True, "read_only": True},
    ],
    ids=repr,
)
def test_a_config_that_cannot_be_is_refused_before_anything_is_created(tmp_path, config):
    with pytest.raises((FieldError, BufferNotFoundError)):
        make_plain(tmp_path / "data", **config)
    assert not (tmp_path / "data").exists()


def test_an_existing_buffer_is_appended_to(tmp_path):
    with make_plain(tmp_path) as buffer:
        add(buffer, 2)
    with make_plain(tmp_path) as buffer:
        add(buffer, 3)
        assert contents(buffer) == [[0, 1], [100, 101, 102]]


# --- overwriting ---


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("mine", ["notes.txt", "steps/x.npy", "steps/deep/notes.txt", "episodes", ".hidden"])
def test_a_folder_that_is_no_buffer_is_refused(tmp_path, overwrite, mine):
    path = tmp_path / mine
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("precious")
    before = files_of(tmp_path)
    with pytest.raises(NotABufferError, match=path.relative_to(tmp_path).parts[0]) as caught:
        make_plain(tmp_path, overwrite=overwrite)
    assert isinstance(caught.value, FileExistsError)
    assert files_of(tmp_path) == before


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_is_no_folder(tmp_path, overwrite):
    (tmp_path / "data").write_text("precious")
    with pytest.raises((NotABufferError, NotADirectoryError)):
        make_plain(tmp_path / "data", overwrite=overwrite)
    assert (tmp_path / "data").read_text() == "precious"


def test_overwriting_deletes_only_what_the_metadata_lists(tmp_path):
    with make(tmp_path) as buffer:
        buffer.store_episode(action=[1])
    mine = ["notes.txt", "steps/mine.npy", "steps/deep/mine.npy", "checksums/mine.npy", "plots/a.png"]
    for name in mine:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    with ReplayBuffer(tmp_path, fields={"action": "int32", "other.deep": "float"}, overwrite=True) as buffer:
        assert len(buffer) == 0
        buffer.store_episode(action=[5, 6])
        assert ids(buffer) == [0]
    assert all((tmp_path / name).read_text() == name for name in mine)
    assert sorted(path.name for path in (tmp_path / "steps").rglob("*.npy")) == [
        "action.npy",
        "deep.npy",
        "mine.npy",
        "mine.npy",
    ]
    assert not (tmp_path / "episodes/meta").exists()
    assert leftovers(tmp_path) == []
    assert check_buffer(tmp_path, progress=False).ok


def test_overwriting_what_somebody_writes_changes_nothing(tmp_path):
    with make_plain(tmp_path) as writer:
        add(writer, 3)
        before = files_of(tmp_path)
        with pytest.raises(BufferLockedError):
            ReplayBuffer(tmp_path, fields={"y": "int"}, overwrite=True)
        with pytest.raises(FieldError):
            ReplayBuffer(tmp_path, overwrite=True)
        assert files_of(tmp_path) == before
        add(writer, 1)
        assert contents(writer) == [[0, 1, 2], [100]]


def test_nothing_outside_the_folder_is_touched_by_overwriting(tmp_path):
    """Rule 6 and rule 10: a folder from a stranger, in which a folder is a link to somewhere else."""
    folder, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    ReplayBuffer(folder, fields={"x": "int", "sub.important": "int"}).close()
    (folder / "steps/sub").rename(elsewhere)
    (folder / "steps/sub").symlink_to(elsewhere)
    with contextlib.suppress(Exception):
        ReplayBuffer(folder, fields={"x": "int"}, overwrite=True).close()
    assert [path.name for path in elsewhere.iterdir()] == ["important.npy"]


def test_nothing_outside_the_folder_is_touched_by_finishing_a_change(tmp_path):
    """Rule 10: the metadata of a stranger lists an obsolete file behind a link."""
    folder, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    make_plain(folder).close()
    elsewhere.mkdir()
    (elsewhere / "important.npy").write_text("precious")
    (folder / "steps/sub").symlink_to(elsewhere)
    metadata = json.loads((folder / "metadata.json").read_text())
    metadata["obsolete"] = ["steps/sub/important.npy"]
    (folder / "metadata.json").write_text(json.dumps(metadata))
    with contextlib.suppress(Exception), ReplayBuffer.from_folder(folder) as buffer:
        add(buffer, 1)
    assert (elsewhere / "important.npy").read_text() == "precious"


def test_a_link_in_place_of_the_lock_is_not_followed(tmp_path):
    make_plain(tmp_path / "data").close()
    (tmp_path / "mine").write_text("precious")
    (tmp_path / "data/writer.lock").unlink()
    (tmp_path / "data/writer.lock").symlink_to(tmp_path / "mine")
    with ReplayBuffer.from_folder(tmp_path / "data") as buffer, pytest.raises(OSError, match="links"):
        add(buffer, 1)
    assert (tmp_path / "mine").read_text() == "precious"


# --- reading only ---

WRITES = {
    "store_episode": lambda buffer: buffer.store_episode(x=[1]),
    "one_episode": lambda buffer: buffer.one_episode().__enter__(),
    "batched_episode": lambda buffer: buffer.batched_episode(1).__enter__(),
    "update": lambda buffer: buffer.update([0], x=[[1, 2]]),
    "add_field": lambda buffer: buffer.add_field("new", "float"),
    "delete": lambda buffer: buffer.delete([0]),
    "clear": lambda buffer: buffer.clear(),
}


def test_a_read_only_buffer_creates_and_writes_nothing(tmp_path):
    with make_plain(tmp_path) as buffer:
        add(buffer, 2, 3)
    (tmp_path / "writer.lock").unlink()
    before = files_of(tmp_path)
    with ReplayBuffer.from_folder(tmp_path, read_only=True) as buffer:
        assert buffer.read_only
        assert contents(buffer) == [[0, 1], [100, 101, 102]]
        buffer.get_all_data()
        list(buffer.dataloader(2, n_steps=1, shuffle=True))
        buffer.refresh()
        buffer.flush()
        buffer.release()
        pickle.loads(pickle.dumps(buffer)).close()
        buffer.episode(0).copy()
        for write in WRITES.values():
            with pytest.raises(ReadOnlyError, match="read_only=True") as caught:
                write(buffer)
            assert isinstance(caught.value, OSError)
        assert contents(buffer) == [[0, 1], [100, 101, 102]]
    assert files_of(tmp_path) == before


def test_a_plain_opening_locks_and_writes_nothing_before_the_first_write(tmp_path):
    with make_plain(tmp_path) as buffer:
        add(buffer, 2)
    (tmp_path / "writer.lock").unlink()
    before = files_of(tmp_path)
    with ReplayBuffer.from_folder(tmp_path) as one, ReplayBuffer.from_folder(tmp_path) as other:
        assert len(one) == len(other) == 1
        one.flush()
        assert files_of(tmp_path) == before
        add(other, 1)
        with pytest.raises(BufferLockedError):
            add(one, 1)


def test_a_buffer_in_a_folder_that_cannot_be_written_is_read(tmp_path):
    with make_plain(tmp_path / "data") as buffer:
        add(buffer, 2)
    folders = [tmp_path / "data", *(path for path in (tmp_path / "data").rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    try:
        with ReplayBuffer.from_folder(tmp_path / "data") as buffer:
            assert contents(buffer) == [[0, 1]]
    finally:
        for folder in folders:
            folder.chmod(0o755)


# --- one writer ---

WRITE_ONE = """
import sys
from gym_replay import ReplayBuffer, BufferLockedError
try:
    with ReplayBuffer.from_folder(sys.argv[1]) as buffer:
        buffer.store_episode(x=[7])
    print("stored")
except BufferLockedError as error:
    print(error)
"""


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_a_second_writer_in_this_process_is_refused(tmp_path, write):
    with make_plain(tmp_path) as writer, ReplayBuffer.from_folder(tmp_path) as other:
        add(writer, 2, 3)
        other.refresh()
        with pytest.raises(BufferLockedError, match=rf"this process|{os.getpid()}") as caught:
            write(other)
        assert isinstance(caught.value, OSError)
        assert str(tmp_path) in str(caught.value)
        add(writer, 1)
        other.refresh()
        assert contents(other) == contents(writer) == [[0, 1], [100, 101, 102], [200]]


def test_a_second_writer_in_another_process_is_told_who_writes(tmp_path):
    with make_plain(tmp_path) as writer:
        add(writer, 2)
        status, answer = run_script(WRITE_ONE, tmp_path)
        assert status == 0
        assert f"process {os.getpid()} is writing" in answer
    status, answer = run_script(WRITE_ONE, tmp_path)
    assert (status, answer) == (0, "stored")
    with ReplayBuffer.from_folder(tmp_path) as buffer:
        assert contents(buffer) == [[0, 1], [7]]


def test_creating_takes_the_lock_at_once(tmp_path):
    with make_plain(tmp_path), ReplayBuffer.from_folder(tmp_path) as other, pytest.raises(BufferLockedError):
        add(other, 1)


def test_a_forked_child_is_no_writer_but_reads(tmp_path):
    with make_plain(tmp_path) as buffer:
        add(buffer, 2, 3)

        def child():
            errors = {name: name_of_error(lambda write=write: write(buffer)) for name, write in WRITES.items()}
            return [errors, contents(buffer), len(buffer), buffer.num_steps]

        errors, content, count, steps = in_fork(child)
        assert errors == dict.fromkeys(WRITES, "BufferLockedError")
        assert content == [[0, 1], [100, 101, 102]]
        assert (count, steps) == (2, 5)
        add(buffer, 1)
        assert contents(buffer) == [[0, 1], [100, 101, 102], [200]]
    assert check_buffer(tmp_path, progress=False).ok


@pytest.mark.parametrize("end", ["close", "del", "release", "finalize"])
def test_a_forked_child_that_ends_leaves_the_lock_to_the_parent(tmp_path, end):
    buffer = make_plain(tmp_path)
    add(buffer, 2)

    def child():
        nonlocal buffer
        if end == "close":
            buffer.close()
        elif end == "release":
            buffer.release()
        elif end == "finalize":
            buffer._finalizer()
        del buffer
        gc.collect()

    in_fork(child)
    before = files_of(tmp_path)
    _, answer = run_script(WRITE_ONE, tmp_path)
    assert f"process {os.getpid()} is writing" in answer
    assert files_of(tmp_path) == before
    add(buffer, 1)
    buffer.close()
    assert read_counters(tmp_path)["summed"] == 2


def test_a_forked_child_may_open_a_buffer_of_its_own(tmp_path):
    with make_plain(tmp_path / "a") as buffer:

        def child():
            with make_plain(tmp_path / "b") as own:
                add(own, 2)

        assert in_fork(child) is None
        add(buffer, 1)
    with ReplayBuffer.from_folder(tmp_path / "b") as own:
        assert contents(own) == [[0, 1]]


@pytest.mark.parametrize("end", ["close", "with", "del", "del in an episode", "release"])
def test_the_lock_is_let_go(tmp_path, end):
    buffer = make_plain(tmp_path)
    add(buffer, 2)
    if end == "with":
        with buffer:
            pass
    elif end == "close":
        buffer.close()
    elif end == "release":
        buffer.release()
    else:
        if end == "del in an episode":
            buffer.one_episode().__enter__()
            buffer.store(x=9)
        del buffer
        gc.collect()
    with ReplayBuffer.from_folder(tmp_path) as other:
        add(other, 1)
        assert contents(other) == [[0, 1], [100]]
    if end == "release":  # reading goes on, and so does writing
        buffer.refresh()
        assert contents(buffer) == [[0, 1], [100]]
        add(buffer, 1)
        buffer.close()


@pytest.mark.parametrize("end", ["exit", "os._exit", "kill", "uncaught"])
def test_the_lock_dies_with_its_process(tmp_path, end):
    ending = {
        "exit": "",
        "os._exit": "os._exit(0)",
        "kill": "os.kill(os.getpid(), signal.SIGKILL)",
        "uncaught": "raise RuntimeError",
    }[end]
    script = f"""
import os, signal, sys
from gym_replay import ReplayBuffer
buffer = ReplayBuffer(sys.argv[1], fields={{"x": "int64"}})
buffer.store_episode(x=[1, 2])
context = buffer.one_episode()
context.__enter__()
buffer.store(x=3)
{ending}
"""
    status, _ = run_script(script, tmp_path)
    assert status == {"exit": 0, "os._exit": 0, "kill": -signal.SIGKILL, "uncaught": 1}[end]
    with ReplayBuffer.from_folder(tmp_path) as buffer:
        assert contents(buffer) == [[1, 2]]
        summed = read_counters(tmp_path)["summed"]
        assert summed == (1 if end in ("exit", "uncaught") else 0)
        buffer.store_episode(x=[5])
        assert contents(buffer) == [[1, 2], [5]]
    assert check_buffer(tmp_path, progress=False).ok


# --- pickling ---


def test_a_pickle_is_the_path_and_reads_only(tmp_path):
    with make_plain(tmp_path) as buffer:
        buffer.store_episode(x=np.arange(50_000))
        content = pickle.dumps(buffer)
        assert len(content) < 1000
        add(buffer, 2)
        with pickle.loads(content) as copy:
            assert copy.read_only
            assert copy.folder == tmp_path
            assert len(copy) == 2
            with pytest.raises(ReadOnlyError):
                add(copy, 1)
    assert len(pickle.loads(content)) == 2, "a pickle outlives the object that it was made of"


def test_a_pickled_dataset_reads_from_the_folder(tmp_path):
    with make_plain(tmp_path) as buffer:
        buffer.store_episode(x=np.arange(50_000))
        dataset = buffer.dataset(timestep_level=True)
        content = pickle.dumps(dataset)
        assert len(content) < 10_000
        assert pickle.loads(content)[np.array([3, 49_999])]["x"].tolist() == [3, 49_999]


# --- reading ---


def test_episodes_by_index(tmp_path):
    with make_plain(tmp_path) as buffer:
        assert list(buffer) == []
        assert bool(buffer)
        assert buffer.episode_lens.tolist() == []
        add(buffer, 1, 2, 3)
        assert [len(episode) for episode in buffer] == [1, 2, 3]
        assert buffer.episode_lens.tolist() == [1, 2, 3]
        assert (len(buffer), buffer.num_episodes, buffer.num_steps) == (3, 3, 6)
        for index in (2, -1, np.int64(2), np.int8(-1)):
            assert buffer.episode(index).id == buffer[index].id == 2
        assert buffer.episode(-3).id == 0
        for index in (3, -4, 1 << 70):
            with pytest.raises(IndexError, match="there are 3"):
                buffer.episode(index)


def test_an_episode_is_a_mapping(tmp_path):
    with make(tmp_path) as buffer:
        buffer.store_episode(state=np.ones((3, 3)), action=[1, 2], seed=4)
        buffer.store_episode(state=np.ones((2, 3)), action=[1, 2])
        episode, cut = buffer
        assert list(episode) == episode.keys() == list(FIELDS)
        assert {name: array.shape for name, array in episode.items()} == {
            "state": (3, 3),
            "action": (2,),
            "reward": (2,),
            "done": (2,),
        }
        assert "state" in episode
        assert "seed" not in episode
        assert cut["state"].shape == (2, 3)
        assert (episode.has_final, cut.has_final) == (True, False)
        with pytest.raises(FieldError, match="unknown field 'x'"):
            episode["x"]
        with pytest.raises(FieldError, match=r"episode\.meta"):
            episode["seed"]
        assert episode.meta == {"seed": 4, "score": pytest.approx(np.zeros(2))}
        assert isinstance(episode.meta["seed"], np.int64)


def test_views_are_read_only(tmp_path):
    with make(tmp_path) as buffer:
        buffer.store_episode(state=np.ones((3, 3)), action=[1, 2])
        for array in (*dict(buffer.episode(0).items()).values(), buffer.episode(0)["state"][1:, 0]):
            assert not array.flags.writeable
            with pytest.raises(ValueError, match="read-only"):
                array[...] = 0
            with pytest.raises(ValueError, match="WRITEABLE"):
                array.flags.writeable = True
        copy = buffer.episode(0).copy()
        copy["state"][...] = 5
        assert buffer.episode(0)["state"].max() == 1
        assert copy.id == 0
        assert copy.meta.keys() == META.keys()


def test_views_do_not_copy(tmp_path):
    with make_plain(tmp_path) as buffer:
        add(buffer, 4)
        one, other = buffer.episode(0)["x"], buffer.episode(0)["x"]
        assert np.shares_memory(one, other)


AFTER = {
    "close": lambda buffer: buffer.close(),
    "clear": lambda buffer: buffer.clear(),
    "clear and store": lambda buffer: (buffer.clear(), buffer.store_episode(x=np.full(3000, -1))),
    "update": lambda buffer: buffer.update(x=np.full((2, 2000), -1)),
    "add_field": lambda buffer: buffer.add_field("y", "float"),
    "delete": lambda buffer: (buffer.delete(slice(None)), buffer.store_episode(x=np.full(3000, -1)), buffer.close()),
    "overwrite": lambda buffer: (
        buffer.close(),
        ReplayBuffer(buffer.folder, fields={"x": "int64"}, overwrite=True).store_episode(x=np.full(3000, -1)),
    ),
}


@pytest.mark.parametrize("act", AFTER.values(), ids=AFTER)
def test_views_stay_good(tmp_path, act):
    buffer = make_plain(tmp_path)
    for number in range(2):
        buffer.store_episode(x=number * 10_000 + np.arange(2000))
    views = [episode["x"] for episode in buffer]
    with ReplayBuffer.from_folder(tmp_path, read_only=True) as reader:
        others = [episode["x"] for episode in reader]
        act(buffer)
        gc.collect()
        for number, (view, other) in enumerate(zip(views, others, strict=True)):
            assert view.tolist() == other.tolist() == (number * 10_000 + np.arange(2000)).tolist()
    buffer.close()


def test_get_all_data(tmp_path):
    with make(tmp_path) as buffer:
        assert buffer.get_all_data() == {}
        buffer.store_episode(state=np.ones((3, 3)), action=[1, 2], done=[False, True], seed=4, score=[1, 2])
        buffer.store_episode(state=np.full((1, 3), 2), action=[3])
        data = buffer.get_all_data()
        assert set(data) == {*FIELDS, *META, "episode_lens"}
        assert all(isinstance(value, torch.Tensor) for value in data.values())
        assert data["state"].tolist() == [[[1, 1, 1], [1, 1, 1]], [[2, 2, 2], [0, 0, 0]]]
        assert data["action"].tolist() == [[1, 2], [3, 0]]
        assert data["reward"].tolist() == [[0.5, 0.5], [0.5, 0]]
        assert data["done"].dtype == torch.bool
        assert data["seed"].tolist() == [4, -7]
        assert data["score"].tolist() == [[1, 2], [0, 0]]
        assert data["episode_lens"].tolist() == [2, 1]
        assert data["episode_lens"].dtype == torch.int64
        assert set(buffer.get_all_data(fields=["action"])) == {"action", "episode_lens"}
        assert set(buffer.get_all_data(meta_fields=["seed"])) == {"seed", "episode_lens"}
        assert set(buffer.get_all_data(["action"], ["seed"], device="cpu")) == {"action", "seed", "episode_lens"}
        for wrong in ({"fields": ["seed"]}, {"meta_fields": ["action"]}, {"fields": ["nothing"]}):
            with pytest.raises(FieldError, match="unknown name"):
                buffer.get_all_data(**wrong)


def test_a_reader_sees_commits_when_it_refreshes(tmp_path):
    with make_plain(tmp_path) as writer, ReplayBuffer.from_folder(tmp_path, read_only=True) as reader:
        for number in range(40):
            writer.store_episode(x=np.full(500, number))
            assert len(reader) == number
            reader.refresh()
            assert len(reader) == number + 1
            assert reader.episode(-1)["x"].tolist() == [number] * 500
        writer.delete([0, -1])
        assert len(reader) == 40
        reader.refresh()
        assert ids(reader) == list(range(1, 39))
        writer.update(0, x=np.zeros(500, int))
        assert reader.episode(0)["x"].max() == 1
        reader.refresh()
        assert reader.episode(0)["x"].max() == 0
        writer.add_field("y", ("float", (), 2))
        assert reader.fieldnames == ("x",)
        reader.refresh()
        assert reader.episode(0)["y"].tolist() == [2.0] * 500
        writer.clear()
        assert len(reader) == 38
        reader.refresh()
        assert len(reader) == 0


def test_a_reader_in_another_process_sees_commits_while_they_are_made(tmp_path):
    script = """
import sys
from gym_replay import ReplayBuffer
reader = ReplayBuffer.from_folder(sys.argv[1], read_only=True)
for line in sys.stdin:
    reader.refresh()
    print(len(reader), [int(v) for v in reader.episode(-1)["x"]], flush=True)
"""
    with make_plain(tmp_path) as writer:
        add(writer, 1)
        with subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            for number in range(1, 5):
                add(writer, 2)
                process.stdin.write("\n")
                process.stdin.flush()
                assert process.stdout.readline().strip() == f"{number + 1} [{number * 100}, {number * 100 + 1}]"
            process.stdin.close()


def test_an_open_episode_is_invisible(tmp_path, monkeypatch):
    monkeypatch.setattr(staging, "CHUNK_ROWS", 2)
    with make_plain(tmp_path) as writer, ReplayBuffer.from_folder(tmp_path) as reader:
        with writer.one_episode():
            for t in range(9):
                writer.store(x=t)
                reader.refresh()
                assert len(reader) == len(writer) == 0
        reader.refresh()
        assert contents(reader) == [list(range(9))]


# --- the end ---

USES = {
    **WRITES,
    "len": len,
    "num_steps": lambda buffer: buffer.num_steps,
    "num_episodes": lambda buffer: buffer.num_episodes,
    "episode_lens": lambda buffer: buffer.episode_lens,
    "episode": lambda buffer: buffer.episode(0),
    "iteration": list,
    "store": lambda buffer: buffer.store(x=1),
    "store_batch": lambda buffer: buffer.store_batch(x=[1]),
    "store_final": lambda buffer: buffer.store_final(),
    "refresh": lambda buffer: buffer.refresh(),
    "flush": lambda buffer: buffer.flush(),
    "get_all_data": lambda buffer: buffer.get_all_data(),
    "dataset": lambda buffer: buffer.dataset(),
    "dataloader": lambda buffer: buffer.dataloader(1),
}


@pytest.mark.parametrize("read_only", [False, True])
def test_nothing_is_done_with_a_closed_buffer(tmp_path, read_only):
    with make_plain(tmp_path) as buffer:
        add(buffer, 2)
    if read_only:
        buffer = ReplayBuffer.from_folder(tmp_path, read_only=True)
        buffer.close()
    before = files_of(tmp_path)
    for _ in range(2):
        buffer.close()  # twice is fine
    for name, use in USES.items():
        with pytest.raises(BufferClosedError, match="closed") as caught:
            use(buffer)
        assert isinstance(caught.value, ValueError), name
    assert "closed" in repr(buffer)
    assert buffer.folder == tmp_path
    assert files_of(tmp_path) == before


def test_closing_discards_the_open_episode(tmp_path, monkeypatch):
    monkeypatch.setattr(staging, "CHUNK_ROWS", 2)
    buffer = make_plain(tmp_path)
    add(buffer, 2)
    context = buffer.one_episode()
    context.__enter__()
    for t in range(9):
        buffer.store(x=t)
    buffer.close()
    with pytest.raises(EpisodeStateError):
        context.__exit__(None, None, None)
    with ReplayBuffer.from_folder(tmp_path) as again:
        assert contents(again) == [[0, 1]]
    assert len(np.load(tmp_path / "steps/x.npy")) == 2


def test_closing_gives_back_what_was_not_used(tmp_path):
    with make(tmp_path) as buffer:
        buffer.store_episode(state=np.ones((3, 3)), action=[1, 2])
        assert len(np.load(tmp_path / "steps/action.npy", mmap_mode="r")) > 3
    for path in tmp_path.rglob("*.npy"):
        assert len(np.load(path)) == {"steps": 3, "commit.npy": 6}.get(path.relative_to(tmp_path).parts[0], 1)


# --- changing what is stored ---


def filled(folder):
    buffer = make(folder)
    for number, length in enumerate((2, 3, 1)):
        buffer.store_episode(
            state=np.full((length + 1, 3), number),
            action=number * 10 + np.arange(length),
            seed=number,
            score=[number, 0],
        )
    return buffer


def test_update_of_one_episode(tmp_path):
    with filled(tmp_path) as buffer:
        buffer.update(1, action=[7, 8, 9], seed=70)
        buffer.update(-1, state=[[5, 5, 5], [6, 6, 6]])
        assert contents(buffer, "action") == [[0, 1], [7, 8, 9], [20]]
        assert [int(episode.meta["seed"]) for episode in buffer] == [0, 70, 2]
        assert [episode.meta["score"].tolist() for episode in buffer] == [[0, 0], [1, 0], [2, 0]]
        assert buffer.episode(2)["state"].tolist() == [[5, 5, 5], [6, 6, 6]]
        buffer.update(2, state=[[9, 9, 9]])  # T rows leave the last observation as it is
        assert buffer.episode(2)["state"].tolist() == [[9, 9, 9], [6, 6, 6]]
    assert check_buffer(tmp_path, progress=False).ok


@pytest.mark.parametrize(
    "episodes", [None, slice(None), [0, 1, 2], np.arange(3), [True] * 3, np.array([-3, -2, -1], np.int8)], ids=repr
)
def test_update_of_all_episodes(tmp_path, episodes):
    with filled(tmp_path) as buffer:
        buffer.update(episodes, action=[[5, 6], [7, 8, 9], [4]], reward=torch.ones(3, 4), seed=[9, 8, 7])
        assert contents(buffer, "action") == [[5, 6], [7, 8, 9], [4]]
        assert contents(buffer, "reward") == [[1, 1], [1, 1, 1], [1]]
        assert [int(episode.meta["seed"]) for episode in buffer] == [9, 8, 7]
        assert ids(buffer) == [0, 1, 2]


def test_update_in_another_order(tmp_path):
    with filled(tmp_path) as buffer:
        buffer.update([2, 0], action=[[4], [5, 6]], seed=[9, 8])
        assert contents(buffer, "action") == [[5, 6], [10, 11, 12], [4]]
        assert [int(episode.meta["seed"]) for episode in buffer] == [8, 1, 9]


BAD_UPDATES = {
    "nothing": (None, {}, FieldError),
    "unknown": (0, {"x": [1]}, FieldError),
    "shape": (0, {"state": [[1, 2], [3, 4]]}, FieldError),
    "dtype": (0, {"action": [0.5, 1.5]}, FieldError),
    "too short": (0, {"action": [1]}, FieldError),
    "too long list": ([0, 1], {"action": [[1, 2, 3], [1, 2, 3, 4]]}, FieldError),
    "one episode too few": (None, {"action": [[1, 2], [1, 2, 3]]}, FieldError),
    "meta": ([0, 1], {"seed": [1]}, FieldError),
    "meta dtype": ([0], {"seed": [1.5]}, FieldError),
    "second is bad": ([0], {"action": [[1, 2]], "seed": [1.5]}, FieldError),
    "index": (3, {"action": [1]}, IndexError),
    "indices": ([0, -4], {"seed": [1, 2]}, IndexError),
    "twice": ([0, 0], {"seed": [1, 2]}, FieldError),
    "twice by sign": ([0, -3], {"seed": [1, 2]}, FieldError),
    "mask": ([True, False], {"seed": [1]}, FieldError),
    "float": (1.0, {"seed": 1}, FieldError),
    "two axes": ([[0, 1]], {"seed": [1, 2]}, FieldError),
}


@pytest.mark.parametrize(("episodes", "arrays", "error"), BAD_UPDATES.values(), ids=BAD_UPDATES)
def test_a_wrong_update_changes_nothing(tmp_path, episodes, arrays, error):
    with filled(tmp_path) as buffer:
        before = [[array.tolist() for _, array in episode.items()] for episode in buffer]
        with pytest.raises(error):
            buffer.update(episodes, **arrays)
        assert [[array.tolist() for _, array in episode.items()] for episode in buffer] == before
        assert [int(episode.meta["seed"]) for episode in buffer] == [0, 1, 2]
        assert leftovers(tmp_path) == []
        buffer.update(0, seed=5)
        assert buffer.episode(0).meta["seed"] == 5


def test_a_field_whose_name_is_an_argument_can_be_updated(tmp_path):
    fields = dict.fromkeys(("name", "self", "fields", "values"), "int")
    with ReplayBuffer(tmp_path, fields=fields, meta_fields={"batch_size": "int", "meta": "int"}) as buffer:
        with buffer.one_episode(batch_size=1, meta=2):
            buffer.store(**dict.fromkeys(fields, 3))
        buffer.store_episode(**{name: [4] for name in fields}, batch_size=5, meta=6)
        assert [[array.tolist() for _, array in episode.items()] for episode in buffer] == [[[3]] * 4, [[4]] * 4]
        buffer.update(0, **{name: [5] for name in fields})
        assert buffer.episode(0)["self"].tolist() == [5]


def test_add_field(tmp_path):
    with filled(tmp_path) as buffer:
        buffer.add_field("label", ("int", (), 3))
        buffer.add_field("info.value", "float64", [[1, 2], [3, 4, 5], [6]])
        buffer.add_field("next", Field("float", (1,), 9, state=True), [np.full((n + 1, 1), n) for n in (2, 3, 1)])
        buffer.add_field("partly", Field("float", default=9, state=True), [np.full(n, n) for n in (2, 3, 1)])
        buffer.add_field("padded", "uint8", np.arange(12).reshape(3, 4))
        assert contents(buffer, "label") == [[3, 3], [3, 3, 3], [3]]
        assert contents(buffer, "info.value") == [[1, 2], [3, 4, 5], [6]]
        assert contents(buffer, "next") == [[[2]] * 3, [[3]] * 4, [[1]] * 2]
        assert contents(buffer, "partly") == [[2, 2, 9], [3, 3, 3, 9], [1, 9]]
        assert contents(buffer, "padded") == [[0, 1], [4, 5, 6], [8]]
        assert buffer.fieldnames[-5:] == ("label", "info.value", "next", "partly", "padded")
        with buffer.one_episode():
            buffer.store(label=8)
            buffer.store()
        assert buffer.episode(-1)["label"].tolist() == [8, 3]
    assert (tmp_path / "steps/info/value.npy").exists()
    assert check_buffer(tmp_path, progress=False).ok


BAD_FIELDS = {
    "exists": ("action", "int", None),
    "meta exists": ("seed", "int", None),
    "case": ("Action", "int", None),
    "name": ("a/b", "int", None),
    "no name": ("", "int", None),
    "dtype": ("z", "text", None),
    "default": ("z", ("int", (), 0.5), None),
    "too few": ("z", "int", [[1, 2], [1, 2, 3]]),
    "lengths": ("z", "int", [[1, 2], [1, 2], [1]]),
    "values": ("z", "int", [[0.5, 2], [1, 2, 3], [1]]),
    "shape": ("z", ("int", 2), [[1, 2], [1, 2, 3], [1]]),
}


@pytest.mark.parametrize(("name", "info", "values"), BAD_FIELDS.values(), ids=BAD_FIELDS)
def test_a_wrong_field_is_not_added(tmp_path, name, info, values):
    with filled(tmp_path) as buffer:
        with pytest.raises(FieldError):
            buffer.add_field(name, info, values)
        assert buffer.fieldnames == tuple(FIELDS)
        assert leftovers(tmp_path) == []
        buffer.add_field("z", "int")
        assert contents(buffer, "z") == [[0, 0], [0, 0, 0], [0]]


def test_a_state_field_needs_the_rows_that_only_state_fields_bring(tmp_path):
    with make_plain(tmp_path) as buffer:
        add(buffer, 2)
        with pytest.raises(FieldError, match="state=False"):
            buffer.add_field("s", Field("float", state=True))
        assert buffer.fieldnames == ("x",)


def test_delete(tmp_path):
    with make_plain(tmp_path) as buffer, ReplayBuffer.from_folder(tmp_path, read_only=True) as reader:
        add(buffer, 1, 2, 3, 4, 5, 6)
        buffer.delete(1)
        assert ids(buffer) == [0, 2, 3, 4, 5]
        buffer.delete([-1, 0])
        assert ids(buffer) == [2, 3, 4]
        buffer.delete([])
        buffer.delete(np.zeros(3, bool))
        buffer.delete(slice(0, 0))
        assert buffer.num_steps == 12
        buffer.delete([True, False, False])
        assert contents(buffer) == [[300, 301, 302, 303], [400, 401, 402, 403, 404]]
        assert buffer.episode_lens.tolist() == [4, 5]
        reader.refresh()
        assert ids(reader) == [3, 4]
        buffer.delete(slice(None))
        assert (len(buffer), buffer.num_steps) == (0, 0)
        add(buffer, 1)
        assert ids(buffer) == [6]
    assert check_buffer(tmp_path, progress=False).ok


@pytest.mark.parametrize(
    ("episodes", "error"),
    [
        (3, IndexError),
        (-4, IndexError),
        ([0, 3], IndexError),
        ([0, 0], FieldError),
        ([0, -3], FieldError),
        (1.0, FieldError),
        ("0", FieldError),
        ([[0]], FieldError),
        ([True, False], FieldError),
        pytest.param(None, (FieldError, TypeError), id="None"),
    ],
    ids=repr,
)
def test_a_wrong_delete_hides_nothing(tmp_path, episodes, error):
    with make_plain(tmp_path) as buffer:
        add(buffer, 1, 2, 3)
        with pytest.raises(error):
            buffer.delete(episodes)
        assert ids(buffer) == [0, 1, 2]


@pytest.mark.parametrize("circular", [False, True])
def test_an_id_is_never_used_again(tmp_path, circular):
    options = {"max_episodes": 3, "circular": circular}
    used = set()
    buffer = make_plain(tmp_path, **options)
    for act in (
        "nothing",
        "delete",
        "nothing",
        "clear",
        "nothing",
        "delete all",
        "reopen",
        "clear",
        "reopen",
        "overfill",
    ):
        if act == "delete":
            buffer.delete([-1])
        elif act == "delete all":
            buffer.delete(slice(None))
        elif act == "clear":
            buffer.clear()
        elif act == "reopen":
            buffer.close()
            buffer = ReplayBuffer(tmp_path)
        elif act == "overfill" and circular:
            buffer.store_episode(x=np.arange(2))
            used.add(buffer.episode(-1).id)
        if len(buffer) == 3 and not circular:
            buffer.clear()
        buffer.store_episode(x=np.arange(3))
        newest = buffer.episode(-1).id
        assert newest not in used
        assert not used or newest > max(used)
        used.add(newest)
    buffer.close()
    assert check_buffer(tmp_path, progress=False).ok


def test_an_evicted_episode_is_refused_rather_than_torn(tmp_path):
    with make_plain(tmp_path, max_episodes=2, circular=True, meta_fields={"m": "int"}) as buffer:
        for number in range(2):
            buffer.store_episode(x=np.full(3, number), m=number)
        unread, read = buffer.episode(0), buffer.episode(0)
        assert read.copy()["x"].tolist() == [0, 0, 0]
        buffer.store_episode(x=np.full(3, 2), m=2)
        assert ids(buffer) == [1, 2]
        for copy in (unread.copy, read.copy):
            with pytest.raises(EpisodeEvictedError, match="episode 0") as caught:
                copy()
            assert isinstance(caught.value, IndexError)


def test_the_meta_values_of_an_evicted_episode_are_refused_each_time(tmp_path):
    with make_plain(tmp_path, max_episodes=2, circular=True, meta_fields={"m": "int"}) as buffer:
        for number in range(2):
            buffer.store_episode(x=[number], m=number)
        episode = buffer.episode(0)
        buffer.store_episode(x=[2], m=2)
        for _ in range(2):
            with pytest.raises(EpisodeEvictedError, match="episode 0"):
                episode.meta  # noqa: B018


# --- the files ---


@pytest.mark.parametrize("circular", [False, True])
def test_no_file_holds_a_pickle(tmp_path, circular):
    with make(tmp_path, max_episodes=2, circular=circular) as buffer:
        for _ in range(2):
            buffer.store_episode(state=np.ones((3, 3)), action=[1, 2], seed=1)
        buffer.add_field("added", "float")
        buffer.update(0, seed=9)
        buffer.delete(1)
        buffer.flush()
        for closing in (False, True):
            names = set()
            for path in tmp_path.rglob("*"):
                if path.suffix == ".npy":
                    array = np.load(path, allow_pickle=False)
                    assert array.dtype.kind in "biuf"
                    assert np.load(path, mmap_mode="r", allow_pickle=False).shape == array.shape
                elif path.is_file():
                    names.add(path.name)
            assert names == {"metadata.json", "writer.lock"}
            if closing:
                break
            buffer.close()
    json.loads((tmp_path / "metadata.json").read_text())


class _Syncs:
    """A double of the calls that bring bytes to the disk, and of those that write them."""

    def __init__(self, monkeypatch, folder):
        self.events = []
        self._wrap(monkeypatch, ColumnWriter, "write", lambda column, *_: ("write", self._name(folder, column)))
        self._wrap(monkeypatch, ColumnWriter, "sync", lambda column: ("sync", self._name(folder, column)))
        self._wrap(monkeypatch, Counters, "sync", lambda counters: ("sync", "commit.npy"))
        self._wrap(monkeypatch, Counters, "put", lambda counters, name, value: ("put", name))

    @staticmethod
    def _name(folder, column):
        return column.path.relative_to(folder).as_posix()

    def _wrap(self, monkeypatch, owner, name, describe):
        real = getattr(owner, name)

        def wrapped(*arguments):
            result = real(*arguments)
            self.events.append(describe(*arguments))
            return result

        monkeypatch.setattr(owner, name, wrapped)

    def places(self, *kinds):
        return [at for at, event in enumerate(self.events) if any(kind(event) for kind in kinds)]


COMMITS = {
    "store_episode": lambda buffer: buffer.store_episode(action=[1, 2], seed=3),
    "one_episode": lambda buffer: _one_episode(buffer),
    "batched_episode": lambda buffer: _batched_episode(buffer),
}


def _one_episode(buffer):
    with buffer.one_episode(seed=1):
        for t in range(7):
            buffer.store(action=t)


def _batched_episode(buffer):
    with buffer.batched_episode(2, seed=1):
        buffer.store_batch(action=[1, 2])


@pytest.mark.parametrize("commit", COMMITS.values(), ids=COMMITS)
def test_a_durable_commit_syncs_rows_then_record_then_counter(tmp_path, monkeypatch, commit):
    monkeypatch.setattr(staging, "CHUNK_ROWS", 2)
    with make(tmp_path, durability="power") as buffer:
        buffer.store_episode(action=[1])
        syncs = _Syncs(monkeypatch, tmp_path)
        commit(buffer)
        events = list(syncs.events)
        assert events[-1] == ("sync", "commit.npy")
        assert events[-2] == ("put", "next")
        rows = syncs.places(lambda e: e[0] == "write" and e[1].startswith("steps/"))
        row_syncs = syncs.places(lambda e: e[0] == "sync" and e[1].startswith("steps/"))
        records = syncs.places(lambda e: e[0] == "write" and e[1].startswith("episodes/"))
        record_syncs = syncs.places(lambda e: e[0] == "sync" and e[1].startswith("episodes/"))
        assert rows
        assert max(rows) < min(row_syncs) <= max(row_syncs) < min(records)
        assert max(records) < min(record_syncs) <= max(record_syncs) < len(events) - 2
        assert {events[at][1] for at in row_syncs} == {f"steps/{name}.npy" for name in FIELDS}
        assert {events[at][1] for at in record_syncs} == {
            *(f"episodes/{name}.npy" for name in ("start", "length", "flags", "record_crc")),
            *(f"episodes/meta/{name}.npy" for name in META),
        }


@pytest.mark.parametrize("commit", COMMITS.values(), ids=COMMITS)
def test_a_commit_syncs_nothing_unless_asked_to(tmp_path, monkeypatch, commit):
    with make(tmp_path) as buffer:
        buffer.store_episode(action=[1])
        synced = []
        monkeypatch.setattr(os, "fsync", synced.append)
        syncs = _Syncs(monkeypatch, tmp_path)
        commit(buffer)
        assert synced == []
        assert syncs.places(lambda event: event[0] == "sync") == []
        buffer.flush()
        assert len(syncs.places(lambda event: event[0] == "sync")) == len(list(tmp_path.rglob("*.npy")))


@pytest.mark.parametrize("limits", [{"max_episodes": 3}, {"max_steps": 15}], ids=repr)
def test_power_loss_at_a_durable_commit_of_a_ring_loses_the_evicted_episode_only(tmp_path, monkeypatch, limits):
    """The disk may hold the new rows and records, and of the counters only what was synced last."""
    folder = tmp_path / "data"
    synced = {}
    real = Counters.sync

    def sync(counters):
        if off:
            raise OSError("power off")
        real(counters)
        synced["commit"] = (folder / "commit.npy").read_bytes()

    off = False
    monkeypatch.setattr(Counters, "sync", sync)
    with make_plain(folder, circular=True, durability="power", **limits) as buffer:
        add(buffer, 5, 5, 5)
        real_put = Counters.put
        monkeypatch.setattr(
            Counters, "put", lambda counters, name, value: (real_put(counters, name, value), note(name))[0]
        )

        def note(name):
            nonlocal off
            off = off or name == "next"

        with pytest.raises(OSError, match="power off"):
            buffer.store_episode(x=np.full(5, -1))
        off = False
        monkeypatch.undo()
        after = tmp_path / "after"
        subprocess.run(["cp", "-r", folder, after], check=True)
        (after / "commit.npy").write_bytes(synced["commit"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with ReplayBuffer.from_folder(after) as survivor:
            found = {episode.id: episode["x"].tolist() for episode in survivor}
    assert found.get(0, [0, 1, 2, 3, 4]) == [0, 1, 2, 3, 4]
    assert found[1] == [100, 101, 102, 103, 104]
    assert found[2] == [200, 201, 202, 203, 204]


# --- damage ---


def flip(path, offset, bit=0):
    with open(path, "r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ (1 << bit)]))


def damaged(folder, episode=3, count=6):
    """A buffer of ``count`` episodes in which one record is damaged."""
    with make_plain(folder) as buffer:
        add(buffer, *[5] * count)
    flip(folder / "episodes/length.npy", 128 + 8 * episode)


@pytest.mark.parametrize("read_only", [False, True])
def test_a_damaged_record_and_all_after_it_are_left_out_with_a_warning(tmp_path, read_only):
    damaged(tmp_path)
    before = files_of(tmp_path)
    with pytest.warns(UserWarning, match="record of episode 3 does not match.* 2 after it"):
        buffer = ReplayBuffer.from_folder(tmp_path, read_only=read_only)
    assert ids(buffer) == [0, 1, 2]
    assert contents(buffer)[2] == [200, 201, 202, 203, 204]
    buffer.close()
    assert files_of(tmp_path) == before


def open_damaged(folder, episode):
    with pytest.warns(UserWarning, match=f"record of episode {episode} does not match"):
        return ReplayBuffer.from_folder(folder)


@pytest.mark.filterwarnings("ignore:.*record of episode")
def test_the_next_writer_gives_up_what_follows_a_damaged_record(tmp_path):
    damaged(tmp_path)
    with open_damaged(tmp_path, 3) as buffer, pytest.warns(UserWarning, match="record of episode 3"):
        buffer.store_episode(x=[-1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with ReplayBuffer.from_folder(tmp_path) as buffer:
            assert contents(buffer)[:3] == [[k * 100 + t for t in range(5)] for k in range(3)]
            assert contents(buffer)[3:] == [[-1]]
    assert check_buffer(tmp_path, progress=False).ok


@pytest.mark.filterwarnings("ignore:.*record of episode")
def test_the_writer_that_gave_up_damaged_records_sees_what_it_stores(tmp_path):
    damaged(tmp_path)
    with open_damaged(tmp_path, 3) as buffer, ReplayBuffer.from_folder(tmp_path, read_only=True) as reader:
        buffer.store_episode(x=[-1])
        assert buffer.num_episodes == len(buffer.episode_lens) == 4
        assert contents(buffer)[3:] == [[-1]]
        reader.refresh()
        assert contents(reader)[3:] == [[-1]]


@pytest.mark.filterwarnings("ignore:.*record of episode")
def test_the_first_record_may_be_the_damaged_one(tmp_path):
    damaged(tmp_path, episode=0)
    with open_damaged(tmp_path, 0) as buffer:
        assert len(buffer) == 0
        buffer.store_episode(x=[-1])
    with ReplayBuffer.from_folder(tmp_path) as buffer:
        assert contents(buffer) == [[-1]]


def test_giving_up_damaged_records_cuts_nothing_under_a_reader(tmp_path):
    """The files are cut behind the last episode that is left: not while somebody may look at the others."""
    script = """
import sys, warnings
import numpy as np
from gym_replay import ReplayBuffer
warnings.simplefilter("ignore")
folder = sys.argv[1]
with ReplayBuffer(folder, fields={"x": ("uint8", 8192)}) as buffer:
    for number in range(10):
        buffer.store_episode(x=np.full((2, 8192), number))
reader = ReplayBuffer.from_folder(folder, read_only=True)
view = reader.episode(9)["x"]
with open(folder + "/episodes/length.npy", "r+b") as file:
    file.seek(128 + 8 * 3)
    file.write(b"\\x07")
with ReplayBuffer.from_folder(folder) as buffer:
    buffer.store_episode(x=np.zeros((1, 8192), np.uint8))
print(view[0, 0])
"""
    assert run_script(script, tmp_path) == (0, "9")


# --- mended, one by one ---

RING_VIEW = """
import sys
import numpy as np
from gym_replay import ReplayBuffer
folder, reopen = sys.argv[1], sys.argv[2] == "reopen"
buffer = ReplayBuffer(folder, fields={"x": ("uint8", 8192)}, circular=True, max_episodes=3)
for number in range(3):
    buffer.store_episode(x=np.full((20, 8192), number))
reader = ReplayBuffer.from_folder(folder, read_only=True)
views = [buffer.episode(2)["x"], reader.episode(2)["x"]]
if reopen:
    buffer.close()
    buffer = ReplayBuffer.from_folder(folder)
for number in range(4):
    buffer.store_episode(x=np.full((1, 8192), 9))
buffer.close()
print(*[view[0, 0] for view in views], *[view[19, 8191] for view in views], len(np.load(folder + "/steps/x.npy")))
"""


@pytest.mark.parametrize("reopen", ["reopen", "stay"])
def test_a_ring_is_not_cut_under_a_view_of_evicted_rows(tmp_path, reopen):
    status, answer = run_script(RING_VIEW, tmp_path, reopen)
    assert (status, answer.split()[:4]) == (0, ["2", "2", "2", "2"]), "a bus error is status -7"


RING_META = """
import sys
import numpy as np
from gym_replay import EpisodeEvictedError, ReplayBuffer
folder = sys.argv[1]
buffer = ReplayBuffer(folder, fields={"x": "float"}, meta_fields={"m": ("uint8", 8192)}, circular=True, max_steps=20)
for number in range(20):
    buffer.store_episode(x=np.ones(1), m=np.full(8192, number))
reader = ReplayBuffer.from_folder(folder, read_only=True)
episode = reader.episode(5)
buffer.store_episode(x=np.ones(20))  # alone in the ring, in slot 0
buffer.close()
try:
    episode.meta
except EpisodeEvictedError:
    print("evicted")
"""


def test_a_ring_is_not_cut_under_the_meta_values_of_evicted_episodes(tmp_path):
    assert run_script(RING_META, tmp_path) == (0, "evicted"), "a bus error is status -7"


@pytest.mark.parametrize("circular", [False, True])
@pytest.mark.parametrize("state", [False, True])
def test_fields_of_size_zero(tmp_path, circular, state):
    fields = {"none": Field("float", (0,), state=state), "x": "int64"}
    options = {"max_episodes": 9, "circular": circular, "fields": fields, "meta_fields": {"empty": ("uint8", (2, 0))}}
    with ReplayBuffer(tmp_path, **options) as buffer:
        buffer.store_episode(none=np.zeros((3, 0)), x=[1, 2, 3], empty=np.zeros((2, 0), np.uint8))
        buffer.store_episode(x=[4])
        with buffer.one_episode(empty=np.zeros((2, 0), np.uint8)) as final:
            buffer.store(none=[], x=5)
            buffer.store(x=6)
            final["empty"] = np.zeros((2, 0), np.uint8)
        with buffer.batched_episode(2):
            buffer.store_batch(none=np.zeros((2, 0)), x=[7, 8])
        buffer.add_field("later", ("float", (3, 0)))
        buffer.add_field("given", ("float", 0), [np.zeros((n, 0)) for n in (3, 1, 2, 1, 1)])
        buffer.store_episode(x=[9, 9], later=np.zeros((2, 3, 0)))
        buffer.update(0, empty=np.zeros((2, 0), np.uint8), none=np.zeros((3, 0)))
        for open_buffer in (buffer, ReplayBuffer.from_folder(tmp_path, read_only=True)):
            assert contents(open_buffer) == [[1, 2, 3], [4], [5, 6], [7], [8], [9, 9]]
            for episode in open_buffer:
                assert episode["none"].shape == (len(episode), 0)
                assert episode["later"].shape == (len(episode), 3, 0)
                assert episode["given"].shape == (len(episode), 0)
                assert episode.meta["empty"].shape == (2, 0)
            assert open_buffer.get_all_data()["none"].shape == (6, 3, 0)
        open_buffer.close()
    report = check_buffer(tmp_path, progress=False)
    assert report.ok, str(report)
    with ReplayBuffer(tmp_path, **{**options, "fields": None}) as buffer:
        buffer.store_episode(x=[1])
        assert buffer.episode(-1)["given"].shape == (1, 0)


def test_a_buffer_of_nothing_but_a_field_of_size_zero(tmp_path):
    with ReplayBuffer(tmp_path, fields={"none": ("float", 0)}) as buffer:
        with buffer.one_episode():
            for _ in range(3):
                buffer.store()
        buffer.store_episode(none=np.zeros((2, 0)))
        assert [episode["none"].shape for episode in buffer] == [(3, 0), (2, 0)]
    assert check_buffer(tmp_path, progress=False).ok


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
@pytest.mark.parametrize("wrote_before", [False, True])
def test_a_stale_buffer_of_an_overwritten_folder_refuses_to_write(tmp_path, write, wrote_before):
    with make_plain(tmp_path) as buffer:
        add(buffer, 2, 3)
    stale = ReplayBuffer.from_folder(tmp_path)
    if wrote_before:
        add(stale, 1)
        stale.release()
    with make_plain(tmp_path, overwrite=True) as new:
        new.store_episode(x=[-1])
    before = files_of(tmp_path)
    with pytest.raises(ConfigMismatchError, match="another buffer was created in its place"):
        write(stale)
    with pytest.raises(ConfigMismatchError):
        stale.refresh()
    stale.close()
    stale.close()
    after = files_of(tmp_path)
    assert {name: data for name, (_, data) in after.items()} == {name: data for name, (_, data) in before.items()}
    with ReplayBuffer.from_folder(tmp_path) as buffer:
        assert contents(buffer) == [[-1]]
        add(buffer, 1)


@pytest.mark.parametrize(
    "change",
    [
        lambda buffer: buffer.clear(),
        lambda buffer: (buffer.clear(), [buffer.store_episode(x=np.full(9, -1), m=-1) for _ in range(2)]),
        lambda buffer: buffer.update(x=[[-1, -1], [-1, -1, -1]], m=[-1, -1]),
        lambda buffer: buffer.add_field("y", "float"),
        lambda buffer: (buffer.update(m=[-1, -1]), buffer.close()),
    ],
    ids=["clear", "clear and store", "update", "add_field", "update and close"],
)
def test_what_was_taken_before_a_change_keeps_showing_what_was(tmp_path, change):
    buffer = make_plain(tmp_path, meta_fields={"m": "int"})
    for number, length in enumerate((2, 3)):
        buffer.store_episode(x=number * 100 + np.arange(length), m=number)
    episode = buffer.episode(1)
    dataset = buffer.dataset(timestep_level=True)
    trajectories = buffer.dataset()
    loader = buffer.dataloader(5, n_steps=1)
    change(buffer)
    assert episode["x"].tolist() == [100, 101, 102]
    assert episode.meta == {"m": 1}
    assert dataset[np.arange(5)]["x"].tolist() == [0, 1, 100, 101, 102]
    assert trajectories[1]["m"] == 1
    assert next(iter(loader))["x"].tolist() == [0, 100, 101], "those whose next row is there"
    assert {name: array.tolist() for name, array in episode.items()} == {"x": [100, 101, 102]}
    assert episode.copy()["x"].tolist() == [100, 101, 102]
    buffer.close()


@pytest.mark.parametrize("circular", [False, True])
def test_a_forked_child_cannot_store_into_the_long_episode_of_its_parent(tmp_path, monkeypatch, circular):
    monkeypatch.setattr(staging, "CHUNK_ROWS", 4)
    with make_plain(tmp_path, max_episodes=9, circular=circular) as buffer:
        add(buffer, 2)
        with buffer.one_episode():
            for t in range(7):
                buffer.store(x=t)

            def child():
                def store_many():
                    for _ in range(20):
                        buffer.store(x=-1)

                def commit():
                    buffer._open_episode.commit()

                return [name_of_error(store_many), name_of_error(commit)]

            assert in_fork(child) == ["BufferLockedError", "BufferLockedError"]
            for t in range(7, 15):
                buffer.store(x=t)
        assert contents(buffer) == [[0, 1], list(range(15))]
    assert check_buffer(tmp_path, progress=False).ok


def _fail_at(monkeypatch, calls):
    """Let the metadata be refused at these calls, counted from 1."""
    real, count = layout.write_metadata, 0

    def write(folder, metadata):
        nonlocal count
        count += 1
        if count in calls:
            raise StorageError(28, "No space left on device", str(folder))
        real(folder, metadata)

    monkeypatch.setattr(layout, "write_metadata", write)


CHANGES = {
    "clear": lambda buffer: buffer.clear(),
    "update": lambda buffer: buffer.update(0, x=[-1, -1]),
    "add_field": lambda buffer: buffer.add_field("y", "int"),
}
NEXT = {
    "store_episode": lambda buffer: buffer.store_episode(x=[7, 8]),
    "one_episode": lambda buffer: _plain_episode(buffer),
    "batched_episode": lambda buffer: _plain_block(buffer),
    "update": lambda buffer: (buffer.store_episode(x=[1, 2]), buffer.update(-1, x=[7, 8])),
    "reopen": lambda buffer: None,
}


def _plain_episode(buffer):
    with buffer.one_episode():
        buffer.store(x=7)
        buffer.store(x=8)


def _plain_block(buffer):
    with buffer.batched_episode(1):
        buffer.store_batch(x=[7])
        buffer.store_batch(x=[8])


@pytest.mark.parametrize("calls", [(1,), (2,), (2, 3), (1, 2)], ids=repr)
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("then", NEXT)
def test_a_change_that_failed_leaves_a_buffer_that_goes_on(tmp_path, monkeypatch, change, calls, then):
    with make_plain(tmp_path) as buffer:
        add(buffer, 2, 3)
        _fail_at(monkeypatch, calls)
        with pytest.raises(StorageError):
            CHANGES[change](buffer)
        monkeypatch.undo()
        # All or nothing: before the first metadata is in place nothing has changed, after it everything has.
        happened = calls[0] > 1
        kept = {"clear": [], "update": [[-1, -1], [100, 101, 102]]}.get(change) if happened else None
        kept = [[0, 1], [100, 101, 102]] if kept is None else kept
        if then == "reopen":
            buffer.close()
            buffer = ReplayBuffer.from_folder(tmp_path)
            buffer.store_episode(x=[7, 8])
        else:
            NEXT[then](buffer)
        assert contents(buffer) == [*kept, [7, 8]]
        assert len(buffer) == len(kept) + 1
        assert ids(buffer)[-1] >= 2
        assert buffer.fieldnames == (("x", "y") if change == "add_field" and happened else ("x",))
        if change == "add_field" and happened:
            assert all(set(episode["y"].tolist()) == {0} for episode in buffer)
        buffer.add_field("z", "int")
        assert leftovers(tmp_path) == []
        buffer.close()
    report = check_buffer(tmp_path, progress=False)
    assert report.ok, str(report)


def test_indices_of_a_small_dtype_reach_all_episodes(tmp_path):
    with make_plain(tmp_path) as buffer:
        with buffer.batched_episode(300):
            buffer.store_batch(x=np.arange(300))
        buffer.delete(np.array([0, 255], np.uint8))
        assert [episode.id for episode in buffer] == [k for k in range(300) if k not in (0, 255)]
        buffer.delete(np.array([-1, 127, -128], np.int8))
        assert len(buffer) == 295
        assert {299, 128, 171}.isdisjoint(ids(buffer))
        buffer.update(np.uint8(200), x=[-5])
        assert buffer.episode(200)["x"].tolist() == [-5]


def test_a_block_of_episodes_is_opened_once(tmp_path):
    with make_plain(tmp_path) as buffer:
        block = buffer.batched_episode(2)
        with block:
            buffer.store_batch(x=[1, 2])
            with pytest.raises(EpisodeStateError):
                block.__enter__()
            buffer.store_batch(x=[3, 4])
        with pytest.raises(EpisodeStateError, match="before"):
            block.__enter__()
        assert contents(buffer) == [[1, 3], [2, 4]]
        add(buffer, 1)
        assert len(buffer) == 3


@pytest.mark.parametrize("kind", ["one_episode", "batched_episode"])
def test_release_inside_an_episode_discards_it(tmp_path, kind):
    with make_plain(tmp_path) as buffer:
        add(buffer, 2)
        if kind == "one_episode":
            context, step = buffer.one_episode(), lambda: buffer.store(x=9)
        else:
            context, step = buffer.batched_episode(2), lambda: buffer.store_batch(x=[9, 9])
        context.__enter__()
        step()
        buffer.release()
        assert run_script(WRITE_ONE, tmp_path) == (0, "stored"), "the lock was let go"
        for late in (step, lambda: context.__exit__(None, None, None)):
            with pytest.raises(EpisodeStateError):
                late()
        buffer.refresh()
        assert contents(buffer) == [[0, 1], [7]]
        add(buffer, 3)
        assert contents(buffer) == [[0, 1], [7], [200, 201, 202]]


def test_a_released_block_does_not_end_the_one_opened_after_it(tmp_path):
    with make_plain(tmp_path) as buffer:
        old = buffer.batched_episode(2)
        old.__enter__()
        buffer.store_batch(x=[9, 9])
        buffer.release()
        with buffer.one_episode():
            buffer.store(x=1)
            with pytest.raises(EpisodeStateError):
                old.__exit__(None, None, None)
            buffer.store(x=2)
        assert contents(buffer) == [[1, 2]]


def test_a_forked_child_sees_what_its_parent_commits_later(tmp_path):
    with make_plain(tmp_path) as buffer:
        add(buffer, 2)
        assert (buffer.num_episodes, buffer.num_steps, contents(buffer)) == (1, 2, [[0, 1]])
        start, stop = os.pipe()

        def child():
            os.read(start, 1)
            return [buffer.num_episodes, buffer.num_steps, len(buffer), len(buffer.episode_lens), contents(buffer)]

        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.write(writing, json.dumps(child()).encode())
            finally:
                os._exit(0)
        add(buffer, 3)
        os.write(stop, b"x")
        os.close(writing)
        with os.fdopen(reading) as stream:
            answer = json.loads(stream.read())
        os.waitpid(pid, 0)
        os.close(start)
        os.close(stop)
        assert answer == [2, 5, 2, 2, [[0, 1], [100, 101, 102]]]


@pytest.mark.parametrize("circular", [False, True])
def test_a_step_refused_by_a_full_disk_was_not_stored(tmp_path, monkeypatch, circular):
    """What ``store`` raised for is not in the episode: the caller gives it again once there is room."""
    monkeypatch.setattr(staging, "CHUNK_ROWS", 4)
    with make_plain(tmp_path, max_episodes=5, circular=circular) as buffer:
        real, full = os.pwrite, True

        def pwrite(*arguments):
            if full:
                raise OSError(28, "No space left on device")
            return real(*arguments)

        monkeypatch.setattr(os, "pwrite", pwrite)

        context = buffer.one_episode()
        context.__enter__()
        given = iter(range(10))
        refused = -1

        def store_until_refused():
            nonlocal refused
            for refused in given:
                buffer.store(x=refused)

        with pytest.raises(StorageError):
            store_until_refused()
        full = False
        buffer.store(x=refused)
        store_until_refused()
        context.__exit__(None, None, None)
        assert contents(buffer) == [list(range(10))]


def test_a_full_disk_at_a_commit_loses_nothing_committed(tmp_path, monkeypatch):
    with make_plain(tmp_path) as buffer:
        add(buffer, 2)
        with monkeypatch.context() as patch:
            real = os.pwrite

            def pwrite(descriptor, data, position):
                if os.readlink(f"/proc/self/fd/{descriptor}").endswith("episodes/length.npy"):
                    raise OSError(28, "No space left on device")
                return real(descriptor, data, position)

            if not Path("/proc/self/fd").exists():
                pytest.skip("needs /proc")
            patch.setattr(os, "pwrite", pwrite)
            with pytest.raises(StorageError, match="free some space") as caught:
                add(buffer, 3)
            assert isinstance(caught.value, OSError)
            assert caught.value.errno == 28
            assert contents(buffer) == [[0, 1]]
        add(buffer, 3)
        assert contents(buffer) == [[0, 1], [100, 101, 102]]
        assert ids(buffer) == [0, 1]
