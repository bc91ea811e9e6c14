"""More buffers than can be held open: a bounded number of maps, no open file, and the same samples as one buffer."""

import os
import pickle
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from format_helpers import another_uuid
from hypothesis import given, settings
from hypothesis import strategies as st
from loading_helpers import FIELDS, META, by_index, make_episode

from gym_replay import (
    BufferChangedError,
    ConcatReplayBuffer,
    EpisodeEvictedError,
    GoalSampler,
    PrioritizedSampler,
    ReplayBuffer,
    statistics,
)
from gym_replay.buffer.loading import gather
from gym_replay.buffer.storage.maps import libc

linux = pytest.mark.skipif(sys.platform != "linux", reason="counts maps in /proc")
grouped = pytest.mark.filterwarnings("ignore:.*buffers have more files than can be mapped")


def make_shards(room, parts, **options):
    """A folder of shards with episodes of these lengths, and one buffer with all of them."""
    number = 0
    with ReplayBuffer(room / "whole", fields=FIELDS, meta_fields=META) as whole:
        for place, lengths in enumerate(parts):
            with ReplayBuffer(
                room / "data" / "shards" / f"w-{place}", fields=FIELDS, meta_fields=META, **options
            ) as shard:
                for length in lengths:
                    for buffer in (shard, whole):
                        buffer.store_episode(**make_episode(number, length))
                    number += 1
    return room / "data", ReplayBuffer.from_folder(room / "whole", read_only=True)


def lines_of(folder):
    return sum(str(folder) in line for line in Path("/proc/self/maps").read_text().splitlines())


def open_files(folder):
    found = [os.path.realpath(f"/proc/self/fd/{entry}") for entry in os.listdir("/proc/self/fd")]
    return [path for path in found if str(folder) in path]


def same(one, other):
    assert one.keys() == other.keys()
    for name, value in other.items():
        assert torch.equal(one[name], value) if isinstance(value, torch.Tensor) else one[name] == value, name


KINDS = {
    "timesteps": {"timestep_level": True},
    "n-step": {"n_steps": 3, "sequence_fields": ("reward", "seen"), "discount": 0.9},
    "windows": {"length": 3, "boundary": "zero"},
    "offsets": {"offsets": {"observation": (-1, 0), "words": (0, 1)}, "stride": 2},
    "trajectories": {"return_mask": True, "next_fields": ("observation", "seen")},
    "crops": {"crop": (1, 4), "burn_in": 1},
    "goals": {"n_steps": 1, "goal_sampler": GoalSampler(relabel=lambda r: (r.reached * 1.0, ~r.reached))},
}
DENSE = [  # whose samples do not depend on what else is in their batch
    {"timestep_level": True, "fields": ("observation", "reward")},
    {"n_steps": 2, "current_fields": ("action",), "next_fields": ("observation",), "sequence_fields": ("reward",)},
    {"offsets": {"observation": (-1, 0, 2)}, "fields": ("terminated",)},
    {"crop": (1, 4), "fields": ("action",)},
]


@grouped
@settings(deadline=None, max_examples=15)
@given(
    parts=st.lists(st.lists(st.integers(1, 6), max_size=3), min_size=1, max_size=12).filter(
        lambda parts: sum(map(len, parts))
    ),
    max_maps=st.sampled_from([1, 2, 5, 20, 60, 120, 1000]),
    few=st.sampled_from([0, 1, 8]),
    batch_size=st.integers(1, 12),
    seed=st.integers(0, 3),
)
def test_all_kinds_of_samples_equal_those_of_one_buffer(tmp_path_factory, parts, max_maps, few, batch_size, seed):
    folder, whole = make_shards(tmp_path_factory.mktemp("b"), parts)
    with pytest.MonkeyPatch.context() as patch, ConcatReplayBuffer(folder, max_maps=max_maps) as both, whole:
        patch.setattr(gather, "_FEW_PARTS", few)
        assert both.episode_lens.tolist() == whole.episode_lens.tolist()
        for one, other in zip(both, whole, strict=True):
            np.testing.assert_array_equal(one["observation"], other["observation"])
            assert one["seen"].tolist() == other["seen"].tolist()
            assert one.meta == other.meta
        for options in KINDS.values():
            loaders = [buffer.dataloader(batch_size, seed=seed, **options) for buffer in (both, whole)]
            for one, other in zip(*loaders, strict=True):
                same(one, other)
        for options in DENSE:
            mine, theirs = (
                by_index(buffer.dataloader(batch_size, shuffle=True, seed=seed, return_indices=True, **options))
                for buffer in (both, whole)
            )
            assert mine.keys() == theirs.keys()
            for key, sample in theirs.items():
                same(mine[key], sample)
        for name, found in statistics(both, progress=False).items():
            np.testing.assert_allclose(found.mean, statistics(whole, cache=False)[name].mean, rtol=1e-9)


