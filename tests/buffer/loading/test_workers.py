"""What running workers of somebody's own DataLoader see of the process that made the dataset."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from loading_helpers import world
from torch.utils.data import ConcatDataset, DataLoader, Subset

from gym_replay import Field, FieldError, GoalMixture, GoalSampler, PrioritizedSampler, ReplayBuffer

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
LENGTHS = [30, 40, 50, 35]
GOALS = GoalSampler(None, GoalMixture(random=1))
KINDS = {
    "crops": {"crop": (2, 9)},
    "strided crops": {"crop": 5, "stride": 20},
    "goals of steps": {"n_steps": 1, "goal_sampler": GOALS},
    "goals of windows": {"length": 2, "goal_sampler": GOALS},
}
DRAWN = ("_indices", "_lens", "policy_goal_observation")


def dataset_of(buffer, kind):
    return buffer.dataset(return_indices=True, **KINDS[kind])


def drawn(batches):
    """What was drawn at random, sample by sample."""
    return [
        tuple(repr(batch[name][k].tolist()) for name in DRAWN if name in batch)
        for batch in batches
        for k in range(len(batch["_indices"]))
    ]


def epoch_of(buffer, kind, epoch, seed=0):
    """What an epoch draws, of a dataset that has seen no other."""
    dataset = dataset_of(buffer, kind)
    dataset.set_epoch(epoch, seed=seed)
    return drawn([dataset[np.array(few(dataset))]])


def few(dataset):
    """Some of its samples."""
    return range(0, len(dataset), max(1, len(dataset) // 8))


def loader_of(dataset, method, **options):
    """Somebody's own DataLoader, over some of the samples."""
    if method is not None:
        # Workers that are not forked start slowly.
        workers = 2 if method == "fork" else 1
        options |= {"num_workers": workers, "persistent_workers": True, "multiprocessing_context": method}
    return DataLoader(Subset(dataset, few(dataset)), 2, collate_fn=Collate(DRAWN), **options)


class Collate:
    def __init__(self, names):
        self.names = names

    def __call__(self, samples):
        return {name: torch.stack([s[name] for s in samples]) for name in self.names if name in samples[0]}


@pytest.mark.parametrize("kind", KINDS)
def test_an_epoch_reaches_workers_that_run(tmp_path, kind):
    with world(tmp_path, LENGTHS) as (buffer, _):
        expected = [epoch_of(buffer, kind, epoch) for epoch in range(4)]
        assert len(set(map(tuple, expected))) == 4
        dataset = dataset_of(buffer, kind)
        loader = loader_of(dataset, "fork")
        for epoch in (0, 1, 3, 2, 1):
            dataset.set_epoch(epoch)
            assert drawn(loader) == expected[epoch]


def test_it_reaches_every_loader_over_the_dataset(tmp_path):
    """However its workers are started, and whatever the dataset is wrapped in."""
    with world(tmp_path, LENGTHS) as (buffer, _):
        dataset = dataset_of(buffer, "crops")
        loaders = [loader_of(dataset, method) for method in (None, "fork", "spawn")]
        twice = loader_of(ConcatDataset([dataset, dataset]), "fork")
        for epoch, seed in ((0, 0), (5, 0), (5, 7), (2, -3)):
            dataset.set_epoch(epoch, seed=seed)
            expected = epoch_of(buffer, "crops", epoch, seed)
            assert [drawn(loader) for loader in loaders] == [expected] * 3
            assert drawn(twice) == 2 * expected


def test_they_are_the_crops_of_a_loader_of_this_package(tmp_path):
    with world(tmp_path, LENGTHS) as (buffer, _):
        ours = buffer.dataloader(2, crop=(2, 9), return_indices=True, seed=6)
        dataset = dataset_of(buffer, "crops")
        theirs = DataLoader(dataset, 2, collate_fn=Collate(DRAWN), num_workers=1, persistent_workers=True,
                            multiprocessing_context="fork")  # fmt: skip
        for epoch in range(3):
            dataset.set_epoch(epoch, seed=6)
            assert drawn(theirs) == drawn(ours)


