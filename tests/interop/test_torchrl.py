"""TorchRL's replay buffers over a buffer's own files."""

import copy
import pickle

import numpy as np
import pytest
import torch
from interop_helpers import by_hand, cartpole, sights, transitions

from gym_replay import ConcatReplayBuffer, FieldError, ReadOnlyError, select, to_torchrl

data = pytest.importorskip("torchrl.data")
pytestmark = pytest.mark.filterwarnings("ignore")


def test_every_transition_as_its_data_format_has_it(tmp_path):
    with by_hand(tmp_path / "a", [3, 1, 4, 2], [True, True, False, True]) as buffer:
        replay = to_torchrl(buffer)
        expected = list(transitions(buffer))
        assert isinstance(replay.storage, data.LazyMemmapStorage)
        assert len(replay) == len(expected) == 9
        whole = replay[:]
    pairs = {"observation": "observation", ("next", "observation"): "next", "action": "action", "episode": "episode"}
    for key, name in pairs.items():
        np.testing.assert_array_equal(whole[key], np.array([row[name] for row in expected]))
    for key in ("reward", "terminated", "truncated"):
        assert whole["next", key].shape == (9, 1)
        np.testing.assert_array_equal(whole["next", key][:, 0], [row[key] for row in expected])
    np.testing.assert_array_equal(
        whole["next", "done"][:, 0], [row["terminated"] or row["truncated"] for row in expected]
    )
    assert whole["observation"].dtype == whole["next", "reward"].dtype == torch.float32
    assert whole["next", "done"].dtype == torch.bool


@pytest.mark.parametrize("index", [0, -1, [2, 0], range(1, 4), slice(None, None, 2), torch.tensor([[1, 2], [3, 0]])])
def test_any_index(tmp_path, index):
    with by_hand(tmp_path / "a", [3, 4], [True, True]) as buffer:
        storage = to_torchrl(buffer).storage
        rows = torch.arange(7)[list(index) if isinstance(index, range) else index]
        got = storage.get(index)
        assert got.batch_size == rows.shape
        whole = storage.get(slice(None))
        assert (got["next", "observation"] == whole["next", "observation"][rows]).all()


def test_a_slice_sampler_draws_whole_stretches_of_one_episode(tmp_path):
    with by_hand(tmp_path / "a", [9, 2, 12, 5], [True] * 4) as buffer:
        samplers = [None, data.SliceSampler(slice_len=4, traj_key="episode", cache_values=True)]
        for sampler in samplers:
            options = {"slice_len": 4} if sampler is None else {"sampler": sampler}
            replay = to_torchrl(buffer, 4000, **options)  # enough that every start comes
            drawn = replay.sample().reshape(-1, 4)
            assert (drawn["episode"] == drawn["episode"][:, :1]).all()
            assert set(drawn["episode"].flatten().tolist()) == {0, 2, 3}
            first = drawn["observation"][..., 0]
            assert (first.diff(dim=1) == 1).all()
            assert (drawn["next", "observation"][..., 0] == first + 1).all()
            starts = {(int(e), int(x) % 100) for e, x in zip(drawn["episode"][:, 0], first[:, 0], strict=True)}
            assert starts == {(e, t) for e, n in ((0, 9), (2, 12), (3, 5)) for t in range(n - 3)}


def test_its_tensors_are_the_files(tmp_path):
    """What the file holds is what the tensors show, and what is written to them does not reach the file."""
    with by_hand(tmp_path / "a", [5], [True]) as buffer:
        storage = to_torchrl(buffer).storage
        path = tmp_path / "a" / "steps" / "observation.npy"
        rows = np.load(path, mmap_mode="r+")
        rows[2] = (7.0, 8.0)
        rows.flush()
        assert storage.get(2)["observation"].tolist() == [7.0, 8.0]
        assert storage.get(1)["next", "observation"].tolist() == [7.0, 8.0]
        storage.columns["observation"][0] = -1
        assert np.load(path)[0].tolist() == [0.0, 0.0]
        assert storage.columns.batch_size == torch.Size([6])


def test_it_is_read_only(tmp_path):
    with by_hand(tmp_path / "a", [5], [True]) as buffer:
        replay = to_torchrl(buffer, 2)
        with pytest.raises(ReadOnlyError):
            replay.extend(copy.deepcopy(replay.sample()))
        with pytest.raises(ReadOnlyError):
            replay.empty()
        assert len(replay) == 5


def test_it_goes_to_another_process_as_a_path(tmp_path):
    with by_hand(tmp_path / "a", [50, 70], [True, True]) as buffer:
        storage = to_torchrl(buffer).storage
        assert len(pickle.dumps(storage.columns.get("observation").numpy())) > 1800
        packed = pickle.dumps(storage)
        again = pickle.loads(packed)
        assert (again.get(slice(None))["observation"] == storage.get(slice(None))["observation"]).all()


def test_a_loss_module_takes_a_step(tmp_path):
    from tensordict.nn import TensorDictModule
    from torchrl.modules import QValueActor
    from torchrl.objectives import DQNLoss

    with cartpole(tmp_path / "a") as buffer:
        replay = to_torchrl(buffer, 32)
        net = torch.nn.Linear(4, 2)
        actor = QValueActor(TensorDictModule(net, ["observation"], ["action_value"]), action_space="categorical")
        loss = DQNLoss(actor, action_space="categorical", delay_value=False)
        value = loss(replay.sample())["loss"]
        value.backward()
        assert torch.isfinite(value)
        assert net.weight.grad is None or torch.isfinite(net.weight.grad).all()
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in loss.parameters())


def test_nested_spaces_are_nested(tmp_path):
    with sights(tmp_path / "a") as buffer:
        drawn = to_torchrl(buffer, 6).sample()
        assert drawn["observation", "camera", "top"].shape == (6, 32, 40, 3)
        assert drawn["next", "observation", "state"].shape == (6, 4)


def test_what_cannot_be_shared_is_refused(tmp_path):
    with (
        by_hand(tmp_path / "a", [3], [True]) as one,
        by_hand(tmp_path / "b", [3], [True], circular=True, max_episodes=2) as ring,
    ):
        for buffer in (ConcatReplayBuffer([one, select(one, tmp_path / "c", progress=False)]), ring):
            with pytest.raises(FieldError, match="one buffer that is not circular"):
                to_torchrl(buffer)
        with pytest.raises(FieldError, match="exclude one another"):
            to_torchrl(one, slice_len=2, sampler=data.RandomSampler())
