"""The order that a loader delivers: over ranks, epochs, workers and checkpoints."""

from __future__ import annotations

import copy
import json
import multiprocessing
import pickle
import subprocess
import sys
import weakref
from functools import partial
from itertools import chain, islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from internals import small_sizes

from gym_replay import (
    ConcatReplayBuffer,
    EmptyBufferError,
    Field,
    FieldError,
    PrioritizedSampler,
    ReplayBuffer,
    window_loader,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
METHODS = [(0, None), (2, "fork"), (1, "spawn")]  # a worker that is not forked starts slowly
METHODS = [(n, method) for n, method in METHODS if method in (None, *multiprocessing.get_all_start_methods())]
LENGTHS = [7, 1, 9, 4, 12, 3, 8, 5]


def fill(folder, lengths=LENGTHS, **options):
    buffer = ReplayBuffer(folder, fields={"x": "int"}, meta_fields={"weight": "float", "name": "str"}, **options)
    for number, length in enumerate(lengths):
        append(buffer, number, length)
    return buffer


def append(buffer, number, length):
    buffer.store_episode(x=1000 * number + np.arange(length), weight=number % 3, name=f"{number}")


def loader_of(buffer, batch_size=4, **options):
    return buffer.dataloader(batch_size, **({"timestep_level": True, "seed": 3, "shuffle": True} | options))


def values(batches):
    return [batch["x"].tolist() for batch in batches]


def everything(lengths=LENGTHS):
    return [1000 * number + t for number, length in enumerate(lengths) for t in range(length)]


# --- ranks ---

KINDS = {
    "order": {"shuffle": False},
    "shuffle": {},
    "block": {"shuffle": "block", "block_size": 5, "pool_size": 15},
    "replacement": {"replacement": True},
    "weights": {"weights": "weight"},
    "prioritized": {"sampler": True},
}


def options_of(kind):
    options = dict(KINDS[kind])
    return options | ({"sampler": PrioritizedSampler()} if "sampler" in options else {})


@pytest.mark.filterwarnings("ignore:an epoch has no batch")  # where drop_last leaves nothing
@settings(max_examples=25)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    batch_size=st.integers(1, 8),
    world_size=st.integers(1, 4),
    drop_last=st.booleans(),
    kind=st.sampled_from(["order", "shuffle", "block"]),
)
def test_ranks_share_every_epoch(tmp_path_factory, lengths, batch_size, world_size, drop_last, kind):
    with fill(tmp_path_factory.mktemp("b"), lengths) as buffer:
        ranks = [
            loader_of(
                buffer, batch_size, rank=rank, world_size=world_size, drop_last=drop_last, **options_of(kind)
            )
            for rank in range(world_size)
        ]  # fmt: skip
        for _ in range(2):
            batches = [values(loader) for loader in ranks]
            counts = [len(of) for of in batches]
            assert counts == [len(loader) for loader in ranks]
            seen = list(chain.from_iterable(chain.from_iterable(batches)))
            if drop_last:
                assert len(set(counts)) == 1
                assert len(set(seen)) == len(seen) == counts[0] * world_size * batch_size
                assert sum(lengths) - len(seen) < world_size * batch_size
            else:
                assert max(counts) - min(counts) <= 1
                assert sorted(seen) == everything(lengths)


