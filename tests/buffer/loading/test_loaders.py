"""The loaders, against a slow and obvious reference that builds one sample at a time."""

from itertools import chain

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gym_replay import (
    ConcatReplayBuffer,
    EmptyBufferError,
    EpisodeEvictedError,
    Field,
    FieldError,
    ReplayBuffer,
    n_step_loader,
    timestep_loader,
    trajectory_loader,
)

FIELDS = {
    "observation": Field("float32", (3,), state=True),
    "pixels": Field("uint8", (2, 2), state=True),
    "action": "int",
    "reward": "float64",
}


def make_episode(number, length, *, final=True, state=True):
    """Values from which episode, step and field can be told."""
    steps = np.arange(length + 1)
    base = 1000 * number + steps
    episode = {
        "observation": (base[:, None] + np.array([0.0, 0.25, 0.5])).astype(np.float32),
        "pixels": ((base[:, None, None] + np.arange(4).reshape(2, 2)) % 256).astype(np.uint8),
        "action": base[:-1].astype(np.int64) * 3,
        "reward": base[:-1] / 7,
    }
    if not final:
        episode["observation"] = episode["observation"][:-1]
        episode["pixels"] = episode["pixels"][:-1]
    return episode


def fill(folder, lengths, *, final=True, fields=FIELDS, first=0, **options):
    buffer = ReplayBuffer(folder, fields=fields, meta_fields={"task": "int", "goal": ("float", 2)}, **options)
    for number, length in enumerate(lengths, first):
        has_final = final if isinstance(final, bool) else final[number - first]
        buffer.store_episode(
            **make_episode(number, length, final=has_final), task=number % 3, goal=[number, number + 0.5]
        )
    return buffer


def collect(loader):
    batches = list(loader)
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


def reference_n_step(episodes, n):
    """Yields every n-step sample, one at a time."""
    for episode in episodes:
        rows = len(episode["observation"])
        for t in range(rows - 1):
            m = min(n, rows - 1 - t)
            chunk = np.zeros(n, np.int64)
            chunk[:m] = episode["action"][t : t + m]
            yield {
                "observation": episode["observation"][t],
                "next_observation": episode["observation"][t + m],
                "next_pixels": episode["pixels"][t + m],
                "action": episode["action"][t],
                "seq_action": chunk,
                "n_step_lens": m,
                "task": episode.meta["task"],
            }


@settings(max_examples=40)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=8),
    finals=st.lists(st.booleans(), min_size=8, max_size=8),
    n=st.integers(1, 12),
    batch_size=st.integers(1, 7),
    circular=st.booleans(),
)
def test_n_step_equals_the_reference(tmp_path_factory, lengths, finals, n, batch_size, circular):
    options = {"circular": True, "max_episodes": 3} if circular else {}
    with fill(tmp_path_factory.mktemp("b"), lengths, final=finals, **options) as buffer:
        expected = list(reference_n_step(list(buffer), n))
        if not expected:
            with pytest.raises(EmptyBufferError):
                n_step_loader(buffer, batch_size, n)
            return
        found = collect(n_step_loader(buffer, batch_size, n, sequence_fields=("action",)))
        assert len(found["action"]) == len(expected)
        for name in expected[0]:
            np.testing.assert_array_equal(found[name], np.array([sample[name] for sample in expected]), err_msg=name)


