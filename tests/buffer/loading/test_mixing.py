"""mix: exact shares, no transition twice in an epoch of a side, resuming, and a side that is empty."""

import io
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gym_replay import EmptyBufferError, Field, FieldError, RecordToBuffer, ReplayBuffer, mix, statistics

FIELDS = {"observation": Field("float32", (2,), state=True), "action": "int64", "reward": "float64"}


def stored(folder, steps, first=0, fields=FIELDS, **options):
    """A buffer whose actions are ``first, first + 1, ...``, in episodes of up to seven steps."""
    buffer = ReplayBuffer(folder, fields=fields, **options)
    add(buffer, steps, first)
    return buffer


def add(buffer, steps, first):
    for begin in range(first, first + steps, 7):
        actions = np.arange(begin, min(begin + 7, first + steps))
        rows = np.stack((np.append(actions, actions[-1] + 1), np.zeros(len(actions) + 1)), 1)
        buffer.store_episode(observation=rows, action=actions, reward=actions / 2)


def actions_of(batch):
    return batch["action"].tolist()


@settings(max_examples=25)
@given(
    st.integers(1, 60),
    st.integers(1, 60),
    st.integers(2, 16),
    st.data(),
    st.sampled_from([None, "epoch", "batch"]),
)
def test_shares_are_exact_and_nothing_comes_twice_in_an_epoch(tmp_path_factory, one, other, size, data, refresh):
    share = data.draw(st.integers(1, size - 1))
    folder = tmp_path_factory.mktemp("mix")
    with stored(folder / "a", one) as offline, stored(folder / "b", other, 1000) as online:
        batches = mix(offline, online, size, share / size, refresh=refresh, seed=size)
        too_few = one < share or (refresh != "batch" and other < size - share)
        if too_few:
            with pytest.raises(EmptyBufferError, match="none twice"):
                next(batches)
            return
        seen = {False: [], True: []}
        for batch in itertools.islice(batches, 25):
            sides = batch["_online"].tolist()
            assert sides == [False] * share + [True] * (size - share)
            for side, action, (now, _), (after, _) in zip(
                sides, actions_of(batch), batch["observation"].tolist(), batch["next_observation"].tolist(), strict=True
            ):
                assert side == (action >= 1000)
                assert (now, after) == (action, action + 1)
                seen[side].append(action)
        epochs = [(False, one, share)] + ([(True, other, size - share)] if refresh != "batch" else [])
        for side, count, part in epochs:
            whole = count // part * part  # what fills batches
            for begin in range(0, len(seen[side]), whole):
                epoch = seen[side][begin : begin + whole]
                assert len(set(epoch)) == len(epoch)


@pytest.mark.parametrize("refresh", [None, "epoch", "batch"])
@pytest.mark.parametrize("done", [0, 1, 5, 12])
def test_it_is_resumed(tmp_path, refresh, done):
    with stored(tmp_path / "a", 40) as offline, stored(tmp_path / "b", 23, 1000) as online:
        options = {"refresh": refresh, "n_steps": 2}
        batches = mix(offline, online, 8, 0.25, seed=5, **options)
        for _ in range(done):
            next(batches)
        file = io.BytesIO()
        torch.save(batches.state_dict(), file)
        rest = [actions_of(next(batches)) for _ in range(20)]
        file.seek(0)
        state = torch.load(file)
        again = mix(offline, online, 8, 0.25, seed=99, **options)
        again.load_state_dict(state)
        assert again.state_dict().keys() == state.keys()
        assert [actions_of(next(again)) for _ in range(20)] == rest
        again.load_state_dict(state)  # also in one that is running
        assert [actions_of(next(again)) for _ in range(20)] == rest
        with pytest.raises(FieldError, match="offline=2"):
            mix(offline, online, 8, 0.5).load_state_dict(state)
        with pytest.raises(FieldError, match="state_dict"):
            again.load_state_dict({})