PROCESS = """
import json, sys
import torch.distributed as dist
from gym_replay import ReplayBuffer, FieldError, PrioritizedSampler
if __name__ == "__main__":
    folder, store, rank = sys.argv[1], sys.argv[2], int(sys.argv[3])
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    buffer = ReplayBuffer.from_folder(folder, read_only=True)
    common = dict(timestep_level=True, shuffle=True)
    found = {}
    for workers in (0, 2):
        for drop_last in (False, True):
            loader = buffer.dataloader(4, num_workers=workers, drop_last=drop_last, **common)
            found[f"{workers} {drop_last}"] = [[batch["x"].tolist() for batch in loader] for _ in range(2)]
            found[f"seed {workers} {drop_last}"] = loader.seed
    loader = buffer.dataloader(4, shuffle="block", block_size=5, pool_size=15, timestep_level=True)
    iterator = iter(loader)
    first = [next(iterator)["x"].tolist() for _ in range(2)]
    state = loader.state_dict()
    resumed = buffer.dataloader(4, shuffle="block", block_size=5, pool_size=15, timestep_level=True)
    resumed.load_state_dict(state)
    found["block"] = first + [batch["x"].tolist() for batch in resumed]
    found["rest"] = [batch["x"].tolist() for batch in iterator]
    found["alone"] = [b["x"].tolist() for b in buffer.dataloader(4, rank=0, world_size=1, seed=1, **common)]
    try:
        buffer.dataloader(3 + rank, **common)
    except FieldError as error:
        found["error"] = str(error)
    live = buffer.dataloader(2, refresh="epoch", **common)
    found["live"] = [[batch["x"].tolist() for batch in live]]
    dist.barrier()
    if rank == 1:
        writer = ReplayBuffer.from_folder(folder)
        for number in range(8, 12):
            writer.store_episode(x=[1000 * number + t for t in range(6)], weight=1, name="")
    dist.barrier()
    found["live"].append([batch["x"].tolist() for batch in live])
    prioritized = buffer.dataloader(4, sampler=PrioritizedSampler(), timestep_level=True)
    found["prioritized"] = [batch["_samples"].tolist() for batch in prioritized]
    dist.barrier()
    dist.destroy_process_group()
    print(json.dumps(found))
"""


