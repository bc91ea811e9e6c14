"""What each option of torch's DataLoader does to the order, to exactly-once and to resuming."""

from __future__ import annotations

import inspect
import multiprocessing
import re
import time
import warnings
from itertools import chain, islice
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, SequentialSampler

from gym_replay import Field, FieldError, PrioritizedSampler, ReplayBuffer

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning"),
]
LENGTHS = [7, 1, 9, 4, 12, 3, 8, 5]
EVERYTHING = [1000 * number + t for number, length in enumerate(LENGTHS) for t in range(length)]
FORK = {"num_workers": 2, "multiprocessing_context": "fork"}


def fill(folder):
    fields = {"x": "int", "o": Field("float32", state=True)}
    buffer = ReplayBuffer(folder, fields=fields, meta_fields={"name": "str"})
    for number, length in enumerate(LENGTHS):
        buffer.store_episode(x=1000 * number + np.arange(length), o=np.ones(length + 1), name=f"{number}")
    return buffer


def loader_of(buffer, **options):
    return buffer.dataloader(4, **({"timestep_level": True, "shuffle": True, "seed": 3} | options))


def values(batches):
    return [batch["x"].tolist() for batch in batches]


def scramble(worker):
    """What a careless ``worker_init_fn`` does."""
    np.random.seed(worker)  # noqa: NPY002
    torch.manual_seed(worker)
    dataset = torch.utils.data.get_worker_info().dataset
    if hasattr(dataset, "set_epoch"):
        dataset.set_epoch(17 + worker)


# --- what is handed on keeps every promise ---

KEPT = {
    "num_workers": [{"num_workers": 0}, {"num_workers": 1} | {"multiprocessing_context": "fork"}, FORK],
    "prefetch_factor": [FORK | {"prefetch_factor": 1}, FORK | {"prefetch_factor": 9}],
    "persistent_workers": [{"persistent_workers": False}, FORK | {"persistent_workers": True}],
    "pin_memory": [{"pin_memory": True}, FORK | {"pin_memory": True}],
    "pin_memory_device": [{"pin_memory": True, "pin_memory_device": "cuda"}, {"pin_memory_device": "cuda"}],
    "timeout": [{"timeout": 0}, FORK | {"timeout": 60}],
    "worker_init_fn": [{"worker_init_fn": scramble}, FORK | {"worker_init_fn": scramble}],
    "multiprocessing_context": [FORK, FORK | {"multiprocessing_context": multiprocessing.get_context("fork")}],
    "generator": [{"generator": torch.Generator()}, FORK | {"generator": torch.Generator()}],
    "in_order": [{"in_order": True}, FORK | {"in_order": True}],
    "drop_last": [{"drop_last": False}, FORK | {"drop_last": False}],
    "shuffle": [{"shuffle": True}, FORK | {"shuffle": np.True_}],
    "sampler": [{"sampler": None}, FORK | {"sampler": None}],
    "batch_size": [{}],
    "collate_fn": [{"collate_fn": None}],
    "batch_sampler": [FORK | {"batch_sampler": None}],
    "dataset": [{}],
    "snapshot_every_n_steps": [{"snapshot_every_n_steps": None}],
}
CASES = [(name, k) for name, several in KEPT.items() for k in range(len(several))]


@pytest.mark.parametrize(("name", "case"), CASES)
def test_order_exactly_once_and_resume_are_kept(tmp_path, name, case):
    options = KEPT[name][case]
    with fill(tmp_path) as buffer:
        plain = loader_of(buffer)
        expected = [values(plain) for _ in range(2)]
        assert [sorted(chain.from_iterable(epoch)) for epoch in expected] == [EVERYTHING] * 2
        loader = loader_of(buffer, **options)
        assert len(loader) == len(plain)
        assert values(loader) == expected[0]
        iterator = iter(loader)
        found = values(islice(iterator, 5))
        state = loader.state_dict()
        del iterator, loader
        for later in (loader_of(buffer, **options), plain):
            later.load_state_dict(state)
            assert found + values(later) == expected[1]
        del later


def test_every_option_of_torch_is_decided():
    """Also those that a later torch may have: nobody hands them on unread."""
    torchs = set(inspect.signature(DataLoader.__init__).parameters) - {"self"}
    assert torchs <= KEPT.keys()
    text = Path(__file__, "../../../../docs/semantics.md").resolve().read_text(encoding="utf-8")
    section = text.split("## Options of torch's DataLoader\n")[1].split("\n## ")[0]
    described = re.findall(r"`(\w+)`", " ".join(re.findall(r"^\| (.*?) \|", section, re.MULTILINE)))
    assert sorted(KEPT) == sorted(described)


def test_crops_and_goals_do_not_depend_on_workers(tmp_path):
    with fill(tmp_path) as buffer:
        options = {"crop": (1, 5), "seed": 1, "return_indices": True}
        alone = [batch["_indices"].tolist() for batch in buffer.dataloader(2, **options)]
        for more in KEPT["worker_init_fn"] + KEPT["generator"] + KEPT["prefetch_factor"]:
            assert [batch["_indices"].tolist() for batch in buffer.dataloader(2, **options, **more)] == alone


# --- single options ---


def test_a_generator_draws_the_seed_where_there_is_none(tmp_path):
    with fill(tmp_path) as buffer:
        seeds = []
        for number in (1, 1, 2):
            generator = torch.Generator().manual_seed(number)
            seeds.append(loader_of(buffer, seed=None, generator=generator).seed)
        assert seeds[0] == seeds[1] != seeds[2]