@settings(max_examples=30)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=8),
    batch_size=st.integers(1, 7),
    seed=st.integers(0, 1000),
    shuffle=st.booleans(),
)
def test_timesteps_are_every_transition_once(tmp_path_factory, lengths, batch_size, seed, shuffle):
    with fill(tmp_path_factory.mktemp("b"), lengths) as buffer:
        loader = timestep_loader(buffer, batch_size, shuffle=shuffle, seed=seed, return_indices=True)
        found = collect(loader)
        assert len(loader) == -(-sum(lengths) // batch_size)
        pairs = [tuple(pair) for pair in found["_indices"].tolist()]
        everything = [(e, t) for e, length in enumerate(lengths) for t in range(length)]
        assert sorted(pairs) == everything
        if not shuffle:
            assert pairs == everything
        for position, (e, t) in enumerate(pairs):
            episode = buffer.episode(e)
            for name in ("observation", "pixels", "action"):
                np.testing.assert_array_equal(found[name][position], episode[name][t])
            assert found["task"][position] == episode.meta["task"]


@settings(max_examples=30)
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=8), batch_size=st.integers(1, 4))
def test_trajectories_are_padded_with_zeros(tmp_path_factory, lengths, batch_size):
    with fill(tmp_path_factory.mktemp("b"), lengths) as buffer:
        at = 0
        loader = trajectory_loader(
            buffer, batch_size, return_mask=True, return_indices=True, next_fields=("observation",)
        )
        for batch in loader:
            size = len(batch["_lens"])
            width = max(lengths[at : at + size])
            for k in range(size):
                length = lengths[at + k]
                episode = buffer.episode(at + k)
                assert batch["_lens"][k] == length
                assert batch["_index"][k] == at + k
                assert batch["_mask"][k].tolist() == [t < length for t in range(width)]
                np.testing.assert_array_equal(batch["observation"][k, :length], episode["observation"][:-1])
                np.testing.assert_array_equal(batch["next_observation"][k, :length], episode["observation"][1:])
                np.testing.assert_array_equal(batch["action"][k, :length], episode["action"])
                assert not batch["observation"][k, length:].any()
                assert not batch["action"][k, length:].any()
            at += size
        assert at == len(lengths)


def test_one_step_samples_by_schema(tmp_path):
    with fill(tmp_path / "state", [5, 1]) as buffer:
        assert len(buffer.dataset(n_steps=1)) == 6
    with ReplayBuffer(tmp_path / "plain", fields={"x": "float"}) as buffer:
        buffer.store_episode(x=np.arange(5.0))
        assert len(buffer.dataset(n_steps=1)) == 4


def test_float64_arrives_in_the_default_dtype(tmp_path):
    with fill(tmp_path, [4]) as buffer:
        assert next(iter(timestep_loader(buffer, 2)))["reward"].dtype == torch.float32
        assert next(iter(timestep_loader(buffer, 2, dtype="stored")))["reward"].dtype == torch.float64
        half = next(iter(timestep_loader(buffer, 2, dtype=torch.float16)))
        assert half["reward"].dtype == half["observation"].dtype == torch.float16
        assert half["pixels"].dtype == torch.uint8
        torch.set_default_dtype(torch.float64)
        try:
            batch = next(iter(timestep_loader(buffer, 2)))
        finally:
            torch.set_default_dtype(torch.float32)
        assert batch["reward"].dtype == torch.float64
        assert batch["observation"].dtype == torch.float32


def test_tensors_own_their_memory(tmp_path):
    with fill(tmp_path, [4]) as buffer:
        for loader in (timestep_loader(buffer, 4), trajectory_loader(buffer, 1), n_step_loader(buffer, 4)):
            batch = next(iter(loader))
            batch["observation"].zero_()
            assert batch["observation"].is_contiguous()
        np.testing.assert_array_equal(buffer.episode(0)["observation"], make_episode(0, 4)["observation"])


