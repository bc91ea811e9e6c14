"""ReplayBuffer, storing: which values fit a field, what is left out, and the limits."""

import numpy as np
import pytest
import torch
from buffer_helpers import add, contents, make, make_plain

from gym_replay import BufferFullError, EpisodeTooLongError, Field, FieldError, ReplayBuffer, check_buffer

VECTORS = {
    "list": [1, 2.5, -3],
    "tuple": (1, 2.5, -3),
    "float64": np.array([1, 2.5, -3]),
    "float16": np.array([1, 2.5, -3], np.float16),
    "big-endian": np.array([1, 2.5, -3], ">f4"),
    "every other": np.array([1, 9, 2.5, 9, -3, 9], np.float32)[::2],
    "list of scalars": [np.float32(1), 2.5, torch.tensor(-3.0)],
    "tensor": torch.tensor([1, 2.5, -3], dtype=torch.float64),
    "tensor with grad": torch.tensor([1, 2.5, -3], requires_grad=True),
    "result of a graph": torch.tensor([0.5, 1.25, -1.5], requires_grad=True) * 2,
}

NUMBERS = {
    "float": 2.0,
    "int": 2,
    "float32": np.float32(2),
    "int8": np.int8(2),
    "array of none": np.array(2.0),
    "array of one": np.array([2.0]),
    "list of one": [2.0],
    "tensor": torch.tensor(2.0),
    "tensor of one with grad": torch.tensor([2.0], requires_grad=True),
}


@pytest.mark.parametrize("vector", VECTORS.values(), ids=VECTORS)
def test_a_vector_of_any_kind_is_stored(tmp_path, vector):
    with make(tmp_path) as buffer:
        with buffer.one_episode(score=vector[:2]):
            buffer.store(state=vector)
            buffer.store_final(state=vector)
        with buffer.batched_episode(2):
            buffer.store_batch(state=[vector, vector])
        for state in (buffer.episode(0)["state"], buffer.episode(1)["state"]):
            assert state.dtype == np.float32
            assert all(row.tolist() == [1, 2.5, -3] for row in state)
        assert buffer.episode(0).meta["score"].tolist() == [1, 2.5]
        buffer.update([0], score=[vector[1:]])
        assert buffer.episode(0).meta["score"].tolist() == [2.5, -3]


@pytest.mark.parametrize("number", NUMBERS.values(), ids=NUMBERS)
def test_a_number_of_any_kind_is_stored(tmp_path, number):
    with make(tmp_path) as buffer:
        with buffer.one_episode():
            buffer.store(reward=number)
        assert buffer.episode(0)["reward"].tolist() == [2.0]
        assert buffer.episode(0)["reward"].dtype == np.float64


@pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor])
def test_a_whole_episode_of_any_kind_is_stored(tmp_path, kind):
    with make(tmp_path) as buffer:
        buffer.store_episode(
            state=kind([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]), action=kind([7]), done=kind([True]), seed=3
        )
        episode = buffer.episode(-1)
        assert episode["state"].tolist() == [[1, 2, 3], [4, 5, 6]]
        assert episode["action"].tolist() == [7]
        assert episode["done"].tolist() == [True]
        assert episode["reward"].tolist() == [0.5]
        assert episode.meta["seed"] == 3
        assert episode.has_final


def test_a_tensor_of_a_whole_episode_with_grad_is_stored(tmp_path):
    with make(tmp_path) as buffer:
        buffer.store_episode(state=torch.ones(3, 3, requires_grad=True) * 2, reward=torch.zeros(2, requires_grad=True))
        assert buffer.episode(0)["state"].tolist() == [[2, 2, 2]] * 3


def test_a_number_and_an_array_of_one_number_fit_one_another(tmp_path):
    with ReplayBuffer(tmp_path, fields={"a": "float", "b": ("float", 1)}, meta_fields={"m": ("int", 1)}) as buffer:
        with buffer.one_episode(m=5):
            buffer.store(a=[1.0], b=2.0)
            buffer.store(a=1.0, b=[2.0])
        buffer.store_episode(a=np.ones((2, 1)), b=np.full(2, 2.0), m=[5])
        with buffer.batched_episode(1, m=[[5]]):
            buffer.store_batch(a=[[1.0]], b=[2.0])
            buffer.store_batch(a=[1.0], b=[[2.0]])
        for episode in buffer:
            assert episode["a"].tolist() == [1, 1]
            assert episode["b"].tolist() == [[2], [2]]
            assert episode.meta["m"].tolist() == [5]