def test_pinned_tensors_are_the_same(tmp_path):
    with fill(tmp_path) as buffer:
        pinned = loader_of(buffer, pin_memory=True, device="cpu", to_named_tuple=("x", "name"))
        for one, other in zip(loader_of(buffer), pinned, strict=True):
            assert torch.equal(one["x"], other.x)
            assert one["name"] == other.name


def wait_once(batch):
    """As a disk that hangs, one time."""
    mark = Path(batch["name"][0])
    if not mark.exists():
        mark.touch()
        time.sleep(3)
    return batch


@pytest.mark.parametrize("persistent", [False, True])
def test_an_epoch_goes_on_after_a_timeout(tmp_path, persistent):
    with ReplayBuffer(tmp_path / "b", fields={"x": "int"}, meta_fields={"name": "str"}) as buffer:
        for number in range(8):
            buffer.store_episode(x=[number] * 4, name=str(tmp_path / f"mark {number // 4}"))
        (tmp_path / "mark 0").touch()
        options = {"num_workers": 1, "multiprocessing_context": "fork", "persistent_workers": persistent}
        loader = loader_of(buffer, shuffle=False, transform=wait_once, timeout=2, **options)
        found = []
        with pytest.raises(RuntimeError, match="timed out"):
            found.extend(values([batch])[0] for batch in loader)
        assert found == [[number] * 4 for number in range(len(found))]
        assert len(found) <= 4
        loader.load_state_dict(loader.state_dict())
        assert found + values(loader) == [[number] * 4 for number in range(8)]


@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("sampler", [None, PrioritizedSampler])
def test_iterations_that_overlap_keep_to_their_epochs(tmp_path, persistent, sampler):
    with fill(tmp_path) as buffer:

        def make(**options):
            chosen = {} if sampler is None else {"sampler": sampler(), "shuffle": False}
            return loader_of(buffer, **options, **chosen)

        plain = make()
        expected = [values(plain) for _ in range(3)]
        loader = make(**FORK, persistent_workers=persistent)
        together = [(one["x"].tolist(), other["x"].tolist()) for one, other in zip(loader, loader, strict=True)]
        assert together == list(zip(*expected[:2], strict=True))
        # An iteration that is kept, but left for another one, goes on where it was.
        loader = make(**FORK, persistent_workers=persistent)
        first = iter(loader)
        start = values(islice(first, 2))
        assert values(loader) == expected[1]
        assert start + values(first) == expected[0]
        if not persistent:
            return
        workers = loader._iterator._workers
        assert values(loader) == expected[2]
        assert loader._iterator._workers is workers  # of iterations that do not overlap, the next one has them


# --- what is refused, and what to do instead ---


REFUSED = [
    ({"in_order": False}, "prefetch_factor"),
    (FORK | {"in_order": False}, "prefetch_factor"),
    ({"collate_fn": list}, "transform="),
    ({"batch_sampler": BatchSampler(SequentialSampler(range(49)), 4, False)}, "batch_size"),
    ({"sampler": SequentialSampler(range(49))}, "weights"),
    ({"sampler": DistributedSampler(range(49), 2, 0)}, "DistributedSampler"),
    ({"sampler": [3, 2, 1]}, "PrioritizedSampler"),
    ({"snapshot_every_n_steps": 5}, "exact after every batch"),
    ({"drop_last": "no"}, "True or False"),
    ({"shuffle": "no"}, "'block'"),
    ({"persistent_workers": "no"}, "True or False"),
    ({"pin_memory": 1}, "True or False"),
    ({"persistent_workers": True}, "add num_workers"),
    ({"timeout": 3}, "add num_workers"),
    ({"prefetch_factor": 3}, "add num_workers"),
    ({"multiprocessing_context": "fork"}, "add num_workers"),
    (FORK | {"prefetch_factor": 0}, "from 1 on"),
    (FORK | {"prefetch_factor": 1.5}, "from 1 on"),
    ({"num_workers": -1}, "from 0 on"),
    ({"num_workers": "2"}, "from 0 on"),
    ({"num_workers": 1.5}, "from 0 on"),
    ({"generator": 3}, "torch.Generator"),
    ({"generator": np.random.default_rng(0)}, "torch.Generator"),
]


@pytest.mark.parametrize(("options", "remedy"), REFUSED)
def test_what_would_break_a_promise_is_refused(tmp_path, options, remedy):
    with fill(tmp_path) as buffer, pytest.raises(FieldError, match=re.escape(remedy)) as caught:
        loader_of(buffer, **options)
    assert any(name in str(caught.value) for name in options)


def test_unknown_options_are_refused(tmp_path):
    with fill(tmp_path) as buffer:
        for name in ("num_worker", "pin_memmory", "nonsense"):
            with pytest.raises(TypeError, match=name):
                loader_of(buffer, **{name: 1})


def test_they_cannot_be_set_later_either(tmp_path):
    with fill(tmp_path) as buffer:
        loader = loader_of(buffer)
        for name, value in (("in_order", False), ("collate_fn", list)):
            with pytest.raises(FieldError, match=name):
                setattr(loader, name, value)
        for name in ("batch_sampler", "sampler", "dataset", "drop_last"):
            with pytest.raises(ValueError, match=name):
                setattr(loader, name, None)
        loader.worker_init_fn = scramble  # as Lightning does
        assert sorted(chain.from_iterable(values(loader))) == EVERYTHING


def test_nothing_is_warned_about_what_is_not_asked_for(tmp_path):
    with fill(tmp_path) as buffer, warnings.catch_warnings():
        warnings.simplefilter("error")
        assert sorted(chain.from_iterable(values(loader_of(buffer)))) == EVERYTHING