def test_filters(tmp_path):
    with fill(tmp_path, [3, 4, 5, 6]) as buffer:
        assert len(buffer.dataset(timestep_level=True, filter_meta={"task": 1})) == 4
        assert len(buffer.dataset(timestep_level=True, filter_meta={"task": {0, 1}})) == 13
        assert len(buffer.dataset(filter_meta={"goal": [2, 2.5]})) == 1
        assert len(buffer.dataset(filter_meta={"goal": lambda goal: goal[:, 0] > 1})) == 2
        dataset = buffer.dataset(timestep_level=True, filter_fields={"action": [3, 3003, 10]}, return_indices=True)
        assert len(dataset) == 2
        assert dataset[np.arange(2)]["_indices"].tolist() == [[0, 1], [1, 1]]
        assert len(buffer.dataset(n_steps=2, filter_fields={"action": lambda a: a >= 3000})) == 15
        with pytest.raises(EmptyBufferError, match="task"):
            buffer.dataset(filter_meta={"task": 9})
        with pytest.raises(FieldError, match="nothing"):
            buffer.dataset(filter_meta={"nothing": 9})
        with pytest.raises(FieldError, match="only scalar fields"):
            buffer.dataset(timestep_level=True, filter_fields={"observation": 1})
        with pytest.raises(FieldError, match="filter_meta"):
            buffer.dataset(filter_fields={"action": 1})


def test_filtered_samples_are_the_right_ones(tmp_path):
    with fill(tmp_path, [3, 1, 5]) as buffer:
        found = collect(
            n_step_loader(buffer, 2, 3, filter_fields={"action": lambda a: a % 2 == 0}, return_indices=True)
        )
        expected = [[e, t] for e, length in enumerate([3, 1, 5]) for t in range(length) if (1000 * e + t) % 2 == 0]
        assert found["_indices"].tolist() == expected
        np.testing.assert_array_equal(found["action"], [3 * (1000 * e + t) for e, t in expected])


@pytest.mark.parametrize("workers", [0, 2])
def test_each_iteration_is_the_next_epoch_and_resumes_exactly(tmp_path, workers):
    with fill(tmp_path, [7, 9, 4]) as buffer:

        def make():
            return timestep_loader(
                buffer, 3, shuffle=True, seed=5, fields=("action",), num_workers=workers,
                multiprocessing_context="fork" if workers else None,
            )  # fmt: skip

        epochs = [[batch["action"].tolist() for batch in loader] for loader in [make()] * 2]
        assert epochs[0] != epochs[1]
        assert sorted(chain(*epochs[0])) == sorted(chain(*epochs[1]))
        loader = make()
        iterator = iter(loader)
        seen = [next(iterator)["action"].tolist() for _ in range(3)]
        state = loader.state_dict()
        assert seen == epochs[0][:3]
        resumed = make()
        resumed.load_state_dict(state)
        assert [batch["action"].tolist() for batch in resumed] == epochs[0][3:]
        assert [batch["action"].tolist() for batch in resumed] == epochs[1]
        fresh = make()
        fresh.set_epoch(1)
        assert [batch["action"].tolist() for batch in fresh] == epochs[1]
        finished = make()
        list(finished)
        assert (finished.state_dict()["epoch"], finished.state_dict()["batch"]) == (1, 0)
        with pytest.raises(FieldError, match="batch_size"):
            timestep_loader(buffer, 4, shuffle=True).load_state_dict(state)


def test_workers_give_the_same_batches(tmp_path):
    with fill(tmp_path / "a", [7, 9, 4]) as first, fill(tmp_path / "b", [5, 2], first=3) as second:
        for buffer in (first, ConcatReplayBuffer([first, second])):
            options = {"shuffle": True, "seed": 3, "fieldname_map": {"seq_action": "chunk"}}
            options |= {"sequence_fields": ("action",), "to_named_tuple": ("chunk", "next_observation", "task")}
            alone = list(n_step_loader(buffer, 4, 2, **options))
            shared = list(n_step_loader(buffer, 4, 2, num_workers=2, multiprocessing_context="fork", **options))
            assert len(alone) == len(shared) > 0
            for one, other in zip(alone, shared, strict=True):
                assert all(torch.equal(x, y) for x, y in zip(one, other, strict=True))


def test_seed_is_drawn_from_torch(tmp_path):
    with fill(tmp_path, [30]) as buffer:
        orders = []
        for _ in range(2):
            torch.manual_seed(11)
            orders.append(collect(timestep_loader(buffer, 7, shuffle=True, fields=("action",)))["action"].tolist())
        assert orders[0] == orders[1]
        assert orders[0] != collect(timestep_loader(buffer, 7, shuffle=True, fields=("action",)))["action"].tolist()


