"""Buffers that are read from an address: the episodes and batches that the folder has, and only what is read comes."""

import gc
import pickle
import time

import numpy as np
import pytest
from buffer_helpers import add as add_plain
from buffer_helpers import contents, make_plain, run_script
from hypothesis import given, settings
from hypothesis import strategies as st
from remote_helpers import (
    LOADERS,
    URL,
    Fails,
    add,
    all_values,
    batches,
    behaving,
    changed,
    cut,
    late,
    make,
    objects,
    replace_object,
    store,
    values,
)

from gym_replay import (
    BufferNotFoundError,
    ConcatReplayBuffer,
    CorruptBufferError,
    FieldError,
    ReadOnlyError,
    ReplayBuffer,
    StorageError,
    merge,
    n_step_loader,
    pull,
    push,
    statistics,
    trajectory_loader,
)


def test_episodes_and_meta(tmp_path):
    with store(), make(tmp_path / "here") as buffer:
        push(buffer, URL)
        there = ReplayBuffer.from_url(URL)
        assert all_values(there) == all_values(buffer)
        assert there.meta["note"] == buffer.meta["note"]
        assert there.metadata == buffer.metadata
        assert repr(there).startswith(f"ReplayBuffer('{URL}', 12 episodes")
        assert values(there[-1].copy()) == values(buffer[-1])
        assert there.get_all_data(["reward"])["reward"].tolist() == buffer.get_all_data(["reward"])["reward"].tolist()
        with pytest.raises(ReadOnlyError, match=r"pull\(url, folder\)") as caught:
            add(there, 1)
        assert caught.value.filename == URL


@pytest.mark.parametrize("kind", LOADERS)
@pytest.mark.parametrize("shuffle", [False, True, "block"])
def test_loaders_of_all_kinds(tmp_path, kind, shuffle):
    with store(), make(tmp_path / "here") as buffer:
        push(buffer, URL)
        there = ReplayBuffer.from_url(URL)
        options = {"shuffle": shuffle, "seed": 3}
        assert batches(LOADERS[kind](there, **options)) == batches(LOADERS[kind](buffer, **options))


def test_the_rest_of_the_reading_side(tmp_path):
    with store(), make(tmp_path / "here") as buffer:
        push(buffer, URL)
        there = ReplayBuffer.from_url(URL)
        assert repr(statistics(there)) == repr(statistics(buffer))
        assert there.to_pandas().equals(buffer.to_pandas())
        loader = trajectory_loader(there, 8, episodes=lambda meta: meta["episode_return"] > 6, shuffle=True)
        assert sum(len(batch["reward"]) for batch in loader) == 5
        with merge([there, there], tmp_path / "merged", progress=False) as merged:
            assert all_values(merged) == 2 * all_values(buffer)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_worker_processes(tmp_path, method):
    url = f"file://{tmp_path}/there"
    with make(tmp_path / "here") as buffer:
        push(buffer, url)
        workers = 2 if method == "fork" else 1  # others start slowly
        options = {"num_workers": workers, "multiprocessing_context": method, "shuffle": "block", "seed": 1}
        found = batches(LOADERS["window"](ReplayBuffer.from_url(url), **options))
        assert found == batches(LOADERS["window"](buffer, shuffle="block", seed=1))


def test_a_buffer_is_sent_to_another_process_as_its_address(tmp_path):
    with store(), make(tmp_path / "here") as buffer:
        push(buffer, URL)
        there = ReplayBuffer.from_url(URL)
        for sent in (there, ConcatReplayBuffer([there])):
            assert all_values(pickle.loads(pickle.dumps(sent))) == all_values(buffer)


def test_shards_are_one(tmp_path):
    with store():
        for number in range(3):
            with make(tmp_path / "here" / "shards" / f"w-{number}", 4, seed=number):
                pass
        push(tmp_path / "here", URL)
        with pytest.raises(FieldError, match=r"3 buffers; ConcatReplayBuffer\.from_url"):
            ReplayBuffer.from_url(URL)
        there, here = ConcatReplayBuffer.from_url(URL), ConcatReplayBuffer(tmp_path / "here")
        assert all_values(there) == all_values(here)
        for shuffle in (True, "block"):
            options = {"shuffle": shuffle, "seed": 3}
            assert batches(LOADERS["n_step"](there, **options)) == batches(LOADERS["n_step"](here, **options))


def test_only_what_is_read_comes(tmp_path):
    with store() as calls, make_plain(tmp_path / "here") as buffer:
        add_plain(buffer, *[1 << 17] * 32)  # 32 MiB
        push(buffer, URL)
        there = ReplayBuffer.from_url(URL)
        calls.calls.clear()
        assert there[20]["x"].tolist() == buffer[20]["x"].tolist()
        assert calls.calls["read bytes"] < 2 << 20
        there[20]["x"]
        assert calls.calls["read bytes"] < 2 << 20


def room_taken(folder):
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def test_the_cache_is_bounded(tmp_path, cache):
    with store() as calls, make_plain(tmp_path / "here") as buffer:
        add_plain(buffer, *[1 << 17] * 16)  # 16 MiB
        push(buffer, URL)
        there = ReplayBuffer.from_url(URL, cache_bytes=6 << 20)
        for _ in range(2):
            assert contents(there) == contents(buffer)
        assert room_taken(cache) < 7 << 20
        loader = trajectory_loader(there, 2, shuffle=True, seed=0)
        assert all((batch["x"][:, 1] - batch["x"][:, 0] == 1).all() for batch in loader)
        assert room_taken(cache) < 7 << 20
        with pytest.raises(StorageError, match=r"cache_bytes=\.\.\. more"):
            list(trajectory_loader(there, 16))
        with pytest.raises(StorageError, match="pull the data set"):
            there.snapshots()[0].column("x")
        assert contents(there) == contents(buffer)
        assert calls.calls["read bytes"] > 32 << 20
        with pytest.raises(FieldError, match="cache_bytes=5"):
            ReplayBuffer.from_url(URL, cache_bytes=5)