def test_the_caller_may_reuse_its_arrays(tmp_path):
    state = np.zeros(3, np.float32)
    with make(tmp_path) as buffer:
        with buffer.one_episode():
            for t in range(3):
                state[:] = t
                buffer.store(state=state)
            state[:] = 3
            buffer.store_final(state=state)
            state[:] = 9
        block = np.zeros((2, 3), np.float32)
        with buffer.batched_episode(2):
            for t in range(3):
                block[:] = t
                buffer.store_batch(state=block)
            block[:] = 9
        assert buffer.episode(0)["state"][:, 0].tolist() == [0, 1, 2, 3]
        assert buffer.episode(2)["state"][:, 0].tolist() == [0, 1, 2]


BAD_STEPS = {
    "shape": {"state": np.zeros(4, np.float32)},
    "scalar for a vector": {"state": 1.0},
    "vector for a scalar": {"reward": [1.0, 2.0]},
    "two axes": {"state": np.zeros((1, 3))},
    "float for an integer": {"action": 1.5},
    "whole float for an integer": {"action": 1.0},
    "too large": {"action": 1 << 63},
    "two for a boolean": {"done": 2},
    "string": {"reward": "1"},
    "none": {"reward": None},
    "object": {"reward": object()},
    "complex": {"reward": 1j},
    "masked": {"state": np.ma.masked_array([1.0, 2.0, 3.0])},
    "ragged": {"state": [[1.0], [1.0, 2.0]]},
    "unknown": {"velocity": 1.0},
    "meta field": {"seed": 1},
}


@pytest.mark.parametrize("bad", BAD_STEPS.values(), ids=BAD_STEPS)
def test_what_does_not_fit_is_an_error_and_stores_nothing(tmp_path, bad):
    (name,) = bad
    with make(tmp_path) as buffer:
        with buffer.one_episode(seed=1):
            buffer.store(state=[1, 1, 1], action=1)
            good = {"action": 5} if name != "action" else {"done": True}
            for values in ({**good, **bad}, {**bad, **good}):
                with pytest.raises(FieldError, match=f"field '{name}'") as caught:
                    buffer.store(**values)
                assert isinstance(caught.value, ValueError)
            buffer.store(state=[2, 2, 2], action=2)
        episode = buffer.episode(0)
        assert episode["action"].tolist() == [1, 2]
        assert episode["state"][:, 0].tolist() == [1, 2]
        if name != "seed" and not isinstance(bad[name], np.ma.MaskedArray):
            rows = {key: [value] for key, value in bad.items()}
            with pytest.raises(FieldError, match=f"'{name}'"):
                buffer.store_episode(**{"action": [1], **rows})
        with buffer.batched_episode(1):
            buffer.store_batch(action=[3])
            rows = {key: value[None] if isinstance(value, np.ndarray) else [value] for key, value in bad.items()}
            with pytest.raises(FieldError, match=f"'{name}'"):
                buffer.store_batch(**{"done": [True], **rows})
        assert len(buffer) == 2
        assert buffer.episode(1)["action"].tolist() == [3]


def test_a_final_observation_that_does_not_fit_can_be_given_again(tmp_path):
    with make(tmp_path) as buffer:
        with buffer.one_episode():
            buffer.store(state=[1, 1, 1])
            for wrong in ({"state": [1, 2]}, {}, {"state": [1, 2, 3], "reward": 1.0}, {"nothing": 1}):
                with pytest.raises(FieldError):
                    buffer.store_final(**wrong)
            buffer.store_final(state=[2, 2, 2])
        assert buffer.episode(0)["state"].tolist() == [[1, 1, 1], [2, 2, 2]]
        with make_plain(tmp_path / "no state") as other, other.one_episode():
            other.store(x=1)
            with pytest.raises(FieldError, match="no state field"):
                other.store_final()


def test_meta_values_that_do_not_fit_are_refused_at_once(tmp_path):
    with make(tmp_path) as buffer:
        for wrong in ({"seed": 1.5}, {"score": [1, 2, 3]}, {"unknown": 1}, {"action": 1}):
            with pytest.raises(FieldError):
                buffer.one_episode(**wrong)
            with pytest.raises(FieldError):
                buffer.batched_episode(2, **wrong)
        for wrong in ({"seed": 1.5}, {"score": [1, 2, 3]}, {"unknown": 1}):
            with pytest.raises(FieldError):
                buffer.store_episode(action=[1], **wrong)
        assert len(buffer) == 0


