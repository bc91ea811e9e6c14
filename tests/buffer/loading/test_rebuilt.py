"""DataLoaders that others make of a loader's parts: the same batches, or an error that says what to do."""

from __future__ import annotations

import pickle
from itertools import chain

import numpy as np
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
    Subset,
    default_collate,
)

from gym_replay import Field, FieldError, GoalSampler, PrioritizedSampler, ReplayBuffer

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
LENGTHS = [7, 1, 9, 4, 12, 3, 8, 5]
EVERYTHING = [1000 * number + t for number, length in enumerate(LENGTHS) for t in range(length)]
FORK = {"num_workers": 2, "multiprocessing_context": "fork"}
ORDERS = {
    "in order": {},
    "shuffled": {"shuffle": True},
    "by blocks": {"shuffle": "block", "block_size": 5, "pool_size": 15},
    "with replacement": {"replacement": True},
    "by weights": {"weights": "weight"},
    "goals": {"shuffle": True, "goal_sampler": GoalSampler()},
    "tuples": {"shuffle": True, "to_named_tuple": ("x", "_indices"), "return_indices": True},
    "by priority": {"sampler": True},
    "live": {"shuffle": True, "refresh": "epoch"},
}
SETTLED = [name for name in ORDERS if name not in ("by priority", "live")]


@pytest.fixture
def buffer(tmp_path):
    fields = {"x": "int", "observation": Field("float32", (2,), state=True)}
    with ReplayBuffer(tmp_path, fields=fields, meta_fields={"weight": "float", "name": "str"}) as buffer:
        for number, length in enumerate(LENGTHS):
            seen = np.arange(2 * length + 2).reshape(-1, 2)
            buffer.store_episode(x=1000 * number + np.arange(length), observation=seen, weight=number % 3, name="?")
        yield buffer


def loader_of(buffer, order, **more):
    options = ORDERS[order] | ({"sampler": PrioritizedSampler()} if "sampler" in ORDERS[order] else {})
    return buffer.dataloader(4, timestep_level=True, seed=3, **options, **more)


def plain(batch):
    """A batch as lists, that can be compared."""
    entries = batch._asdict() if isinstance(batch, tuple) else batch
    return {name: value if isinstance(value, list) else value.tolist() for name, value in entries.items()}


def epochs(loader, count=2):
    return [[plain(batch) for batch in loader] for _ in range(count)]


class Wrapped(BatchSampler):
    """A batch sampler around another, as libraries have them."""

    def __init__(self, batch_sampler):
        self.batch_sampler = batch_sampler

    def __iter__(self):
        yield from self.batch_sampler

    def __len__(self):
        return len(self.batch_sampler)


@pytest.mark.parametrize("workers", [{}, FORK | {"persistent_workers": True}], ids=("alone", "workers"))
@pytest.mark.parametrize("order", ORDERS)
def test_its_parts_deliver_its_batches(buffer, order, workers):
    expected = epochs(loader_of(buffer, order))
    loader = loader_of(buffer, order, **workers)
    rebuilt = DataLoader(
        loader.dataset, batch_sampler=Wrapped(loader.batch_sampler), collate_fn=loader.collate_fn, **workers
    )
    assert len(rebuilt) == len(expected[0])
    assert epochs(rebuilt) == expected
    rebuilt.batch_sampler.batch_sampler.set_epoch(0)
    assert epochs(rebuilt, 1) == (expected[:1] if order != "by priority" else epochs(loader_of(buffer, order), 1))


@pytest.mark.parametrize("order", SETTLED)
def test_whoever_asks_for_positions_gets_the_order(buffer, order):
    """Also where the samplers are lost on the way, and with another sampler, in its own order of these samples."""
    loader, expected = loader_of(buffer, order), epochs(loader_of(buffer, order))
    parts = {"batch_size": loader.batch_sampler.batch_size, "collate_fn": loader.collate_fn}
    dataset = pickle.loads(pickle.dumps(loader.dataset))
    for epoch in range(2):
        dataset.set_epoch(epoch)
        assert epochs(DataLoader(dataset, **parts), 1) == [expected[epoch]]
    other = DataLoader(loader.dataset, sampler=RandomSampler(loader.dataset), **parts)
    found = list(chain.from_iterable(batch["x"] for batch in epochs(other, 1)[0]))
    assert sorted(found) == sorted(chain.from_iterable(batch["x"] for batch in expected[0]))
    halves = [DataLoader(loader.dataset, sampler=DistributedSampler(loader.dataset, 2, k), **parts) for k in (0, 1)]
    assert sorted(chain.from_iterable(b["x"] for half in halves for b in epochs(half, 1)[0]))[:3] == sorted(found)[:3]


