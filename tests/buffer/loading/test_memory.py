"""Memory that is used again: soon enough, and never while anything shows it."""

import gc
import pickle
import sys
import threading

import numpy as np
import pytest
import torch

from gym_replay import Field, ReplayBuffer, window_loader
from gym_replay.buffer.loading import memory, threads

SHAPE, BYTE = (300, 7), np.dtype("uint8")


@pytest.fixture(autouse=True)
def nothing_spare(monkeypatch):
    monkeypatch.setattr(memory, "_spare", type(memory._spare)(maxlen=4))


def address(array):
    return array.__array_interface__["data"][0]


@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64", "bool", "complex64", "<i2"])
def test_memory_is_used_again(dtype):
    first = memory.empty(SHAPE, np.dtype(dtype))
    assert (first.shape, first.dtype) == (SHAPE, np.dtype(dtype))
    assert first.flags.c_contiguous
    assert first.flags.writeable
    assert first.flags.aligned
    before = address(first)
    del first
    second = memory.empty(SHAPE[::-1], np.dtype(dtype))
    assert address(second) == before
    assert address(memory.empty(SHAPE, np.dtype(dtype))) != before


@pytest.mark.parametrize(
    "hold",
    [
        lambda array: array[3:, 1],
        lambda array: array.view("int8").T,
        torch.from_numpy,
        lambda array: torch.from_numpy(array)[5].view(-1),
        memoryview,
        lambda array: torch.utils.dlpack.to_dlpack(torch.from_numpy(array)),
    ],
)
def test_not_while_anything_shows_it(hold):
    array = memory.empty(SHAPE, BYTE)
    before = address(array)
    held = hold(array)
    del array
    others = [memory.empty(SHAPE, BYTE) for _ in range(5)]
    assert before not in [address(other) for other in others]
    del held
    assert address(memory.empty(SHAPE, BYTE)) == before


def test_a_few_of_each_size_are_kept():
    arrays = [memory.empty((size,), BYTE) for size in (10, 20, 30, 10, 20, 30)]
    places = {address(array) for array in arrays[2:]}  # the first two go, for four others come after them
    while arrays:
        del arrays[0]
    assert len(memory._spare) == 4
    again = [memory.empty((size,), BYTE) for size in (30, 10, 20, 30)]
    assert {address(array) for array in again} == places
    assert not memory._spare
    assert memory.empty((memory.LARGEST + 1,), BYTE).flags.owndata
    assert memory.empty((0, 4), BYTE).shape == (0, 4)


def test_threads_never_get_the_same():
    wrong = []

    def work(number):
        generator = np.random.default_rng(number)
        held = []
        for _ in range(3000):
            array = memory.empty((int(generator.integers(1, 4)) * 64,), BYTE)
            array[:] = number
            held.append(array)
            if len(held) > 3 and not (held.pop(0) == number).all():
                wrong.append(number)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        working = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in working:
            thread.start()
        for thread in working:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert not wrong


def test_batches_that_are_kept_stay_as_they_are(tmp_path, monkeypatch):
    monkeypatch.setattr(threads, "threads", lambda: 2)
    with ReplayBuffer(tmp_path, fields={"o": Field("uint8", (40, 40), state=True), "a": "int64"}) as buffer:
        for k in range(4):
            shown = np.random.default_rng(k).integers(0, 256, (101, 40, 40), np.uint8)
            buffer.store_episode(o=shown, a=np.arange(100) + 100 * k)
        loader = window_loader(buffer, 200, offsets={"o": range(4)}, fields=("a",), shuffle=True, seed=0)
        kept, places, copies = [], set(), []
        for number in range(20):
            for batch in loader:
                assert batch["o"].is_contiguous()
                if number % 5 == 0:
                    kept.append(batch["o"])
                    copies.append(batch["o"].clone())
                else:
                    places.add(batch["o"].data_ptr())
                    batch["o"].zero_()
        for mine, copy in zip(kept, copies, strict=True):
            torch.testing.assert_close(mine, copy, rtol=0, atol=0)
            torch.testing.assert_close(pickle.loads(pickle.dumps(mine)), copy, rtol=0, atol=0)
        assert len(places) < 16 <= len(kept) * 2  # of 32
    del kept, mine, batch
    gc.collect()
    assert 0 < len(memory._spare) <= 4