def test_two_gloo_processes(tmp_path):
    fill(tmp_path / "buffer").close()
    script = tmp_path / "work.py"
    script.write_text(PROCESS)
    command = [sys.executable, str(script), str(tmp_path / "buffer"), str(tmp_path / "store")]
    started = [
        subprocess.Popen([*command, str(rank)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    ends = [process.communicate(timeout=240) for process in started]
    assert [process.returncode for process in started] == [0, 0], ends
    first, second = (json.loads(out.splitlines()[-1]) for out, _ in ends)

    def joined(one, other):
        return sorted(chain.from_iterable(one + other))

    for workers in (0, 2):
        for epoch in range(2):
            pair = [of[f"{workers} False"][epoch] for of in (first, second)]
            assert abs(len(pair[0]) - len(pair[1])) <= 1
            assert joined(*pair) == everything()
            pair = [of[f"{workers} True"][epoch] for of in (first, second)]
            assert len(pair[0]) == len(pair[1]) == 6
            assert len(set(joined(*pair))) == 48
        assert first[f"seed {workers} False"] == second[f"seed {workers} False"]
        assert first[f"{workers} False"][0] != first[f"{workers} False"][1]
    assert first["seed 0 False"] != first["seed 2 False"]
    assert joined(first["block"], second["block"]) == everything()
    assert first["block"][2:] == first["rest"]
    assert sorted(chain.from_iterable(first["alone"])) == everything()
    assert first["alone"] == second["alone"]
    assert first["error"] == second["error"]
    assert "batch_size differs between the ranks: [3, 4]" in first["error"]
    assert joined(first["live"][0], second["live"][0]) == everything()
    assert joined(first["live"][1], second["live"][1]) == everything([*LENGTHS, 6, 6, 6, 6])
    assert len(first["prioritized"]) == len(second["prioritized"])
    assert first["prioritized"] != second["prioritized"]


def test_ranks_that_cannot_be(tmp_path):
    with fill(tmp_path) as buffer:
        for options, message in (
            ({"rank": 0}, "both or neither"),
            ({"rank": 2, "world_size": 2}, "rank < world_size"),
            ({"rank": 0, "world_size": 2, "seed": None}, "same seed"),
        ):
            with pytest.raises(FieldError, match=message):
                loader_of(buffer, **options)
        assert len(values(loader_of(buffer, rank=0, world_size=1, seed=None))) == 13
        halves = [values(loader_of(buffer, rank=k, world_size=2, seed=None, shuffle=False)) for k in range(2)]
        assert sorted(chain.from_iterable(halves[0] + halves[1])) == everything()


# --- epochs, checkpoints and workers ---


RESUMED = [(kind, *how) for kind in KINDS for how in METHODS if how[1] in (None, "fork") or kind == "shuffle"]


@pytest.mark.parametrize(("kind", "workers", "method"), RESUMED)
def test_resume_gives_the_very_next_batch(tmp_path, kind, workers, method):
    with fill(tmp_path) as buffer:
        more = {"num_workers": workers, "rank": 1, "world_size": 2, "drop_last": True}
        more |= {"multiprocessing_context": method, "persistent_workers": True} if workers else {}

        def make():
            return loader_of(buffer, 3, **more, **options_of(kind))

        def work(batches, loader):
            for batch in batches:
                if loader.sampler.options.sampler is not None:
                    loader.sampler.options.sampler.update(batch["_samples"], batch["x"] % 7)
                yield batch

        # Batches drawn ahead do not know of the last priorities; all others do not depend on the workers.
        loader = (
            make()
            if "sampler" in KINDS[kind]
            else loader_of(buffer, 3, rank=1, world_size=2, drop_last=True, **options_of(kind))
        )
        expected = [values(work(loader, loader)) for _ in range(3)]
        assert all(len(epoch) == len(loader) >= 7 for epoch in expected)
        if kind != "order":
            assert expected[0] != expected[1] != expected[2]
        for stop in (3,) if method == "spawn" else (3, len(loader)) if workers else (0, 3, len(loader)):
            loader = make()
            loader.set_epoch(0)
            iterator = work(iter(loader), loader)
            assert values(islice(iterator, stop)) == expected[0][:stop]
            state = pickle.loads(pickle.dumps(loader.state_dict()))
            del iterator
            resumed = make()
            resumed.load_state_dict(state)
            assert resumed.state_dict()["batch"] == stop % len(loader)
            found = [values(work(resumed, resumed)) for _ in range(2)]
            if stop == len(loader):
                assert found == expected[1:]
            else:
                assert found == [expected[0][stop:], expected[1]]


def test_a_prioritised_resume_counts_what_was_drawn_ahead(tmp_path):
    """With workers, batches are drawn before the updates that come in between; so they are after a resume."""
    with fill(tmp_path) as buffer:

        def run(stop_at):
            found, state = [], None
            sampler = PrioritizedSampler()
            options = {"num_workers": 2, "prefetch_factor": 3, "multiprocessing_context": "fork"}
            loader = loader_of(buffer, 2, sampler=sampler, **options)
            iterator = iter(loader)
            while len(found) < len(loader):
                if len(found) == stop_at and state is None:
                    state = loader.state_dict()
                    assert len(state["pending"]) == min(6, len(loader) - stop_at)
                    loader = loader_of(buffer, 2, sampler=sampler, **options)
                    loader.load_state_dict(state)
                    iterator = iter(loader)
                batch = next(iterator)
                found.append((batch["_samples"].tolist(), batch["_weights"].tolist()))
                sampler.update(batch["_samples"], batch["_samples"] ** 2)
            return found

        plain = run(None)
        for stop in (1, 5, 20, 24):
            assert run(stop) == plain


@pytest.mark.parametrize("persistent", [False, True])
def test_what_datasets_draw_depends_on_the_epoch_alone(tmp_path, persistent):
    """Here where the crops of an episode begin and end; random goals are drawn in the same way."""
    with fill(tmp_path, [40] * 11) as buffer:

        def run(**options):
            loader = buffer.dataloader(2, crop=(1, 30), shuffle=True, seed=3, return_indices=True, **options)
            return [[torch.column_stack((b["_indices"], b["_lens"])).tolist() for b in loader] for _ in range(3)]

        alone = run()
        assert len({repr(crop) for epoch in alone for batch in epoch for crop in batch}) > 30
        for workers in (1, 2):
            context = {"multiprocessing_context": "fork", "persistent_workers": persistent}
            assert run(num_workers=workers, **context) == alone
        ranks = [run(rank=rank, world_size=2) for rank in range(2)]
        for epoch in range(3):
            assert sorted(ranks[0][epoch] + ranks[1][epoch]) == sorted(alone[epoch])


@pytest.mark.parametrize("workers", [0, 2])
def test_an_iteration_that_is_broken_off(tmp_path, workers):
    """The next iteration is the next epoch, whole, also where workers had read ahead."""
    with fill(tmp_path) as buffer:
        options = {"multiprocessing_context": "fork", "persistent_workers": True} if workers else {}
        for kind in ("shuffle", "block", "weights"):
            expected = loader_of(buffer, **options_of(kind))
            expected.set_epoch(1)
            loader = loader_of(buffer, num_workers=workers, **options, **options_of(kind))
            next(iter(loader))
            assert values(loader) == values(expected)


def test_pickles_hold_no_data(tmp_path):
    sizes = []
    for rows in (10, 10_000):
        with ReplayBuffer(tmp_path / str(rows), fields={"x": ("float", 100)}) as buffer:
            for _ in range(50):
                buffer.store_episode(x=np.ones((rows // 10, 100)))
            for options in ({}, {"refresh": "epoch"}):
                loader = buffer.dataloader(32, n_steps=1, **options) if rows > 10 else buffer.dataloader(32, **options)
                next(iter(loader))
                sizes.append(len(pickle.dumps(loader.dataset)))
    assert max(sizes) < 50 * 150 + 4000


def test_seeds_of_the_same_loader_are_drawn_once(tmp_path):
    with fill(tmp_path) as buffer:
        loader = loader_of(buffer, seed=None)
        first = values(loader)
        loader.set_epoch(0)
        assert values(loader) == first
        assert loader.epoch == 1


@pytest.mark.parametrize("options", [{}, {"refresh": "epoch"}, {"refresh": "batch"}, {"sampler": True}])
def test_a_loader_that_is_let_go_of_is_gone(tmp_path, options):
    """Not only at the next garbage collection: until then its workers would stay."""
    with fill(tmp_path) as buffer:
        options = options if "sampler" not in options else {"sampler": PrioritizedSampler()}
        loader = loader_of(buffer, **options)
        next(iter(loader))
        reference = weakref.ref(loader)
        del loader
        assert reference() is None


# --- with replacement ---


def test_weights_by_index_name_and_buffer(tmp_path):
    with fill(tmp_path / "a") as first, fill(tmp_path / "b", [2, 2]) as second:
        weights = np.array([0, 0, 1, 0, 0, 0, 3, 0])
        found = np.array(list(chain.from_iterable(values(loader_of(first, weights=weights, samples_per_epoch=4000)))))
        assert len(found) == 4000
        assert set((found // 1000).tolist()) == {2, 6}
        assert abs((found // 1000 == 6).mean() - 0.75) < 0.04
        named = loader_of(first, weights="weight", samples_per_epoch=4000)
        found = np.array(list(chain.from_iterable(values(named)))) // 1000
        assert set(found.tolist()) == {1, 2, 4, 5, 7}
        assert abs((found % 3 == 2).mean() - 4 / 7) < 0.04
        both = ConcatReplayBuffer([first, second])
        loader = loader_of(both, buffer_weights=[1, 4], samples_per_epoch=4000, return_indices=True)
        index = np.concatenate([batch["_indices"].numpy() for batch in loader])[:, 0]
        assert abs((index >= 8).mean() - 0.8) < 0.04
        filtered = loader_of(first, weights=weights, filter_meta={"name": {"6", "7"}})
        assert {x // 1000 for x in chain.from_iterable(values(filtered))} == {6}
        assert len(filtered) == len(values(filtered)) == 4
        # Trajectories too: one sample each.
        trajectories = first.dataloader(8, weights=weights, seed=1, samples_per_epoch=400, return_indices=True)
        index = np.concatenate([batch["_index"].numpy() for batch in trajectories])
        assert abs((index == 6).mean() - 0.75) < 0.1


def test_arguments_that_do_not_fit(tmp_path):
    with fill(tmp_path) as buffer:
        for options, message in (
            ({"shuffle": "blocks"}, "'block'"),
            ({"block_size": 4}, "shuffle='block'"),
            ({"shuffle": "block", "block_size": 4, "pool_size": 2}, "pool_size=2"),
            ({"shuffle": "block", "weights": "weight"}, "shuffle='block'"),
            ({"shuffle": "block", "refresh": "epoch"}, "shuffle='block'"),
            ({"samples_per_epoch": 10}, "replacement"),
            ({"weights": [1.0, 2.0]}, "expected 8 weights"),
            ({"weights": "name"}, "one number; there are"),
            ({"weights": "nothing"}, "one number; there are"),
            ({"buffer_weights": [1.0, 2.0]}, "expected 1 weights"),
            ({"weights": np.zeros(8)}, "above 0"),
            ({"sampler": [1, 2]}, "PrioritizedSampler"),
            ({"sampler": PrioritizedSampler(), "weights": "weight"}, "exclude"),
            ({"refresh": "always"}, "refresh"),
            ({"refresh": "batch", "shuffle": False}, "shuffle=True"),
            ({"refresh": "epoch", "weights": np.ones(8)}, "meta field"),
        ):
            with pytest.raises(FieldError, match=message):
                loader_of(buffer, **options)
        with fill(tmp_path / "other") as other, pytest.raises(FieldError, match="make a loader for each"):
            loader_of(ConcatReplayBuffer([buffer, other]), refresh="epoch", sampler=PrioritizedSampler())
        state = loader_of(buffer, weights="weight").state_dict()
        with pytest.raises(FieldError, match="weights"):
            loader_of(buffer, weights=np.arange(8)).load_state_dict(state)
        with pytest.raises(FieldError, match="world_size"):
            loader_of(buffer, world_size=2, rank=0).load_state_dict(loader_of(buffer).state_dict())


def test_default_block_sizes_are_of_the_data(tmp_path):
    with fill(tmp_path, [4000]) as buffer:
        state = loader_of(buffer, shuffle="block").state_dict()
        assert state["block_size"] == 4000 // 16
        assert sorted(chain.from_iterable(values(loader_of(buffer, shuffle="block")))) == list(range(4000))


@pytest.mark.parametrize(
    "options",
    [
        {"timestep_level": True, "return_indices": True},
        {"n_steps": 3, "sequence_fields": ("o",), "discount": 0.9, "normalize": ("o",), "meta": True},
        {"windows": {"offsets": {"o": (-2, 0, 5)}, "boundary": "zero"}, "normalize": ("o",)},
        {"timestep_level": True, "fieldname_map": {"o": "obs"}, "to_named_tuple": ("obs", "reward")},
        {"timestep_level": True, "transform": lambda batch: batch | {"count": len(batch["o"])}},
        {"timestep_level": True, "ragged": True},
        {"trajectories": True},
    ],
)
@pytest.mark.parametrize(
    ("order", "start"),
    [
        ({"shuffle": "block", "block_size": 11, "pool_size": 50}, 0),
        ({"shuffle": "block", "block_size": 11, "pool_size": 50}, 7),
        ({"shuffle": True, "rank": 0, "world_size": 2}, 7),
        ({"shuffle": False}, 0),
        ({"replacement": True, "samples_per_epoch": 150}, 7),
    ],
    ids=("block", "block, later", "shuffle", "in order", "replacement"),
)
def test_batches_that_are_gathered_together_are_those_that_are_gathered_alone(
    tmp_path, monkeypatch, options, order, start
):
    options = dict(options)
    fields = {"o": Field("float32", (3,), state=True), "reward": "float64", "terminated": "bool"}
    if options.pop("ragged", False):
        fields["words"] = Field("int16", ragged=True)
    generator = np.random.default_rng(0)
    with ReplayBuffer(tmp_path, fields=fields, meta_fields={"name": "str"}) as buffer:
        for number, length in enumerate([40, 3, 1, 120, 40, 7, 90]):
            more = {"words": [np.arange(k % 4) for k in range(length)]} if "words" in fields else {}
            values = generator.normal(size=(length + 1, 3)).astype(np.float32)
            ends = np.arange(length) == length - 1
            buffer.store_episode(o=values, reward=np.arange(length), terminated=ends, name=f"episode {number}", **more)
        options.pop("meta", None)
        make = buffer.dataloader
        if (windows := options.pop("windows", None)) is not None:
            make, options = partial(window_loader, buffer), options | windows
        options.pop("trajectories", None)

        def batches(run_bytes):
            small_sizes(monkeypatch, gathered_run=run_bytes)
            loader = make(8, **options, **order, seed=3)
            state = loader.state_dict()
            if start < len(loader):
                loader.load_state_dict(state | {"batch": start})
            return list(loader)

        alone, together = batches(0), batches(1 << 12)
        assert len(alone) == len(together) > 0
        for one, other in zip(alone, together, strict=True):
            pairs = [(one[k], other[k]) for k in one] if isinstance(one, dict) else list(zip(one, other, strict=True))
            for mine, theirs in pairs:
                if not isinstance(mine, torch.Tensor):
                    assert mine == theirs
                    continue
                assert mine.dtype == theirs.dtype
                torch.testing.assert_close(mine, theirs, rtol=0, atol=0)
                theirs.zero_()  # which no other batch sees


@pytest.mark.parametrize("workers", [0, 2])
def test_a_prioritised_loader_learns(tmp_path, workers):
    with fill(tmp_path) as buffer:
        sampler = PrioritizedSampler(alpha=1.0, beta=1.0)
        names = ("x", "_samples", "_weights")
        options = {"num_workers": workers, "multiprocessing_context": "fork" if workers else None}
        loader = loader_of(buffer, 7, sampler=sampler, to_named_tuple=names, samples_per_epoch=700, **options)
        truth = np.array(everything())
        for batch in loader:
            assert batch._fields == ("x", "samples", "weights")
            assert (truth[batch.samples] == batch.x.numpy()).all()
            assert batch.weights.dtype == torch.float32
            sampler.update(batch.samples, batch.x == 2003)
        counts = np.bincount(np.concatenate([batch.samples for batch in loader]), minlength=49)
        assert counts.argmax() == truth.tolist().index(2003)
        assert counts.max() > 600


# --- live buffers ---


@pytest.mark.parametrize(("workers", "method"), METHODS)
def test_each_epoch_has_what_was_live_at_its_start(tmp_path, workers, method):
    with fill(tmp_path) as buffer:
        more = {"num_workers": workers}
        more |= {"multiprocessing_context": method, "persistent_workers": True} if workers else {}
        loader = loader_of(buffer, refresh="epoch", **more)
        lengths = list(LENGTHS)
        for _ in range(3):
            iterator = iter(loader)
            found = values([next(iterator)])
            append(buffer, len(lengths), 6)  # seen in the next epoch
            found += values(iterator)
            assert sorted(chain.from_iterable(found)) == everything(lengths)
            lengths.append(6)
        buffer.delete([1, 4])
        expected = [x for x in everything(lengths) if x // 1000 not in (1, 4)]
        assert sorted(chain.from_iterable(values(loader))) == expected
        assert len(loader) == -(-len(expected) // 4)


@pytest.mark.parametrize("workers", [0, 2])
def test_each_batch_is_of_the_newest_snapshot(tmp_path, workers):
    with fill(tmp_path, [5] * 6, circular=True, max_episodes=6) as buffer:
        options = {"multiprocessing_context": "fork", "persistent_workers": True} if workers else {}
        loader = loader_of(buffer, 50, refresh="batch", samples_per_epoch=2000, num_workers=workers, **options)
        for number, batch in enumerate(chain(loader, loader), 6):
            found = batch["x"] // 1000
            assert len(found) == 50
            if workers == 0:
                assert set(found.tolist()) == set(range(number - 6, number))
            else:
                # Workers read ahead by 4 batches; what leaves in between is not served, or only just left.
                assert number - 12 <= found.min() <= found.max() < number
            append(buffer, number, 5)
        assert number == 6 + 79


@pytest.mark.parametrize("refresh", ["epoch", "batch"])
@pytest.mark.parametrize("workers", [0, 2])
def test_priorities_follow_a_live_buffer(tmp_path, refresh, workers):
    with fill(tmp_path, [5] * 6, circular=True, max_episodes=6) as buffer:
        sampler = PrioritizedSampler(alpha=1.0)
        options = {"multiprocessing_context": "fork", "persistent_workers": True} if workers else {}
        loader = loader_of(
            buffer, 10, refresh=refresh, sampler=sampler, samples_per_epoch=100, num_workers=workers, **options
        )
        known, number = {}, 6
        for _ in range(6):
            for batch in loader:
                for name, x in zip(batch["_samples"].tolist(), batch["x"].tolist(), strict=True):
                    if name >= 0:
                        assert known.setdefault(name, x) == x  # a number is a sample for good
                sampler.update(batch["_samples"], batch["x"] % 1000 + 0.5)
                if number % 3:
                    append(buffer, number, 5)
                number += 1 if number % 3 else 0
                if not number % 3:
                    append(buffer, number, 5)
                    number += 1
        assert len(known) > 30
        assert all(name % 5 == x % 1000 for name, x in known.items())


def test_a_live_epoch_resumes_with_its_episodes(tmp_path):
    with fill(tmp_path) as buffer:
        loader = loader_of(buffer, refresh="epoch")
        expected = values(loader_of(buffer))
        iterator = iter(loader)
        assert values(islice(iterator, 3)) == expected[:3]
        state = loader.state_dict()
        append(buffer, 8, 6)
        resumed = loader_of(buffer, refresh="epoch")
        resumed.load_state_dict(state)
        assert values(resumed) == expected[3:]
        assert sorted(chain.from_iterable(values(resumed))) == everything([*LENGTHS, 6])
        resumed.load_state_dict(state)
        buffer.delete([0])
        with pytest.warns(UserWarning, match="episodes have gone"):
            list(resumed)


@pytest.mark.parametrize("refresh", [None, "epoch"])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_resume_normalizes_as_before(tmp_path, refresh, workers):
    """With the statistics of the interrupted run, whatever the buffer holds when it goes on."""
    with fill(tmp_path) as buffer:
        options = {"refresh": refresh, "normalize": ("x",), "dtype": torch.float64}
        raw = np.array(everything(), np.float64)
        first = loader_of(buffer, **options)
        batches = iter(first)
        for _ in range(3):
            next(batches)
        state = json.loads(json.dumps(first.state_dict()))
        expected = np.concatenate(values(batches))
        if refresh is None:
            buffer.update([0], x=(7 * np.arange(LENGTHS[0]) + 10**6)[None])
        else:
            append(buffer, 10**6, 50)
        more = {"num_workers": workers, "persistent_workers": workers > 0}
        later = loader_of(buffer, **options, **(more | {"multiprocessing_context": "fork"} if workers else {}))
        assert abs(np.concatenate(values(later))).max() < 1e3  # persistent workers have the statistics of now
        later.load_state_dict(state)
        found = np.concatenate(values(later))
        if refresh is not None:  # an update changes values, which are then normalized in the same way
            np.testing.assert_array_equal(found, expected)
        scaled = np.concatenate((raw, 7 * np.arange(LENGTHS[0]) + 10**6))
        scaled = (scaled - raw.mean()) / raw.std()
        assert np.isclose(found[:, None], scaled, atol=1e-9).any(axis=1).all()
        with pytest.raises(FieldError, match="normalize"):
            loader_of(buffer, refresh=refresh).load_state_dict(state)


@pytest.mark.parametrize("workers", [0, 2])
def test_transform_sees_what_was_drawn_by_priority(tmp_path, workers):
    """A transform that leaves rows out takes their numbers and weights along."""
    with fill(tmp_path) as buffer:
        sampler = PrioritizedSampler()
        options = {"num_workers": workers, "multiprocessing_context": "fork" if workers else None}
        loader = loader_of(buffer, 8, sampler=sampler, transform=keep_large, **options)
        numbers = everything()
        for batch in loader:
            assert len(batch["x"]) == len(batch["_samples"]) == len(batch["_weights"]) < 8
            assert [numbers[sample] for sample in batch["_samples"].tolist()] == batch["x"].tolist()
            sampler.update(batch["_samples"], batch["_weights"])


def keep_large(batch):
    kept = batch["x"] >= 2000
    kept[:1] = False
    return {name: values[kept] for name, values in batch.items() if not isinstance(values, list)}


@pytest.mark.parametrize("workers", [0, 2])
def test_all_episodes_of_a_snapshot_may_leave(tmp_path, workers):
    """While an epoch is read: the batches go on, with live ones in their place."""
    with fill(tmp_path, [5] * 3, circular=True, max_episodes=3) as buffer:
        options = {"multiprocessing_context": "fork", "persistent_workers": True} if workers else {}
        loader = loader_of(buffer, 2, refresh="epoch", num_workers=workers, **options)
        for epoch in range(2):
            iterator = iter(loader)
            next(iterator)
            for number in range(3 + 5 * epoch, 8 + 5 * epoch):
                append(buffer, number, 5)
            batches = values(iterator)
            assert len(batches) == 7
            assert max(map(max, batches)) // 1000 in range(5 + 5 * epoch, 8 + 5 * epoch)
        buffer.delete([0, 1, 2])
        with pytest.raises(EmptyBufferError):
            list(loader)


def test_a_refreshing_loader_leaves_the_buffer_as_it_was(tmp_path):
    with fill(tmp_path) as writer:
        reader = ReplayBuffer.from_folder(tmp_path, read_only=True)
        loader = loader_of(reader, refresh="epoch")
        append(writer, 8, 6)
        assert sorted(chain.from_iterable(values(loader))) == everything([*LENGTHS, 6])
        assert len(reader) == 8


@pytest.mark.parametrize("shuffle", [True, "block"])
def test_two_iterators_of_a_loader_are_two_epochs(tmp_path, shuffle):
    with fill(tmp_path) as buffer:
        options = {"timestep_level": True, "shuffle": shuffle, "seed": 4, "fields": ("x",)}
        loader, again = (buffer.dataloader(8, **options) for _ in range(2))
        first, second = [batch["x"].tolist() for batch in again], [batch["x"].tolist() for batch in again]
        assert first != second
        together = [(one["x"].tolist(), other["x"].tolist()) for one, other in zip(loader, loader, strict=True)]
        assert together == list(zip(first, second, strict=True))
        copied = copy.copy(loader)
        next(iter(copied))
        assert copied.state_dict()["batch"] == 1
        assert loader.state_dict()["batch"] == 0