def test_the_cache_goes_with_the_buffer(tmp_path, cache):
    with store(), make(tmp_path / "here") as buffer:
        push(buffer, URL)
        there = ReplayBuffer.from_url(URL)
        assert len(list(cache.iterdir())) == 1
        del there
        gc.collect()
        assert not list(cache.iterdir())
    url = f"file://{tmp_path}/there"
    push(tmp_path / "here", url)
    script = "import os, sys, gym_replay; b = gym_replay.ReplayBuffer.from_url(sys.argv[1]); b[0]; os._exit(9)"
    assert run_script(script, url)[0] == 9
    assert len(list(cache.iterdir())) == 1
    there = ReplayBuffer.from_url(url)
    assert len(list(cache.iterdir())) == 1  # that of the killed process has gone
    assert len(there) == 12


def test_many_requests_are_under_way(tmp_path):
    with store(), make_plain(tmp_path / "here") as buffer:
        add_plain(buffer, *[1 << 15] * 64)  # 16 MiB
        push(buffer, URL)
        there = ReplayBuffer.from_url(URL)
        under_way = most = 0

        def wait(method, path):
            nonlocal under_way, most
            under_way += 1
            most = max(most, under_way)
            time.sleep(0.05)
            under_way -= 1

        with behaving(wait):
            next(iter(n_step_loader(there, 8, shuffle="block", seed=0)))
        assert most >= 4


def test_a_store_that_answers_late_and_in_any_order(tmp_path):
    rng = np.random.default_rng(0)
    with store(), make(tmp_path / "here") as buffer:
        push(buffer, URL)
        with behaving(lambda method, path: late(0.02 * rng.random())(method, path)):
            there = ReplayBuffer.from_url(URL)
            assert batches(LOADERS["window"](there, shuffle="block", seed=1)) == batches(
                LOADERS["window"](buffer, shuffle="block", seed=1)
            )


def test_a_revision_that_moves(tmp_path):
    with store(), make(tmp_path / "here") as buffer:
        first = push(buffer, URL)
        before = all_values(buffer)
        there = ReplayBuffer.from_url(URL)
        buffer.delete([0])
        buffer.update([0], reward=[buffer[0]["reward"] + 1])
        add(buffer, 3)
        push(buffer, URL)
        there.refresh()
        assert all_values(there) == before
        assert all_values(ReplayBuffer.from_url(URL)) == all_values(buffer)
        assert all_values(ReplayBuffer.from_url(URL, revision=first.revision[:8])) == before
        with pytest.raises(BufferNotFoundError, match="no revision"):
            ReplayBuffer.from_url(URL, revision="zz")
        with pytest.raises(FieldError, match="revision=5"):
            ReplayBuffer.from_url(URL, revision=5)


@pytest.mark.parametrize("damage", [cut, changed, None])
def test_damaged_objects(tmp_path, damage):
    """An error, and never zeros or other values."""
    with store() as calls, make(tmp_path / "here", 40) as buffer:
        push(buffer, URL)
        expected = all_values(buffer)
        for path in objects():
            content = calls.store[path].getvalue()
            if damage is None:
                del calls.store[path]
            else:
                replace_object(path, damage(content))
            try:
                found = all_values(ReplayBuffer.from_url(URL))
            except CorruptBufferError as error:
                assert path[-64:] in str(error)  # noqa: PT017
            else:
                assert found == expected  # it was one that reading all episodes does not need
            replace_object(path, content)


def test_a_store_that_fails_and_then_does_not(tmp_path):
    with store(), make(tmp_path / "here") as buffer:
        push(buffer, URL)
        there = ReplayBuffer.from_url(URL)
        with behaving(Fails("read", error=PermissionError("no"), always_from=1)), pytest.raises(StorageError):
            there[0]["reward"]
        assert all_values(there) == all_values(buffer)


@settings(max_examples=25)
@given(st.lists(st.tuples(st.integers(0, 63), st.integers(1, 10)), min_size=1, max_size=12))
def test_any_way_of_reading_through_a_small_cache(tmp_path_factory, reads):
    """Whatever is read in whatever order, and given back between, is what the folder has."""
    buffer, there = small_cache(tmp_path_factory)
    for number, count in reads:
        rows = np.arange(number, min(number + count, 64))
        samples = there.dataset(timestep_level=True, fields=["x"])
        taken = samples[rows * (1 << 14) + 7]["x"]
        assert taken.tolist() == [buffer[int(row)]["x"][7] for row in rows]
        assert there[number]["x"].tolist() == buffer[number]["x"].tolist()


MADE = {}


def small_cache(factory):
    if not MADE:
        folder = factory.mktemp("small")
        with make_plain(folder / "here") as buffer:
            add_plain(buffer, *[1 << 14] * 64)  # 8 MiB
            push(buffer, f"file://{folder}/there")
        MADE["here"] = ReplayBuffer.from_folder(folder / "here", read_only=True)
        MADE["there"] = ReplayBuffer.from_url(f"file://{folder}/there", cache=folder / "cache", cache_bytes=12 << 18)
    return MADE["here"], MADE["there"]


def test_what_is_pulled_in_part_goes_through_a_small_cache(tmp_path):
    with store(), make(tmp_path / "here", 30) as buffer:
        push(buffer, URL)
        with pull(URL, tmp_path / "back", where="episode_return >= 10", fields=["frame", "words", "reward"]) as back:
            assert len(back) == 20
            assert values(back[3])["frame"] == values(buffer[13])["frame"]