def test_a_dataset_of_ones_own(tmp_path):
    with fill(tmp_path, [3, 2]) as buffer:
        dataset = buffer.dataset(timestep_level=True)
        samples = list(dataset)
        assert len(samples) == 5
        assert samples[3]["action"] == 3000
        batch = next(iter(torch.utils.data.DataLoader(dataset, batch_size=5)))
        np.testing.assert_array_equal(batch["action"], [0, 3, 6, 3000, 3003])
        trajectory = buffer.dataset()[1]
        assert trajectory["observation"].shape == (2, 3)
        np.testing.assert_array_equal(dataset[[4, 1]]["action"], [3003, 3])
        assert dataset[np.empty(0, np.int64)]["action"].shape == (0,)
        for outside in (5, -6, [0, 5], np.array([-1]), [10**6]):
            with pytest.raises(IndexError, match="there are 5"):
                dataset[outside]


def test_names(tmp_path):
    with fill(tmp_path, [3, 2]) as buffer:
        batch = next(iter(timestep_loader(buffer, 2, to_named_tuple=("action", "_indices"), return_indices=True)))
        assert batch._fields == ("action", "indices")
        assert list(next(iter(timestep_loader(buffer, 2, fields=("reward",))))) == ["reward", "task", "goal"]
        for options, message in (
            ({"fields": ("nothing",)}, "nothing"),
            ({"fields": "reward"}, "sequence"),
            ({"fieldname_map": {"nothing": "x"}}, "nothing"),
            ({"fieldname_map": {"action": "reward"}}, "reward"),
            ({"to_named_tuple": ("action", "nothing")}, "nothing"),
            ({"to_named_tuple": ("action", "action")}, "action"),
            ({"next_fields": ("observation",)}, "n_step"),
            ({"return_mask": True}, "trajectory"),
            ({"n_steps": 2}, "n_step"),
            ({"collate_fn": list}, "collate_fn"),
            ({"dtype": torch.int64}, "dtype"),
        ):
            with pytest.raises(FieldError, match=message):
                timestep_loader(buffer, 2, **options)
        with pytest.raises(TypeError, match="nonsense"):
            timestep_loader(buffer, 2, nonsense=1)
        for options, meant in (
            ({"shufle": True}, "'shuffle'"),
            ({"timestep_level": True, "retrun_indices": True}, "'return_indices'"),
            ({"length": 3, "ofsets": {"reward": (0, 1)}}, "'offsets'"),
            ({"crop": 3, "burnin": 1}, "'burn_in'"),
            ({"num_worker": 2}, "'num_workers'"),
            ({"n_steps": 2, "dicount": 0.9}, "'discount'"),
        ):
            with pytest.raises(TypeError, match=f"did you mean {meant}"):
                buffer.dataloader(2, **options)
        with pytest.raises(TypeError, match="did you mean 'normalize'"):
            buffer.dataset(normalise=("reward",))
        for fields in (("reward",), ()):
            with pytest.raises(FieldError, match="is current_fields here"):
                n_step_loader(buffer, 2, fields=fields)
        with pytest.raises(FieldError, match="timestep_level and n_steps"):
            buffer.dataloader(2, timestep_level=True, n_steps=2)


def test_slice_by_episode_len(tmp_path):
    with fill(tmp_path, [3, 2], max_timesteps=9) as buffer:
        batch = next(iter(trajectory_loader(buffer, 2, slice_by_episode_len=False)))
        assert batch["action"].shape == (2, 9)
        assert "_lens" not in next(iter(trajectory_loader(buffer, 2, return_episode_lens=False)))
        with pytest.raises(FieldError, match="return_episode_lens"):
            trajectory_loader(buffer, 2, slice_by_episode_len=False, return_episode_lens=False)


