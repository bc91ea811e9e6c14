"""ReplayBuffer, the open episode: what goes into it, what ends it, and what discards it."""

import sys
from contextlib import nullcontext

import numpy as np
import pytest
from buffer_helpers import WRITE_ONE, add, contents, ids, make, make_plain, run_script
from internals import small_sizes

from gym_replay import BufferFullError, EpisodeStateError, Field, FieldError, ReplayBuffer, check_buffer


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


def test_storing_outside_of_an_episode(tmp_path):
    with make(tmp_path) as buffer:
        with pytest.raises(EpisodeStateError, match="outside"):
            buffer.store_final(state=[1, 2, 3])
        with buffer.batched_episode(2):
            with pytest.raises(EpisodeStateError, match="store_batch"):
                buffer.store(action=1)
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
    small_sizes(monkeypatch, chunk_rows=2)
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
        "checksums.npy",
        "commit.npy",
        "episodes.npy",
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


def test_an_episode_goes_on_where_others_were_deleted(tmp_path):
    with make_plain(tmp_path, max_steps=6) as buffer:
        add(buffer, 4)
        with buffer.one_episode():
            for t in range(2):
                buffer.store(x=t)
            with pytest.raises(BufferFullError, match="max_steps=6"):
                buffer.store(x=2)
            buffer.delete(0)
            for t in range(2, 6):
                buffer.store(x=t)
            with pytest.raises(BufferFullError, match="max_steps=6"):
                buffer.store(x=6)
        assert contents(buffer) == [[0, 1, 2, 3, 4, 5]]


@pytest.mark.parametrize("limits", [{"max_episodes": 3}, {"max_steps": 60}])
def test_long_episodes_in_a_ring_lie_where_there_is_room(tmp_path, monkeypatch, limits):
    """What was written of them before is copied there, unless it would be copied onto itself."""
    small_sizes(monkeypatch, chunk_rows=4, ragged_chunk_rows=4, piece=24)
    fields = {
        "x": Field("int64", (), state=True),
        "words": Field("int16", (), ragged=True),
        "state_words": Field("int16", (), ragged=True, state=True),
        "nothing": ("float", (0,)),
    }
    lengths = [5, 20, 3, 41, 1, 60, 2, 2, 37, 58, 9, 9, 9, 30]
    if "max_episodes" in limits:
        lengths[5] = 150
    with ReplayBuffer(tmp_path, fields=fields, circular=True, **limits) as buffer:
        for number, length in enumerate(lengths):
            interrupted = number % 3 == 2
            with pytest.raises(KeyboardInterrupt) if interrupted else nullcontext(), buffer.one_episode():
                for t in range(length):
                    buffer.store(x=1000 * number + t, words=range(t % 3), state_words=[number] * (t % 4))
                buffer.store_final(x=1000 * number + length, state_words=[7])
                if interrupted:
                    interrupt_at_the_records()
            assert buffer.episode(-1).id == number
            for episode in buffer:
                steps = range(lengths[episode.id])
                assert episode["x"].tolist() == [1000 * episode.id + t for t in (*steps, len(steps))]
                assert episode["words"].tolist() == [list(range(t % 3)) for t in steps]
                assert episode["state_words"].tolist() == [*([episode.id] * (t % 4) for t in steps), [7]]
    assert check_buffer(tmp_path, progress=False).verified
    rows = np.load(tmp_path / "steps/x.npy", mmap_mode="r")
    assert len(rows) <= 2 * max(lengths) + 200


def interrupt_at_the_records():
    """Raise when all rows of a block are written, once."""

    def trace(frame, event, argument):
        if frame.f_code.co_name == "write_slots":
            sys.settrace(None)
            raise KeyboardInterrupt

    sys.settrace(trace)