@linux
@grouped
@pytest.mark.parametrize("max_maps", [1, 6, 40])
def test_maps_stay_under_their_bound_and_no_file_stays_open(tmp_path, max_maps):
    folder, _ = make_shards(tmp_path, [[3, 2]] * 30 + [[]] * 3)
    most = 0
    with ConcatReplayBuffer(folder, max_maps=max_maps) as buffer:
        assert lines_of(folder) == 0
        for options in (*KINDS.values(), {"timestep_level": True, "filter_fields": {"reward": lambda r: r >= 0}}):
            for shuffle in (False, True):
                for batch in buffer.dataloader(16, shuffle=shuffle, seed=0, **options):
                    assert batch
                    most = max(most, lines_of(folder))
                    assert not open_files(folder)
        for loader in (
            buffer.dataloader(16, timestep_level=True, replacement=True, seed=0),
            buffer.dataloader(16, timestep_level=True, sampler=PrioritizedSampler(), seed=0),
            buffer.dataloader(16, timestep_level=True, shuffle="block", block_size=8, pool_size=32, seed=0),
            buffer.dataloader(4, weights="task", seed=0),
        ):
            for _ in loader:
                most = max(most, lines_of(folder))
        for episode in buffer:
            assert episode["reward"][0] >= 0
            assert episode.meta["name"]
            most = max(most, lines_of(folder))
        buffer.get_all_data()
        assert 0 < most <= max_maps + 1  # and the one that a loop has in its hand
        kept = [buffer.episode(k)["action"] for k in range(0, 60, 2)]
        assert [view[0] for view in kept] == [300 * k + 1 for k in range(0, 60, 2)]  # all of them are good
    assert lines_of(folder) <= len(kept)
    assert kept[7][1] == 3 * 1401 + 1


@linux
def test_joined_parts_are_counted_with_what_lies_between_them(tmp_path):
    folder, _ = make_shards(tmp_path, [[3, 2]] * 20)
    before = len(Path("/proc/self/maps").read_text().splitlines())
    with ConcatReplayBuffer(folder, max_maps=45) as buffer:
        loader = buffer.dataloader(50, timestep_level=True, fields=("observation",), shuffle=True, seed=0)
        assert loader.num_groups == 1
        assert sum(len(batch["observation"]) for batch in loader) == 100
        assert lines_of(folder) == 20 + 4  # and as many meta columns as there is room for
        assert len(Path("/proc/self/maps").read_text().splitlines()) - before <= 45 + 10  # and what loading took


def test_many_files_are_opened_lazily_and_few_are_not(tmp_path, monkeypatch):
    import resource

    folder, _ = make_shards(tmp_path, [[3]] * 4)
    files = 4 * 20
    with ConcatReplayBuffer(folder) as few:
        assert all(part.map_pool is None for part in few.snapshots())
    with ConcatReplayBuffer(folder, max_maps=files) as many:
        assert all(part.map_pool is not None for part in many.snapshots())
    monkeypatch.setattr(resource, "getrlimit", lambda which: (files, files))
    with ConcatReplayBuffer(folder) as many:
        pools = {part.map_pool.pool for part in many.snapshots()}
        assert len(pools) == 1


