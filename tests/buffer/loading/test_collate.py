"""How batches are delivered: dtype, layout, scale, transform, device."""

import pickle

import numpy as np
import pytest
import torch

from gym_replay import Field, FieldError, ReplayBuffer, statistics

FIELDS = {
    "state": Field("float32", (2,), state=True),
    "camera": Field("uint8", (6, 5, 3), state=True),
    "depth": Field("float32", (6, 5, 1)),
    "stack": Field("uint8", (6, 5, 2)),
    "action": "int",
    "reward": "float64",
}


@pytest.fixture
def buffer(tmp_path):
    generator = np.random.default_rng(0)
    with ReplayBuffer(tmp_path / "b", fields=FIELDS, meta_fields={"goal": ("float64", 2)}) as made:
        for length in (3, 5, 1):
            made.store_episode(
                state=generator.standard_normal((length + 1, 2)) * 3 + 100,
                camera=generator.integers(0, 256, (length + 1, 6, 5, 3), np.uint8),
                depth=generator.standard_normal((length, 6, 5, 1)),
                stack=generator.integers(0, 256, (length, 6, 5, 2), np.uint8),
                action=np.arange(length) * 7,
                reward=generator.standard_normal(length) + 1e8,
                goal=[1, 2],
            )
        yield made


def whole(buffer, **options):
    return next(iter(buffer.dataloader(100, **options)))


def column(buffer, name):
    return np.concatenate([episode[name][: len(episode)] for episode in buffer])


def assert_owned(batch):
    for name, value in batch.items():
        assert value.is_contiguous(), name
        assert value.untyped_storage().nbytes() == value.nbytes, name
        value += 1 if value.dtype != torch.bool else True


def test_dtypes(buffer):
    wanted = {
        None: (torch.float32, torch.float32),
        "stored": (torch.float64, torch.float32),
        torch.float64: (torch.float64, torch.float64),
        torch.float16: (torch.float16, torch.float16),
        torch.bfloat16: (torch.bfloat16, torch.bfloat16),
    }
    for dtype, (reward, state) in wanted.items():
        batch = whole(buffer, timestep_level=True, dtype=dtype)
        assert (batch["reward"].dtype, batch["state"].dtype) == (reward, state)
        assert (batch["action"].dtype, batch["camera"].dtype) == (torch.int64, torch.uint8)
        assert batch["goal"].dtype == reward
        if dtype is not torch.float16:  # which has no 1e8
            expected = torch.from_numpy(column(buffer, "reward")).to(reward)
            assert torch.equal(batch["reward"], expected)
        before = column(buffer, "state").copy()
        assert_owned(batch)
        np.testing.assert_array_equal(column(buffer, "state"), before)


def test_images_by_the_rule(buffer):
    plain = whole(buffer, n_steps=2, sequence_fields=("camera",), image_layout=None)
    turned = whole(buffer, n_steps=2, sequence_fields=("camera",), image_layout="CHW")
    for name, value in plain.items():
        # Neither float images nor those of two channels are turned.
        expected = value.movedim(-1, -3) if "camera" in name else value
        assert torch.equal(turned[name], expected), name
    assert turned["seq_camera"].shape[1:] == (2, 3, 6, 5)
    assert_owned(turned)


def test_images_by_name(buffer):
    batch = whole(buffer, timestep_level=True, image_layout={"depth": "CHW", "stack": "CHW", "camera": "HWC"})
    shapes = {name: batch[name].shape[1:] for name in ("depth", "stack", "camera")}
    assert shapes == {"depth": (1, 6, 5), "stack": (2, 6, 5), "camera": (6, 5, 3)}
    for wrong in ("WHC", {"camera": "x"}, {"state": "CHW"}):
        with pytest.raises(FieldError, match="image_layout"):
            buffer.dataloader(2, timestep_level=True, image_layout=wrong)


def test_normalized_fields(buffer):
    batch = whole(buffer, n_steps=1, normalize=("state", "reward", "action", "camera"))
    found = statistics(buffer)
    for name in ("state", "reward", "action", "camera"):
        expected = (column(buffer, name).astype(np.float64) - found[name].mean) / found[name].std
        np.testing.assert_allclose(batch[name], expected, rtol=2e-4, atol=2e-5, err_msg=name)
        assert batch[name].dtype == torch.float32
    after = np.concatenate([episode["state"][1:] for episode in buffer]).astype(np.float64)
    expected = (after - found["state"].mean) / found["state"].std
    np.testing.assert_allclose(batch["next_state"], expected, rtol=2e-4, atol=2e-5)
    # The state of row T counts, the default of the action there does not.
    assert found["state"].count.tolist() == [12, 12]
    assert found["action"].count == 9


def test_normalized_by_statistics(buffer):
    found = statistics(buffer)
    batch = whole(buffer, timestep_level=True, normalize=found)
    assert batch["action"].dtype == torch.int64  # integers only where they are named
    assert batch["camera"].dtype == torch.uint8
    np.testing.assert_allclose(batch["state"].std(dim=0, correction=0), [1, 1], atol=0.3)
    only = whole(buffer, timestep_level=True, normalize=found.only("reward"), dtype="stored")
    np.testing.assert_array_equal(only["state"], column(buffer, "state"))
    assert only["reward"].dtype == torch.float64
    np.testing.assert_allclose(only["reward"].mean(), 0, atol=1e-7)