def test_the_seed_stays_until_another_is_given(tmp_path):
    with world(tmp_path, LENGTHS) as (buffer, _):
        dataset = dataset_of(buffer, "crops")
        every = np.arange(len(dataset))
        dataset.set_epoch(0, seed=9)
        dataset.set_epoch(1)  # as accelerate calls it
        assert drawn([dataset[every]]) == epoch_of(buffer, "crops", 1, 9) != epoch_of(buffer, "crops", 1)
        dataset.set_epoch(np.int64(1), seed=np.int64(9 + 2**40))
        assert drawn([dataset[every]]) == epoch_of(buffer, "crops", 1, 9 + 2**40)
        dataset.set_epoch(1, seed=9 + 2**64)
        assert drawn([dataset[every]]) == epoch_of(buffer, "crops", 1, 9)


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda dataset: pickle.loads(pickle.dumps(dataset))])
def test_copies_have_epochs_of_their_own(tmp_path, duplicate):
    with world(tmp_path, LENGTHS) as (buffer, _):
        dataset = dataset_of(buffer, "crops")
        every = np.arange(len(dataset))
        dataset.set_epoch(3, seed=1)
        copied = duplicate(dataset)
        before = drawn([dataset[every]])
        assert drawn([copied[every]]) == before
        copied.set_epoch(4)
        assert drawn([dataset[every]]) == before != drawn([copied[every]])


@pytest.mark.parametrize(
    ("epoch", "seed"), [(-1, None), (1.0, None), (True, None), ("1", None), (None, None), (2**64, None), (0, 1.5)]
)
def test_what_is_no_epoch(tmp_path, epoch, seed):
    with world(tmp_path, [3]) as (buffer, _), pytest.raises(FieldError, match="expected an integer"):
        buffer.dataset(crop=2).set_epoch(epoch, seed=seed)


def test_many_datasets_open_no_file_each(tmp_path):
    with world(tmp_path, [3]) as (buffer, _):
        datasets = [buffer.dataset(crop=2) for _ in range(50)]
        limit = _open_files()
        datasets += [buffer.dataset(crop=2) for _ in range(500)]
        assert _open_files() <= limit + 2
        assert len(datasets) == 550


def _open_files():
    from pathlib import Path

    return len(list(Path("/dev/fd").iterdir()))


FORMATTED = {"batch_format": "ogbench"}
PRIORITIZED = {"sampler": True, "normalize": ("action",), "dtype": "stored", "refresh": "epoch"}


@pytest.mark.parametrize("options", [FORMATTED, PRIORITIZED], ids=("format", "priorities"))
def test_the_default_dtype_reaches_spawned_workers(tmp_path, options):
    """What is delivered in torch's default dtype is in that of the process that trains."""
    fields = {"observation": Field("float64", state=True), "action": "int", "reward": "float64"}
    with ReplayBuffer(tmp_path, fields=fields | {"terminated": "bool", "truncated": "bool"}) as buffer:
        ends = np.arange(4) == 3
        buffer.store_episode(
            observation=np.arange(5), action=np.arange(4), reward=ends, terminated=ends, truncated=~ends
        )
        torch.set_default_dtype(torch.float64)
        try:
            options = options | ({"sampler": PrioritizedSampler()} if "sampler" in options else {})
            loader = buffer.dataloader(4, n_steps=1, num_workers=1, multiprocessing_context="spawn", **options)
            batch = next(iter(loader))
            kept = {
                "n_step_lens",
                "actions",
                "_samples",
                "terminated",
                "truncated",
                "next_terminated",
                "next_truncated",
            }
            assert {value.dtype for name, value in batch.items() if name not in kept} == {torch.float64}
            assert len(batch) > 5
        finally:
            torch.set_default_dtype(torch.float32)