@grouped
def test_groups_are_said_and_resumed(tmp_path):
    folder, whole = make_shards(tmp_path, [[5]] * 20)
    with ConcatReplayBuffer(folder, max_maps=40) as buffer:
        with pytest.warns(UserWarning, match="20 buffers .* groups of buffers"):
            loader = buffer.dataloader(7, timestep_level=True, shuffle=True, seed=3, return_indices=True)
        assert loader.num_groups > 2
        one = buffer.dataloader(7, timestep_level=True, shuffle=True, fields=("reward",), episodes=range(4))
        assert one.num_groups == 1  # of what is read from
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for options in ({}, {"replacement": True}, {"shuffle": "block"}):
                assert buffer.dataloader(7, timestep_level=True, seed=3, **options).num_groups == 1
        epochs = [[batch["_indices"] for batch in loader] for _ in range(2)]
        assert not torch.equal(torch.cat(epochs[0]), torch.cat(epochs[1]))
        for epoch in epochs:
            assert sorted(map(tuple, torch.cat(epoch).tolist())) == [(k, t) for k in range(20) for t in range(5)]
        iterator = iter(loader)
        for _ in range(4):
            next(iterator)
        state = pickle.loads(pickle.dumps(loader.state_dict()))
        again = pickle.loads(pickle.dumps(buffer)).dataloader(
            7, timestep_level=True, shuffle=True, seed=8, return_indices=True
        )
        again.load_state_dict(state)
        for batch, expected in zip(again, iterator, strict=True):
            same(batch, expected)
        with (
            ConcatReplayBuffer(folder, max_maps=80) as other,
            pytest.raises(ValueError, match="the state was taken with groups"),
        ):
            other.dataloader(7, timestep_level=True, shuffle=True, seed=3).load_state_dict(state)
        ranks = [
            buffer.dataloader(
                7, timestep_level=True, shuffle=True, seed=3, rank=rank, world_size=3, return_indices=True
            )
            for rank in range(3)
        ]
        shared = [tuple(pair) for rank in ranks for batch in rank for pair in batch["_indices"].tolist()]
        assert sorted(shared) == [(k, t) for k in range(20) for t in range(5)]
    whole.close()


@grouped
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers(tmp_path, method):
    folder, whole = make_shards(tmp_path, [[4, 2]] * 12)
    with ConcatReplayBuffer(folder, max_maps=20) as buffer, whole:
        options = {"n_steps": 2, "seed": 1, "shuffle": True, "return_indices": True}
        workers = {"num_workers": 2, "multiprocessing_context": method}
        for one, other in zip(buffer.dataloader(9, **options, **workers), buffer.dataloader(9, **options), strict=True):
            same(one, other)


@pytest.mark.parametrize("max_maps", [8, 100])  # part by part, and joined
def test_edits_elsewhere_never_mix_with_what_was(tmp_path, max_maps):
    folder, whole = make_shards(tmp_path, [[3, 2]] * 6)
    whole.close()
    with (
        ConcatReplayBuffer(folder, max_maps=max_maps) as buffer,
        ReplayBuffer.from_folder(folder / "shards" / "w-2") as writer,
    ):
        options = {"timestep_level": True, "fields": ("reward", "action"), "return_indices": True}
        loader, live = (buffer.dataloader(4, refresh=refresh, **options) for refresh in (None, "epoch"))
        writer.update(reward=[np.full(3, -1.0), np.full(2, -1.0)], action=[np.full(3, -1), np.full(2, -1)])
        with pytest.raises(BufferChangedError, match=r"w-2: .*refresh\(\)"):
            list(loader)
        buffer.refresh()
        for again in (buffer.dataloader(4, **options), live):
            for batch in again:
                changed = np.isin(batch["_indices"][:, 0], (4, 5))
                assert ((batch["reward"] == -1).numpy() == changed).all()
                assert ((batch["action"] == -1).numpy() == changed).all()
        writer.clear()
        with pytest.raises(BufferChangedError):
            [episode["action"] for episode in buffer]
        buffer.refresh()
        assert len(buffer) == 10