def test_padding_stays_zero(buffer):
    batch = whole(buffer, normalize=("state", "camera"), next_fields=("state",), image_layout="CHW", return_mask=True)
    for name in ("state", "next_state", "camera"):
        assert not batch[name][~batch["_mask"]].any(), name
        assert batch[name][batch["_mask"]].all(dim=-1).any()
    n_step = whole(
        buffer, n_steps=3, sequence_fields=("state",), normalize=("state",), fieldname_map={"seq_state": "chunk"}
    )
    inside = torch.arange(3) < n_step["n_step_lens"][:, None]
    assert not n_step["chunk"][~inside].any()
    assert n_step["chunk"][inside].any(dim=-1).all()


def test_statistics_must_fit(buffer, tmp_path):
    with ReplayBuffer(tmp_path / "other", fields={"state": ("float32", 3), "x": "float"}) as other:
        other.store_episode(state=np.ones((2, 3)), x=np.ones(2))
        found = statistics(other)
        with pytest.raises(FieldError, match="unknown field 'x'"):
            buffer.dataloader(2, normalize=found)
        with pytest.raises(FieldError, match=r"statistics of shape \(2,\), got \(3,\)"):
            buffer.dataloader(2, normalize=found.only("state"))
        with pytest.raises(FieldError, match="positive standard deviations"):
            other.dataloader(2, normalize=statistics(other, std_floor=0))
    with pytest.raises(FieldError, match="write"):
        buffer.dataloader(2, normalize="state")
    with pytest.raises(FieldError, match="unknown field 'nothing'"):
        buffer.dataloader(2, normalize=("nothing",))


def double(batch):
    return {"twice": 2 * batch["action"], "worker": torch.utils.data.get_worker_info() is not None}


@pytest.mark.parametrize("workers", [0, 1])
def test_transform_runs_where_the_batch_is_made(buffer, workers):
    options = {"multiprocessing_context": "fork"} if workers else {}
    loader = buffer.dataloader(
        4, timestep_level=True, transform=double, normalize=("state",), num_workers=workers, **options
    )
    batches = list(loader)
    np.testing.assert_array_equal(torch.cat([batch["twice"] for batch in batches]), 2 * column(buffer, "action"))
    assert {batch["worker"] for batch in batches} == {bool(workers)}
    with pytest.raises(FieldError, match="expected it to return a dict, got NoneType"):
        next(iter(buffer.dataloader(4, transform=lambda batch: None)))
    with pytest.raises(FieldError, match="transform=3"):
        buffer.dataloader(4, transform=3)


def test_a_dataset_that_has_delivered_is_sent_to_another_process(buffer):
    dataset = buffer.dataset(timestep_level=True, dtype=torch.bfloat16, normalize=("state",), image_layout="CHW")
    expected = dataset[np.arange(3)]
    found = pickle.loads(pickle.dumps(dataset))[np.arange(3)]
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_devices(buffer):
    batches = list(buffer.dataloader(4, timestep_level=True, device="meta"))
    assert [batch["state"].device.type for batch in batches] == ["meta"] * 3
    assert all(batch["state"].device.type == "cpu" for batch in buffer.dataloader(4, device="cpu"))
    with pytest.raises(FieldError, match="device='nowhere'"):
        buffer.dataloader(4, device="nowhere")
    nested = {"a": {"b": torch.ones(2)}, "c": [torch.ones(1), "x"], "d": ["word"], "e": (torch.ones(3),)}
    moved = next(iter(buffer.dataloader(4, device="meta", transform=lambda batch: nested)))
    assert moved["a"]["b"].is_meta
    assert moved["c"][0].is_meta
    assert moved["c"][1] == "x"
    assert moved["d"] == ["word"]
    assert moved["e"][0].is_meta
    assert next(iter(buffer.dataloader(4, device="meta", to_named_tuple=("state",)))).state.is_meta


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_copies_ahead_are_whole(tmp_path):
    with ReplayBuffer(tmp_path, fields={"x": Field("float32", (1 << 20,))}) as buffer:
        for k in range(30):
            buffer.store_episode(x=np.full((1, 1 << 20), k))
        options = {"timestep_level": True, "device": "cuda", "transform": lambda batch: {**batch, "name": ["a"]}}
        for k, batch in enumerate(buffer.dataloader(1, **options)):
            assert batch["x"].is_cuda
            batch["x"] *= 2
            assert bool((batch["x"] == 2 * k).all())
            assert batch["name"] == ["a"]


def test_loading_alone_draws_from_torch_as_any_dataloader_does(buffer):
    states = []
    for workers in (0, 0):
        torch.manual_seed(5)
        iter(buffer.dataloader(4, num_workers=workers, seed=1))
        states.append(torch.rand(1).item())
    torch.manual_seed(5)
    iter(torch.utils.data.DataLoader(range(3)))
    assert states == [torch.rand(1).item()] * 2


def test_batches_that_were_gathered_together_keep_no_more_than_themselves(buffer):
    batches = list(buffer.dataloader(2, timestep_level=True))
    for batch in batches:
        assert_owned({name: value for name, value in batch.items() if name != "goal"})
    assert [len(batch["action"]) for batch in batches] == [2, 2, 2, 2, 1]


def test_a_batch_prints_its_entries(buffer, tmp_path):
    batch = next(iter(buffer.dataloader(4, timestep_level=True, fields=("state", "action"))))
    assert repr(batch) == "Batch(\n  state: float32 (4, 2)\n  action: int64 (4,)\n  goal: float32 (4, 2)\n)"
    moved = next(iter(buffer.dataloader(4, timestep_level=True, fields=("action",), device="meta")))
    assert "action: int64 (4,) on meta" in repr(moved)
    assert "action: int64 (3, 5)" in repr(buffer.get_all_data(["action"]))
    doubled = torch.utils._pytree.tree_map(lambda one: one * 2, batch)
    assert repr(doubled) == repr(batch)
    assert torch.equal(doubled["action"], 2 * batch["action"])