def test_what_is_left_out_takes_its_default(tmp_path):
    fields = {
        "x": ("float", (2,), 1.5),
        "y": ("int", (), -3),
        "z": "bool",
        "s": Field("float", (2,), [4, 5], state=True),
    }
    with ReplayBuffer(tmp_path, fields=fields, meta_fields={"m": ("float", (), float("nan"))}) as buffer:
        with buffer.one_episode():
            buffer.store()
            buffer.store(y=1)
        buffer.store_episode(y=[-3, 1])
        with buffer.batched_episode(1):
            buffer.store_batch()
            buffer.store_batch(y=[1])
        for episode in buffer:
            assert episode["x"].tolist() == [[1.5, 1.5]] * 2
            assert episode["y"].tolist() == [-3, 1]
            assert episode["z"].tolist() == [False, False]
            assert episode["s"].tolist() == [[4, 5]] * 2
            assert np.isnan(episode.meta["m"])
            assert not episode.has_final


def test_the_row_behind_the_last_transition_holds_defaults(tmp_path):
    with make(tmp_path) as buffer:
        buffer.store_episode(state=np.ones((3, 3)), action=[1, 2], reward=[1.0, 2.0])
    assert np.load(tmp_path / "steps/action.npy").tolist() == [1, 2, -1]
    assert np.load(tmp_path / "steps/reward.npy").tolist() == [1, 2, 0.5]


@pytest.mark.parametrize(
    "arrays",
    [
        {},
        {"seed": 3},
        {"action": []},
        {"action": 5},
        {"action": [1, 2], "reward": [1.0]},
        {"action": [1, 2], "state": np.zeros((4, 3))},
        {"action": [1, 2], "state": np.zeros((1, 3))},
        {"state": np.zeros((1, 3))},
        {"state": np.zeros((0, 3))},
    ],
)
def test_a_whole_episode_whose_lengths_differ_is_refused(tmp_path, arrays):
    with make(tmp_path) as buffer:
        with pytest.raises(FieldError):
            buffer.store_episode(**arrays)
        assert len(buffer) == 0


def test_all_state_fields_have_the_last_observation_or_none(tmp_path):
    fields = {"a": Field("float", state=True), "b": Field("float", state=True), "x": "int"}
    with ReplayBuffer(tmp_path, fields=fields) as buffer:
        for arrays in ({"a": np.zeros(3), "b": np.zeros(2)}, {"a": np.zeros(3)}):
            with pytest.raises(FieldError):
                buffer.store_episode(x=[1, 2], **arrays)
        assert len(buffer) == 0


@pytest.mark.parametrize("circular", [False, True])
@pytest.mark.parametrize("state", [False, True])
def test_fields_of_size_zero(tmp_path, circular, state):
    fields = {"none": Field("float", (0,), state=state), "x": "int64"}
    options = {"max_episodes": 9, "circular": circular, "fields": fields, "meta_fields": {"empty": ("uint8", (2, 0))}}
    with ReplayBuffer(tmp_path, **options) as buffer:
        buffer.store_episode(none=np.zeros((3, 0)), x=[1, 2, 3], empty=np.zeros((2, 0), np.uint8))
        buffer.store_episode(x=[4])
        with buffer.one_episode(empty=np.zeros((2, 0), np.uint8)) as final:
            buffer.store(none=[], x=5)
            buffer.store(x=6)
            final["empty"] = np.zeros((2, 0), np.uint8)
        with buffer.batched_episode(2):
            buffer.store_batch(none=np.zeros((2, 0)), x=[7, 8])
        buffer.add_field("later", ("float", (3, 0)))
        buffer.add_field("given", ("float", 0), [np.zeros((n, 0)) for n in (3, 1, 2, 1, 1)], derived=False)
        buffer.store_episode(x=[9, 9], later=np.zeros((2, 3, 0)))
        buffer.update(0, empty=np.zeros((2, 0), np.uint8), none=np.zeros((3, 0)))
        for open_buffer in (buffer, ReplayBuffer.from_folder(tmp_path, read_only=True)):
            assert contents(open_buffer) == [[1, 2, 3], [4], [5, 6], [7], [8], [9, 9]]
            for episode in open_buffer:
                assert episode["none"].shape == (len(episode), 0)
                assert episode["later"].shape == (len(episode), 3, 0)
                assert episode["given"].shape == (len(episode), 0)
                assert episode.meta["empty"].shape == (2, 0)
            assert open_buffer.get_all_data()["none"].shape == (6, 3, 0)
        open_buffer.close()
    report = check_buffer(tmp_path, progress=False)
    assert report.ok, str(report)
    with ReplayBuffer(tmp_path, **{**options, "fields": None}) as buffer:
        buffer.store_episode(x=[1])
        assert buffer.episode(-1)["given"].shape == (1, 0)