def test_rings_beyond_the_bound(tmp_path):
    """Evicted samples are replaced or refused, and looked for only where the batch is from."""
    folder, whole = make_shards(tmp_path, [[3, 3]] * 20, circular=True, max_episodes=2)
    whole.close()
    with (
        ConcatReplayBuffer(folder, max_maps=10) as buffer,
        ReplayBuffer.from_folder(folder / "shards" / "w-7") as writer,
    ):
        loader = buffer.dataloader(6, timestep_level=True, fields=("reward",), return_indices=True)
        writer.store_episode(**make_episode(300, 3))
        batches = list(loader)
        found = torch.cat([batch["_indices"] for batch in batches])[:, 0].tolist()
        assert found.count(14) == 0  # evicted; the other episode of its buffer stands in for it
        assert found.count(15) == 6
        rewards = torch.cat([batch["reward"] for batch in batches])
        np.testing.assert_allclose(rewards[-1], 1 + (100 * 39 + 2) / 7)
        for number in (301, 302):
            writer.store_episode(**make_episode(number, 3))
        with pytest.raises(EpisodeEvictedError, match="w-7"):
            list(loader)
        with pytest.raises(EpisodeEvictedError):
            buffer.episode(15).copy()
        buffer.refresh()
        assert buffer.episode(15)["action"][0] == 3 * 30200 + 1


def test_a_damaged_shard_is_named(tmp_path):
    folder, whole = make_shards(tmp_path, [[3, 2]] * 6)
    whole.close()
    (folder / "shards" / "w-4" / "steps" / "reward.npy").unlink()
    with ConcatReplayBuffer(folder, max_maps=8) as buffer:
        loader = buffer.dataloader(4, timestep_level=True)
        with pytest.raises(ValueError, match=r"w-4/steps/reward\.npy: the file is missing"):
            list(loader)
    os.truncate(folder / "shards" / "w-3" / "episodes.npy", 10)
    with pytest.raises(ValueError, match=r"w-3/episodes\.npy"):
        ConcatReplayBuffer(folder, max_maps=8)


def test_maps_that_are_refused_are_read_one_by_one(tmp_path, monkeypatch):
    """As where the operating system gives no such stretch of addresses."""
    folder, whole = make_shards(tmp_path, [[3, 2]] * 12)
    with ConcatReplayBuffer(folder, max_maps=400) as buffer, whole:
        monkeypatch.setattr(gather, "join", lambda *_: None)
        assert libc() is libc()
        for one, other in zip(*(each.dataloader(20, n_steps=2, seed=0) for each in (buffer, whole)), strict=True):
            same(one, other)


_UNDER_A_LIMIT = """
import resource, sys, warnings
resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
from gym_replay import ConcatReplayBuffer
buffer = ConcatReplayBuffer(sys.argv[1], max_maps=100)
warnings.simplefilter("ignore")
loader = buffer.dataloader(64, timestep_level=True, shuffle=True, seed=0, return_indices=True)
found = [tuple(pair) for batch in loader for pair in batch["_indices"].tolist()]
assert sorted(found) == [(k, t) for k in range(400) for t in range(3)], len(found)
assert loader.num_groups > 10
print(len(buffer.buffers), buffer.num_steps)
"""


def test_hundreds_of_shards_with_a_few_dozen_files(tmp_path):
    folder, whole = make_shards(tmp_path, [[3, 3]])
    whole.close()
    first = folder / "shards" / "w-0"
    for number in range(1, 200):
        shard = first.with_name(f"w-{number}")
        shutil.copytree(first, shard)
        another_uuid(shard)
    command = [sys.executable, "-c", _UNDER_A_LIMIT, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.returncode) == ("200 1200", 0), done.stderr