def test_an_empty_side_is_named(tmp_path):
    """Nothing is taken from the other one meanwhile, and what comes then is mixed in."""
    fields = {**FIELDS}
    with stored(tmp_path / "a", 12) as offline, ReplayBuffer(tmp_path / "b", fields=fields) as online:
        batches = mix(offline, online, 6, seed=0)
        expected = mix(offline, offline, 6, seed=0)
        for _ in range(3):
            with pytest.raises(EmptyBufferError, match="mix: the online side has no batch"):
                next(batches)
        add(online, 2, 1000)
        with pytest.raises(EmptyBufferError, match="there are 2 samples, and each batch takes 3"):
            next(batches)
        add(online, 4, 1002)
        first = next(batches)
        assert actions_of(first)[:3] == actions_of(next(expected))[:3]
        add(online, 20, 1006)  # seen by the next epoch of the online side, which is two batches long
        second = next(batches)
        assert sorted(actions_of(first)[3:] + actions_of(second)[3:]) == list(range(1000, 1006))
        later = [action for _ in range(8) for action in actions_of(next(batches))[3:]]
        assert len(set(later)) == 24
        with pytest.raises(EmptyBufferError, match="the offline side"):
            next(mix(ReplayBuffer(tmp_path / "c", fields=fields), offline, 4))


def test_from_the_first_step_on(tmp_path):
    """With open episodes, every batch has a share of what was played a moment ago."""
    gym = pytest.importorskip("gymnasium")
    with RecordToBuffer(gym.make("Pendulum-v1"), tmp_path / "offline") as env:
        env.reset(seed=1)
        for _ in range(20):
            env.step(env.action_space.sample())
    recorder = RecordToBuffer(gym.make("Pendulum-v1"), tmp_path / "online")
    batches = mix(env.buffer, recorder.buffer, 8, refresh="batch", include_open=True)
    recorder.reset(seed=0)
    for step in range(5):
        recorder.step(recorder.action_space.sample())
        batch = next(batches)
        assert len(batch["reward"]) == 8
        assert len(set(batch["reward"][batch["_online"]].tolist())) <= step + 1
    recorder.close()


def test_sides_that_do_not_fit(tmp_path):
    other = {**FIELDS, "observation": Field("float32", (3,), state=True)}
    with (
        stored(tmp_path / "a", 12) as offline,
        stored(tmp_path / "c", 12, fields={**FIELDS, "more": "int"}) as more,
        ReplayBuffer(tmp_path / "b", fields=other) as online,
    ):
        online.store_episode(observation=np.zeros((9, 3)), action=np.zeros(8, int), reward=np.zeros(8))
        with pytest.raises(FieldError, match=r"'observation' is float32 \(2,\) on the offline side"):
            next(mix(offline, online, 4))
        with pytest.raises(FieldError, match="online side alone has the entry 'more'"):
            next(mix(offline, more, 4))
        batch = next(mix(offline, more, 4, current_fields=("action",), device="cpu"))
        assert list(batch) == ["action", "next_observation", "n_step_lens", "_online"]
        found = statistics(offline)
        assert next(mix(offline, offline, 4, normalize=found))["observation"].abs().max() < 3


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"ratio": 0.3}, "that is 3, and|ratio=0.3"),
        ({"ratio": 0.33}, "pass ratio=0.3"),
        ({"ratio": 0.0}, "whole number"),
        ({"ratio": 1.0}, "whole number"),
        ({"ratio": 1.5}, "ratio"),
        ({"refresh": "always"}, "refresh"),
        ({"include_open": True}, "refresh='batch'"),
        ({"normalize": ["observation"]}, "statistics"),
        ({"shuffle": True}, "option of loaders"),
        ({"seed": -1}, "seed"),
    ],
)
def test_wrong_options(tmp_path, options, said):
    with stored(tmp_path, 12) as buffer:
        if options == {"ratio": 0.3}:  # which is exact
            assert len(next(mix(buffer, buffer, 10, **options))["action"]) == 10
            return
        with pytest.raises(FieldError, match=said):
            mix(buffer, buffer, 10, **options)


def test_only_buffers_are_mixed(tmp_path):
    with stored(tmp_path, 12) as buffer, pytest.raises(TypeError, match="from_folder"):
        mix(str(tmp_path), buffer, 10)