def test_a_buffer_of_nothing_but_a_field_of_size_zero(tmp_path):
    with ReplayBuffer(tmp_path, fields={"none": ("float", 0)}) as buffer:
        with buffer.one_episode():
            for _ in range(3):
                buffer.store()
        buffer.store_episode(none=np.zeros((2, 0)))
        assert [episode["none"].shape for episode in buffer] == [(3, 0), (2, 0)]
    assert check_buffer(tmp_path, progress=False).ok


def test_one_step_too_many_leaves_the_episode_as_it_was(tmp_path):
    with make_plain(tmp_path, max_timesteps=3) as buffer:
        with buffer.one_episode():
            for t in range(3):
                buffer.store(x=t)
            for _ in range(2):
                with pytest.raises(EpisodeTooLongError, match="max_timesteps=3") as caught:
                    buffer.store(x=9)
                assert isinstance(caught.value, ValueError)
        with pytest.raises(EpisodeTooLongError):
            buffer.store_episode(x=np.zeros(4, int))
        with buffer.batched_episode(2):
            for t in range(3):
                buffer.store_batch(x=[t, t])
            with pytest.raises(EpisodeTooLongError):
                buffer.store_batch(x=[9, 9])
        assert contents(buffer) == [[0, 1, 2]] * 3


def test_a_full_buffer_refuses_and_goes_on_after_a_delete(tmp_path):
    with make_plain(tmp_path, max_episodes=2) as buffer:
        add(buffer, 2, 3)
        for refused in (
            lambda: buffer.one_episode().__enter__(),
            lambda: buffer.batched_episode(1).__enter__(),
            lambda: buffer.store_episode(x=[1]),
        ):
            with pytest.raises(BufferFullError, match="max_episodes=2") as caught:
                refused()
            assert isinstance(caught.value, ValueError)
        buffer.delete(0)
        add(buffer, 1)
        assert contents(buffer) == [[100, 101, 102], [100]]
        with pytest.raises(BufferFullError):
            buffer.batched_episode(3).__enter__()


def test_max_steps_of_a_linear_buffer(tmp_path):
    with make_plain(tmp_path, max_steps=5) as buffer:
        add(buffer, 3)
        with pytest.raises(BufferFullError, match="max_steps=5"):
            buffer.store_episode(x=[1, 2, 3])
        with buffer.one_episode():
            buffer.store(x=1)
            buffer.store(x=2)
            with pytest.raises(BufferFullError, match="max_steps=5"):
                buffer.store(x=3)
        assert contents(buffer) == [[0, 1, 2], [1, 2]]
        with pytest.raises(BufferFullError):
            buffer.one_episode().__enter__()


def test_an_episode_longer_than_the_ring_is_refused(tmp_path):
    with make_plain(tmp_path, max_steps=5, circular=True) as buffer:
        add(buffer, 3)
        with pytest.raises(EpisodeTooLongError):
            buffer.store_episode(x=np.arange(6))
        with buffer.one_episode():
            for t in range(5):
                buffer.store(x=t)
            with pytest.raises(EpisodeTooLongError, match="max_steps=5"):
                buffer.store(x=5)
        assert contents(buffer) == [[0, 1, 2, 3, 4]]


def test_a_buffer_has_hundreds_of_fields(tmp_path):
    names = [f"field_with_a_long_name_{index}" for index in range(400)]
    with ReplayBuffer(tmp_path, fields=dict.fromkeys(names, "int")) as buffer:
        for length in (2, 3):
            buffer.store_episode(**{name: np.full(length, at) for at, name in enumerate(names)})
        buffer.drop_field(names[0])
        buffer.update(**{names[-1]: np.zeros((2, 3), int)})
    assert check_buffer(tmp_path).verified
    with ReplayBuffer.from_folder(tmp_path, read_only=True) as reader:
        assert reader[1][names[7]].tolist() == [7] * 3
        assert reader[1][names[-1]].tolist() == [0] * 3
