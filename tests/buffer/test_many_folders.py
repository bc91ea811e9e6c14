"""Many folders as one: no open file, the same samples as of one buffer, and the limits of the system."""

import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from format_helpers import another_uuid
from hypothesis import given, settings
from hypothesis import strategies as st
from internals import gather, maps
from loading_helpers import FIELDS, META, by_index, make_episode

from gym_replay import (
    BufferChangedError,
    ConcatReplayBuffer,
    EpisodeEvictedError,
    GoalSampler,
    ReplayBuffer,
    StorageError,
    merge,
    statistics,
)

linux = pytest.mark.skipif(sys.platform != "linux", reason="counts maps in /proc")


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


@settings(max_examples=8)
@given(
    parts=st.lists(st.lists(st.integers(1, 6), max_size=3), min_size=1, max_size=12).filter(
        lambda parts: sum(map(len, parts))
    ),
    joined=st.booleans(),
    batch_size=st.integers(1, 12),
    seed=st.integers(0, 3),
)
def test_all_kinds_of_samples_equal_those_of_one_buffer(tmp_path_factory, parts, joined, batch_size, seed):
    """Joined, and one by one, as where the operating system gives no such stretch of addresses."""
    folder, whole = make_shards(tmp_path_factory.mktemp("b"), parts)
    with pytest.MonkeyPatch.context() as patch, ConcatReplayBuffer(folder) as both, whole:
        if not joined:
            patch.setattr(gather, "join", lambda *_: None)
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
def test_no_file_stays_open(tmp_path):
    folder, whole = make_shards(tmp_path, [[3, 2]] * 30 + [[]] * 3)
    with ConcatReplayBuffer(folder) as buffer, whole:
        assert not open_files(tmp_path)
        assert lines_of(folder) == 33 + 30  # counters, and tables that are not empty
        for options in (*KINDS.values(), {"timestep_level": True, "filter_fields": {"reward": lambda r: r >= 0}}):
            for shuffle in (False, True, "block"):
                for batch in buffer.dataloader(16, shuffle=shuffle, seed=0, **options):
                    assert batch
                    assert not open_files(tmp_path)
        assert [episode.meta["name"] for episode in buffer] == [episode.meta["name"] for episode in whole]
        kept = [buffer.episode(k)["action"] for k in range(0, 60, 2)]
        assert not open_files(tmp_path)
    del batch
    assert lines_of(folder) <= len(kept)
    assert [view[0] for view in kept] == [300 * k + 1 for k in range(0, 60, 2)]  # views stay good


@linux
def test_a_loader_takes_two_maps_a_folder_for_each_field_that_it_reads(tmp_path):
    folder, whole = make_shards(tmp_path, [[3, 2]] * 20)
    whole.close()
    with ConcatReplayBuffer(folder) as buffer:
        before, of_folders = len(Path("/proc/self/maps").read_text().splitlines()), lines_of(folder)
        loader = buffer.dataloader(50, timestep_level=True, fields=("observation",), shuffle=True, seed=0)
        assert sum(len(batch["observation"]) for batch in loader) == 100
        assert lines_of(folder) == of_folders + 20 + 20  # and the strings of a meta field, as of a single folder
        assert len(Path("/proc/self/maps").read_text().splitlines()) - before <= 41 + 20 + 10  # and what loading took


def test_folders_that_the_system_cannot_map_are_refused(tmp_path, monkeypatch):
    folder, whole = make_shards(tmp_path, [[3, 2]] * 20)
    monkeypatch.setattr(maps, "most_maps", lambda: 96)  # 90, and the rest for others: 45 of them at 2 maps a folder
    with ConcatReplayBuffer(folder) as buffer, whole:
        with pytest.raises(
            StorageError, match=r"20 folders with 2 fields .* process 96 .*: 15 such folders fit\. merge"
        ):
            buffer.dataloader(8, timestep_level=True, fields=("observation", "reward"))
        assert len(next(iter(buffer.dataloader(8, timestep_level=True, fields=("reward",))))["reward"]) == 8
        fifteen = buffer.dataloader(8, timestep_level=True, fields=("observation", "reward"), episodes=range(30))
        assert sum(len(batch["reward"]) for batch in fifteen) == 75
        merge([folder], tmp_path / "one", progress=False).close()
    with ReplayBuffer.from_folder(tmp_path / "one") as one:
        assert len(next(iter(one.dataloader(8, timestep_level=True)))["reward"]) == 8
    monkeypatch.setattr(maps, "most_maps", lambda: 40)
    with pytest.raises(StorageError, match=r"20 folders .*: 19 such folders fit"):
        ConcatReplayBuffer(folder)


def test_an_epoch_is_resumed_and_shared_between_ranks(tmp_path):
    folder, whole = make_shards(tmp_path, [[5]] * 20)
    whole.close()
    options = {"timestep_level": True, "shuffle": True, "return_indices": True}
    with ConcatReplayBuffer(folder) as buffer:
        loader = buffer.dataloader(7, seed=3, **options)
        iterator = iter(loader)
        for _ in range(4):
            next(iterator)
        again = pickle.loads(pickle.dumps(buffer)).dataloader(7, seed=8, **options)
        again.load_state_dict(pickle.loads(pickle.dumps(loader.state_dict())))
        for batch, expected in zip(again, iterator, strict=True):
            same(batch, expected)
        ranks = [buffer.dataloader(7, seed=3, rank=rank, world_size=3, **options) for rank in range(3)]
        shared = [tuple(pair) for rank in ranks for batch in rank for pair in batch["_indices"].tolist()]
        assert sorted(shared) == [(k, t) for k in range(20) for t in range(5)]