def test_an_empty_buffer(tmp_path):
    with ReplayBuffer(tmp_path, fields=FIELDS) as buffer:
        for options in ({}, {"timestep_level": True}, {"n_steps": 2}):
            with pytest.raises(EmptyBufferError, match="empty"):
                buffer.dataloader(2, **options)


def test_a_loader_keeps_to_the_episodes_of_its_making(tmp_path):
    with fill(tmp_path, [3, 2]) as buffer:
        loader = timestep_loader(buffer, 5, fields=("action",))
        buffer.store_episode(**make_episode(2, 4))
        assert len(collect(loader)["action"]) == 5
        assert len(collect(timestep_loader(buffer, 5))["action"]) == 9


@pytest.mark.parametrize("reader", ["same", "other"])
def test_evicted_samples_are_replaced_by_live_ones(tmp_path, reader):
    with fill(tmp_path, [4] * 5, circular=True, max_episodes=5) as buffer:
        source = buffer if reader == "same" else ReplayBuffer.from_folder(tmp_path, read_only=True)
        loader = n_step_loader(source, 20, 1, return_indices=True)
        for number in (5, 6):
            buffer.store_episode(**make_episode(number, 4))
        batch = next(iter(loader))
        assert len(batch["action"]) == 20
        assert set((batch["action"] // 3 // 1000).tolist()) == {2, 3, 4}
        np.testing.assert_array_equal(batch["observation"][:, 0] + 1, batch["next_observation"][:, 0])
        for number in (7, 8, 9):
            buffer.store_episode(**make_episode(number, 4))
        with pytest.raises(EpisodeEvictedError, match="new loader"):
            next(iter(loader))


def test_a_concatenation_equals_its_parts(tmp_path):
    with (
        fill(tmp_path / "a", [3, 6]) as first,
        fill(tmp_path / "b", [2, 4, 1], first=2) as second,
        fill(tmp_path / "c", [3, 6, 2, 4, 1]) as whole,
        ConcatReplayBuffer([first.folder, str(second.folder)]) as both,
    ):
        assert both.num_episodes == len(both) == 5
        assert both.num_steps == 16
        assert both.episode_lens.tolist() == [3, 6, 2, 4, 1]
        for options in ({"timestep_level": True}, {"n_steps": 3, "sequence_fields": ("reward",)}, {}):
            for shuffle in (False, True):
                one = list(both.dataloader(3, shuffle=shuffle, seed=1, return_indices=True, **options))
                other = list(whole.dataloader(3, shuffle=shuffle, seed=1, return_indices=True, **options))
                for x, y in zip(one, other, strict=True):
                    assert all(torch.equal(x[name], y[name]) for name in y)
        for one, other in zip(both, whole, strict=True):
            np.testing.assert_array_equal(one["observation"], other["observation"])
            assert one.meta["task"] == other.meta["task"]
        np.testing.assert_array_equal(both.get_all_data()["reward"], whole.get_all_data()["reward"])


def test_a_concatenation_refuses_other_schemas(tmp_path):
    from gym_replay import ConfigMismatchError

    with (
        fill(tmp_path / "a", [3]),
        ReplayBuffer(tmp_path / "b", fields={"x": "float"}),
        pytest.raises(ConfigMismatchError, match="observation"),
    ):
        ConcatReplayBuffer([tmp_path / "a", tmp_path / "b"])


def test_get_all_data(tmp_path):
    with fill(tmp_path, [3, 5]) as buffer:
        data = buffer.get_all_data()
        assert data["observation"].shape == (2, 5, 3)
        assert data["episode_lens"].tolist() == [3, 5]
        assert data["task"].tolist() == [0, 1]
        assert not data["reward"][0, 3:].any()
        assert set(buffer.get_all_data(fields=("action",))) == {"action"}
        assert set(buffer.get_all_data(meta_fields=("task",))) == {"task"}
        with pytest.raises(FieldError, match="nothing"):
            buffer.get_all_data(fields=("nothing",))