def test_a_loader_made_anew_by_its_class(buffer):
    """As Lightning does it, with samplers of its own: only one that asks for no shuffling is looked at."""
    expected = epochs(loader_of(buffer, "shuffled"), 3)
    loader = loader_of(buffer, "shuffled")
    state = {name: value for name, value in vars(loader).items() if not name.startswith("_")}
    next(iter(loader))
    for sampler in (loader.sampler, DistributedSampler(loader.dataset, 2, 1)):
        batches = type(loader.batch_sampler)(sampler, batch_size=4, drop_last=False)
        given = state | {"batch_size": 1, "sampler": None, "shuffle": False, "batch_sampler": batches}
        loader = type(loader)(**given)
        assert epochs(loader, 1)[0] == expected[loader.epoch - 1]
    assert loader.epoch == 3
    loader.set_epoch(0)
    batches = type(loader.batch_sampler)(SequentialSampler(loader.dataset), batch_size=4, drop_last=False)
    overfitted = type(loader)(**state | {"sampler": None, "batch_sampler": batches, "batch_size": 1})
    overfitted.sampler.set_epoch(1)
    assert epochs(overfitted) == [expected[0]] * 2


def test_what_asks_for_single_samples_is_told_what_to_do(buffer):
    loader = loader_of(buffer, "shuffled")
    dataset = loader.dataset
    for other in (
        DataLoader(dataset, batch_size=4, shuffle=True),
        DataLoader(dataset, batch_size=None),
        DataLoader(dataset, batch_size=4, collate_fn=default_collate),
        DataLoader(Subset(dataset, [1, 2])),
        DataLoader(dataset, batch_sampler=loader.batch_sampler),
        DataLoader([1, 2, 3], collate_fn=loader.collate_fn),
    ):
        with pytest.raises(FieldError, match=r"Iterate|iterate over the loader itself.*collate_fn=loader.collate_fn"):
            next(iter(other))
    with pytest.raises(IndexError, match="an epoch of 49"):
        dataset[[1, 49]]
    own = DataLoader(buffer.dataset(timestep_level=True), batch_size=4, shuffle=True)
    assert sorted(torch.cat([batch["x"] for batch in own]).tolist()) == EVERYTHING


@pytest.mark.parametrize("order", ["by priority", "live"])
@pytest.mark.parametrize(
    "workers", [{}, {"num_workers": 1, "multiprocessing_context": "fork"}], ids=("alone", "workers")
)
def test_what_is_at_no_position_cannot_be_asked_for(buffer, order, workers):
    loader = loader_of(buffer, order)
    parts = {"batch_size": 4, "collate_fn": loader.collate_fn}
    batches = iter(DataLoader(loader.dataset, **parts, **workers))
    with pytest.raises(FieldError, match="keep the loader's batch_sampler"):
        next(batches)
    if workers:
        batches._shutdown_workers()  # torch waits for them where they are garbage of a later test


def test_a_draw_is_a_list_of_positions(buffer):
    """To libraries that cut batches, or fill them up with others."""
    loader = loader_of(buffer, "shuffled")
    first, second = list(loader.batch_sampler)[:2]
    assert (len(first), list(first), second[1], second[1:3], second[-1]) == (4, [0, 1, 2, 3], 5, [5, 6], 7)
    assert first + second == first + [4, 5, 6, 7] == list(range(8))
    batch = []
    batch += first
    assert batch == [0, 1, 2, 3]
    batch = first
    batch += second[:2]
    expected = epochs(loader_of(buffer, "shuffled"), 1)[0]
    assert loader.dataset[batch]["x"].tolist() == expected[0]["x"] + expected[1]["x"][:2]


def test_the_state_before_is_gone_on_with(buffer):
    """A rebuilt loader begins where the loader that it was made of would have gone on."""
    loader = loader_of(buffer, "shuffled")
    batches = iter(loader)
    for _ in range(3):
        next(batches)
    later = loader_of(buffer, "shuffled")
    later.load_state_dict(loader.state_dict())
    rebuilt = DataLoader(later.dataset, batch_sampler=later.batch_sampler, collate_fn=later.collate_fn, **FORK)
    rebuilt.batch_sampler.set_epoch(0)  # as accelerate does, which has counted no epoch yet
    assert epochs(rebuilt, 1)[0] == [plain(batch) for batch in batches]


def test_a_loader_says_what_is_in_a_batch(buffer, tmp_path):
    said = repr(loader_of(buffer, "by priority"))
    assert "13 batches of 4 of 52 samples" in said
    for line in (
        "x            int64 (4,)",
        "observation  float32 (4, 2)",
        "name         list of 4",
        "_samples     int64 (4,)",
    ):
        assert line in said
    loader = loader_of(buffer, "tuples")
    assert "_indices  int64 (4, 2)" in repr(loader)
    assert loader.epoch == 0
    broken = buffer.dataloader(4, transform=lambda batch: 1 / 0)
    assert "division by zero" in repr(broken)