def test_workers(tmp_path):
    folder, whole = make_shards(tmp_path, [[4, 2]] * 12)
    with ConcatReplayBuffer(folder) as buffer, whole:
        options = {"n_steps": 2, "seed": 1, "shuffle": True, "return_indices": True}
        workers = {"num_workers": 1, "multiprocessing_context": "spawn"}
        for one, other in zip(buffer.dataloader(9, **options, **workers), buffer.dataloader(9, **options), strict=True):
            same(one, other)


@pytest.mark.parametrize("joined", [True, False])
def test_edits_elsewhere_never_mix_with_what_was(tmp_path, monkeypatch, joined):
    if not joined:
        monkeypatch.setattr(gather, "join", lambda *_: None)
    folder, whole = make_shards(tmp_path, [[3, 2]] * 6)
    whole.close()
    with (
        ConcatReplayBuffer(folder) as buffer,
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
            [episode["observation"] for episode in buffer]
        buffer.refresh()
        assert len(buffer) == 10


def test_rings(tmp_path):
    """Evicted samples are replaced or refused, and looked for only where the batch is from."""
    folder, whole = make_shards(tmp_path, [[3, 3]] * 20, circular=True, max_episodes=2)
    whole.close()
    with (
        ConcatReplayBuffer(folder) as buffer,
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
    with ConcatReplayBuffer(folder) as buffer:
        loader = buffer.dataloader(4, timestep_level=True)
        with pytest.raises(ValueError, match=r"w-4/steps/reward\.npy: the file is missing"):
            list(loader)
    os.truncate(folder / "shards" / "w-3" / "episodes.npy", 10)
    with pytest.raises(ValueError, match=r"w-3/episodes\.npy"):
        ConcatReplayBuffer(folder)


_UNDER_A_LIMIT = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
from gym_replay import ConcatReplayBuffer
with ConcatReplayBuffer(sys.argv[1]) as buffer:
    loader = buffer.dataloader(64, timestep_level=True, shuffle=True, seed=0, return_indices=True)
    found = [tuple(pair) for batch in loader for pair in batch["_indices"].tolist()]
    assert sorted(found) == [(k, t) for k in range(2 * int(sys.argv[2])) for t in range(3)], len(found)
    print(len(buffer.buffers), buffer.num_steps)
"""


def test_more_folders_than_files_can_be_open(tmp_path):
    folder, whole = make_shards(tmp_path, [[3, 3]])
    whole.close()
    first = folder / "shards" / "w-0"
    for number in range(1, 80):
        shard = first.with_name(f"w-{number}")
        shutil.copytree(first, shard)
        another_uuid(shard)
    command = [sys.executable, "-c", _UNDER_A_LIMIT, str(folder), "80"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.returncode) == ("80 480", 0), done.stderr


EDITS = {
    "update": lambda writer: writer.update(reward=[np.full(3, -1.0)], action=[np.full(3, -1)]),
    "clear": lambda writer: writer.clear(),
    "clear and record": lambda writer: (writer.clear(), writer.store_episode(**make_episode(7, 3))),
    "add a field": lambda writer: writer.add_field("extra", "float", [np.zeros(3)]),
    "two updates": lambda writer: [writer.update(reward=[np.full(3, value)]) for value in (-1.0, -2.0)],
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_between_opening_and_reading_is_noticed(tmp_path, edit):
    folder, whole = make_shards(tmp_path, [[3], [3]])
    whole.close()
    with ConcatReplayBuffer(folder) as buffer, ReplayBuffer.from_folder(folder / "shards" / "w-1") as writer:
        episode = buffer.episode(1)
        expected = episode["reward"].tolist()  # is mapped, and stays
        EDITS[edit](writer)
        assert episode["reward"].tolist() == expected
        with pytest.raises(BufferChangedError, match=r"w-1: .*refresh\(\)"):
            episode["action"]
        if edit == "add a field":
            return  # the schemas differ now
        buffer.refresh()
        assert len(buffer) == len(writer) + 1


def test_a_folder_that_is_moved_away_is_missed_and_found_again(tmp_path):
    folder, whole = make_shards(tmp_path, [[3], [3]])
    whole.close()
    with ConcatReplayBuffer(folder) as buffer:
        (folder / "shards").rename(tmp_path / "elsewhere")
        with pytest.raises(BufferChangedError):
            buffer.episode(1)["reward"]
        (tmp_path / "elsewhere").rename(folder / "shards")
        assert len(buffer.episode(1)["reward"]) == 3


def test_what_is_recorded_later_is_followed(tmp_path):
    folder, whole = make_shards(tmp_path, [[3], [3]])
    whole.close()
    with ConcatReplayBuffer(folder) as buffer, ReplayBuffer.from_folder(folder / "shards" / "w-0") as writer:
        assert len(buffer.episode(0)["action"]) == 3
        for number in range(7, 60):
            writer.store_episode(**make_episode(number, 200))
        assert len(buffer) == 2
        buffer.refresh()
        assert buffer.episode_lens.tolist() == [3, *[200] * 53, 3]
        np.testing.assert_array_equal(buffer.episode(53)["action"], writer.episode(53)["action"])
        assert buffer.episode(53)["words"].tolist() == writer.episode(53)["words"].tolist()
