"""The states of loaders: what they are made of, and that torch reads them back by default."""

from __future__ import annotations

import io
import json
import pickle
from itertools import chain, islice

import numpy as np
import pytest
import torch

from gym_replay import (
    ConcatReplayBuffer,
    Field,
    FieldError,
    GoalSampler,
    PrioritizedSampler,
    ReplayBuffer,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
LENGTHS = [7, 1, 9, 4, 12, 3, 8, 5]
WORKERS = {"num_workers": 2, "prefetch_factor": 3, "multiprocessing_context": "fork"}


def fill(folder, lengths=LENGTHS):
    fields = {"x": "int", "reward": "float64", "observation": Field("float32", (2,), state=True)}
    buffer = ReplayBuffer(folder, fields=fields, meta_fields={"weight": "float", "name": "str"})
    for number, length in enumerate(lengths):
        x = 1000 * number + np.arange(length)
        rows = np.arange(2 * length + 2, dtype=np.float32).reshape(-1, 2) + number
        buffer.store_episode(x=x, reward=x / 7, observation=rows, weight=number % 3, name=f"{number}")
    return buffer


KINDS = {
    "in order": {"timestep_level": True},
    "shuffled": {"timestep_level": True, "shuffle": True},
    "by blocks": {"timestep_level": True, "shuffle": "block", "block_size": 5, "pool_size": 15},
    "with replacement": {"timestep_level": True, "replacement": True},
    "by weights": {"timestep_level": True, "weights": "weight"},
    "by given weights": {"n_steps": 2, "weights": np.arange(8), "samples_per_epoch": np.int64(40)},
    "by priority": {"timestep_level": True, "sampler": PrioritizedSampler},
    "by priority, with workers": {"timestep_level": True, "sampler": PrioritizedSampler, **WORKERS},
    "goals": {"n_steps": 1, "goal_sampler": GoalSampler(), "shuffle": True},
    "crops": {"crop": (2, 5), "stride": 3},
    "trajectories": {"return_mask": True, "batch_size": 1},
    "normalized": {"n_steps": 1, "normalize": ("observation", "reward"), "shuffle": True},
    "normalized by NumPy's strings": {"n_steps": 1, "normalize": np.array(["observation"])},
    "live epochs": {"timestep_level": True, "refresh": "epoch", "shuffle": True},
    "live batches": {"timestep_level": True, "refresh": "batch", "shuffle": True},
    "live priorities": {"timestep_level": True, "refresh": "batch", "sampler": PrioritizedSampler},
    "NumPy's numbers": {
        "timestep_level": True, "batch_size": np.int32(4), "seed": np.int64(5), "shuffle": np.True_,
        "drop_last": np.True_, "rank": np.int64(0), "world_size": np.int64(1),
    },
    "NumPy's blocks": {"n_steps": 1, "shuffle": "block", "block_size": np.int64(5), "pool_size": np.int64(15)},
    "a large seed": {"timestep_level": True, "shuffle": True, "seed": 2**80},
    "a rank": {"timestep_level": True, "shuffle": True, "rank": 1, "world_size": 2},
}  # fmt: skip


def make(buffer, kind):
    options = {"batch_size": 4, "seed": 3} | KINDS[kind]
    if "sampler" in options:
        options["sampler"] = options["sampler"]()
    loader = buffer.dataloader(**options)
    loader.set_epoch(np.int64(2))
    return loader


def work(loader, batches):
    """The batches, as somebody who learns from them reads them."""
    for batch in batches:
        if "_samples" in batch:
            loader.sampler.options.sampler.update(batch["_samples"], batch["x"] % 7)
        yield {name: value if isinstance(value, list) else value.tolist() for name, value in batch.items()}


def assert_plain(value):
    if type(value) is dict:
        assert all(type(key) is str for key in value)
        value = list(value.values())
    if type(value) is list:
        for inner in value:
            assert_plain(inner)
        return
    assert value is None or type(value) in (bool, int, float, str, torch.Tensor), type(value)


def saved(state):
    """The state after ``torch.save`` and ``torch.load`` as they are."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file)


@pytest.mark.parametrize("stop", [0, 3, None])
@pytest.mark.parametrize("kind", KINDS)
def test_torch_reads_it_by_default(tmp_path, kind, stop):
    with fill(tmp_path) as buffer:
        loader = make(buffer, kind)
        expected = [list(work(loader, loader)) for _ in range(2)]
        stop = len(loader) if stop is None else stop
        assert stop <= len(expected[0]) == len(loader)
        loader = make(buffer, kind)
        found = list(islice(work(loader, iterator := iter(loader)), stop))
        state = loader.state_dict()
        assert_plain(state)
        del iterator
        if "_samples" not in expected[0][0]:
            assert json.loads(json.dumps(state)) == state
        resumed = make(buffer, kind)
        resumed.load_state_dict(saved(state))
        rest = list(work(resumed, resumed))
        if stop == len(loader):
            assert rest == expected[1]
        else:
            assert found + rest == expected[0]
            assert list(work(resumed, resumed)) == expected[1]


def as_numpy(value):
    """A state as it was before it held tensors: NumPy's arrays and numbers, and tuples."""
    if isinstance(value, torch.Tensor):
        return value.numpy()
    if isinstance(value, dict):
        return {key: as_numpy(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return tuple(map(as_numpy, value))
    return np.int64(value) if type(value) is int and value < 2**63 else value


@pytest.mark.parametrize("kind", ["shuffled", "by priority", "by priority, with workers", "live priorities", "crops"])
def test_states_with_numpy_are_taken(tmp_path, kind):
    with fill(tmp_path) as buffer:
        loader = make(buffer, kind)
        batches = work(loader, iter(loader))
        list(islice(batches, 3))
        old = pickle.loads(pickle.dumps(as_numpy(loader.state_dict())))
        expected = list(batches)
        resumed = make(buffer, kind)
        resumed.load_state_dict(old)
        assert_plain(resumed.state_dict())
        assert list(work(resumed, resumed)) == expected


def test_a_state_stays_as_it_was_taken(tmp_path):
    with fill(tmp_path) as buffer:
        loader = make(buffer, "by priority, with workers")
        batches = work(loader, iter(loader))
        list(islice(batches, 3))
        state = loader.state_dict()
        before = pickle.dumps(state)
        list(batches)
        assert pickle.dumps(state) == before
        resumed = make(buffer, "by priority, with workers")
        resumed.load_state_dict(state)
        list(work(resumed, resumed))
        assert pickle.dumps(state) == before


def test_priorities_go_on_with_another_number_of_workers(tmp_path):
    """What was drawn ahead is delivered first, also over several checkpoints."""
    with fill(tmp_path) as buffer:

        def seen(loader, count):
            return [batch["_samples"].tolist() for batch in islice(loader, count)]

        first = make(buffer, "by priority, with workers")
        iterator = iter(first)
        seen(iterator, 2)
        state = first.state_dict()
        ahead = [draw[0].tolist() for draw in state["pending"]]
        assert seen(iterator, 6) == ahead
        found = []
        for _ in range(3):  # each stops before the drawn ones are used up
            alone = make(buffer, "by priority")
            alone.load_state_dict(saved(state))
            found += seen(iter(alone), 2)
            alone.sampler.options.sampler.update([0, 1], [100.0, 0.0])  # which those ahead do not know of
            state = alone.state_dict()
        assert found == ahead


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values": np.ones(3)}, "damaged"),
        ({"ids": np.zeros(2, np.int64)}, "damaged"),
        ({"alpha": -1.0}, "alpha"),
        ({"beta": 2.0}, "beta"),
        ({"values": None}, "no entry"),
    ],
)
def test_a_damaged_state_changes_nothing(tmp_path, change, message):
    with fill(tmp_path) as buffer:
        loader = make(buffer, "by priority")
        list(work(loader, loader))
        sampler = loader.sampler.options.sampler
        before = pickle.dumps(as_numpy(sampler.state_dict()))
        wrong = sampler.state_dict() | change
        wrong = {name: value for name, value in wrong.items() if value is not None}
        with pytest.raises(FieldError, match=message):
            sampler.load_state_dict(wrong)
        assert pickle.dumps(as_numpy(sampler.state_dict())) == before


def test_a_concatenation_by_weights(tmp_path):
    with fill(tmp_path / "a") as first, fill(tmp_path / "b", [2, 2]) as second:
        both = ConcatReplayBuffer([first, second])
        options = {"timestep_level": True, "buffer_weights": np.array([1, 4]), "seed": 3, "samples_per_epoch": 20}
        loader = both.dataloader(4, **options)
        batches = iter(loader)
        next(batches)
        state = loader.state_dict()
        assert_plain(state)
        resumed = both.dataloader(4, **options)
        resumed.load_state_dict(saved(state))
        expected = list(chain.from_iterable(batch["x"].tolist() for batch in batches))
        assert list(chain.from_iterable(batch["x"].tolist() for batch in resumed)) == expected
