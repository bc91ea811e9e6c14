"""Windows, against a reference that builds one sample at a time."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from loading_helpers import FIELDS, RAGGED, assert_equal, assert_rows, by_index, make_episode, world, worlds

from gym_replay import EmptyBufferError, Field, FieldError, RecordToBuffer, ReplayBuffer, window_loader

KINDS = ("edge", "zero", "drop")


def reference(episodes, offsets, single, stride, boundary):
    """Every window, one at a time, by episode and step."""
    before, after = boundary
    samples = {}
    for e, episode in enumerate(episodes):
        rows = {name: list(episode[name]) for name in (*offsets, *single)}
        fitting = [
            t
            for t in range(len(episode))
            if not (before == "drop" and any(t + o < 0 for own in offsets.values() for o in own))
            and not (after == "drop" and any(t + o >= len(rows[name]) for name, own in offsets.items() for o in own))
        ]
        for t in fitting[::stride]:
            sample = {name: rows[name][t] for name in single}
            for name, own in offsets.items():
                values, pads = [], []
                for o in own:
                    place = t + o
                    outside = before if place < 0 else after if place >= len(rows[name]) else None
                    value = np.asarray(rows[name][min(max(place, 0), len(rows[name]) - 1)])
                    if outside == "zero":
                        value = value[:0] if name in RAGGED else np.zeros_like(value)
                    values.append(value)
                    pads.append(outside is not None)
                sample[name], sample[f"{name}_is_pad"] = values, pads
            samples[e, t] = sample
    return samples


def assert_windows(loader, expected, offsets):
    found = by_index(loader)
    assert found.keys() == expected.keys()
    for key, sample in expected.items():
        for name, value in sample.items():
            if name in RAGGED:
                assert_rows(found[key], name, value)
            else:
                assert_equal(found[key][name], np.array(value))


def own_offsets():
    return st.lists(st.integers(-12, 12), min_size=1, max_size=4)


@settings(max_examples=60)
@given(
    how=worlds(),
    offsets=st.dictionaries(st.sampled_from(list(FIELDS)), own_offsets(), min_size=1),
    single=st.lists(st.sampled_from(list(FIELDS)), unique=True),
    stride=st.integers(1, 5),
    boundary=st.tuples(st.sampled_from(KINDS), st.sampled_from(KINDS)),
    batch_size=st.integers(1, 7),
)
def test_windows_equal_the_reference(tmp_path_factory, how, offsets, single, stride, boundary, batch_size):
    with world(tmp_path_factory.mktemp("b"), **how) as (buffer, episodes):
        alone = [name for name in single if name not in offsets]
        expected = reference(episodes, offsets, alone, stride, boundary)
        options = {"offsets": offsets, "fields": single, "stride": stride, "boundary": boundary}
        if not expected:
            with pytest.raises(EmptyBufferError, match="no sample"):
                window_loader(buffer, batch_size, **options)
            return
        loader = window_loader(buffer, batch_size, shuffle=True, return_indices=True, **options)
        assert_windows(loader, expected, offsets)
        entries = set(next(iter(loader))) - {"task", "name", "_indices"}
        lens = [f"{name}_lens" for name in (*offsets, *alone) if name in RAGGED]
        assert entries == {*offsets, *alone, *(f"{name}_is_pad" for name in offsets), *lens}


@settings(max_examples=25)
@given(how=worlds(), length=st.integers(1, 11), boundary=st.sampled_from(KINDS), own=own_offsets())
def test_length_is_a_range_for_all_other_fields(tmp_path_factory, how, length, boundary, own):
    with world(tmp_path_factory.mktemp("b"), **how) as (buffer, episodes):
        offsets = {name: range(length) for name in FIELDS} | {"action": own}
        expected = reference(episodes, offsets, (), 1, (boundary, boundary))
        assume(expected)
        options = {"length": length, "offsets": {"action": own}, "boundary": boundary}
        assert_windows(buffer.dataloader(5, return_indices=True, **options), expected, offsets)
        some = {name: offsets[name] for name in ("action", "reward")}
        expected = reference(episodes, some, (), 1, (boundary, boundary))
        loader = buffer.dataloader(5, return_indices=True, fields=("reward",), **options)
        assert_windows(loader, expected, some)


@settings(max_examples=25)
@given(
    how=worlds(),
    chosen=st.lists(st.booleans(), min_size=8, max_size=8),
    remainder=st.integers(0, 2),
    stride=st.integers(1, 3),
    boundary=st.sampled_from(KINDS),
)
def test_a_subset_of_episodes_and_steps_has_the_same_windows(
    tmp_path_factory, how, chosen, remainder, stride, boundary
):
    """An episode keeps its number and its windows, whichever others are served."""
    offsets = {"observation": (-1, 0, 1), "words": (0, 2), "action": range(3)}
    with world(tmp_path_factory.mktemp("b"), **how) as (buffer, episodes):
        mask = np.array(chosen[: len(episodes)])
        expected = {
            (e, t): sample
            for (e, t), sample in reference(episodes, offsets, (), stride, (boundary, boundary)).items()
            if mask[e] and episodes[e].meta["task"] != 1 and episodes[e]["action"][t] % 3 != remainder
        }
        assume(expected)
        loader = window_loader(
            buffer, 3, offsets=offsets, fields=(), stride=stride, boundary=boundary, episodes=mask, return_indices=True,
            filter_meta={"task": {0, 2}}, filter_fields={"action": lambda action: action % 3 != remainder},
        )  # fmt: skip
        assert_windows(loader, expected, offsets)


def test_a_drawn_out_example(tmp_path):
    """Of three steps: the observation after the last one is no padding, the action after it is."""
    with world(tmp_path, [3]) as (buffer, _):
        batch = next(iter(window_loader(buffer, 3, length=3, fields=("observation", "action"))))
        assert batch["observation_is_pad"].tolist() == [
            [False, False, False],
            [False, False, False],
            [False, False, True],
        ]
        assert batch["action_is_pad"].tolist() == [[False, False, False], [False, False, True], [False, True, True]]
        assert batch["action"].tolist() == [[1, 4, 7], [4, 7, 7], [7, 7, 7]]
        assert batch["observation"][2, :, 0].tolist() == [2.25, 3.25, 3.25]
        dropped = buffer.dataset(length=3, boundary="drop", fields=("observation",))
        assert len(dropped) == 2
        assert len(buffer.dataset(length=3, boundary="drop")) == 1


@pytest.mark.parametrize("stack", [1, 4])
def test_a_frame_stack_is_that_of_gymnasium(tmp_path, stack):
    env = gym.wrappers.FrameStackObservation(
        RecordToBuffer(gym.make("CartPole-v1"), tmp_path), stack, padding_type="reset"
    )
    stacks = []
    for seed in range(3):
        stacks.append([env.reset(seed=seed)[0]])
        for step in range(2 + 3 * seed):
            stacks[-1].append(env.step(step % 2)[0])
    env.close()
    with ReplayBuffer.from_folder(tmp_path) as buffer:
        assert buffer.episode_lens.tolist() == [2, 5, 8]
        offsets = range(1 - stack, 2)
        found = by_index(window_loader(buffer, 4, offsets={"observation": offsets}, fields=(), return_indices=True))
        assert len(found) == 15
        for (e, t), sample in found.items():
            assert_equal(sample["observation"][:-1], stacks[e][t])
            assert_equal(sample["observation"][1:], stacks[e][t + 1])


@pytest.mark.parametrize("boundary", [*KINDS, ("drop", "zero")])
def test_windows_of_evicted_episodes_are_replaced_by_live_ones(tmp_path, boundary):
    offsets = {"observation": (-1, 0, 1), "action": range(3)}
    with world(tmp_path, [7, 4, 6], kind="circular") as (buffer, _):
        loader = window_loader(buffer, 50, offsets=offsets, fields=(), stride=2, boundary=boundary, return_indices=True)
        count = len(loader.dataset)
        for number in (3, 4):
            buffer.store_episode(**make_episode(number, 5))
        (batch,) = loader
        left = buffer.episode(0)
        assert left.meta["name"] == "name 2"
        both = (boundary, boundary) if isinstance(boundary, str) else boundary
        expected = {t: sample for (_, t), sample in reference([left], offsets, (), 2, both).items()}
        assert len(batch["action"]) == count > len(expected)
        for k, (e, t) in enumerate(batch["_indices"].tolist()):
            assert e == 2  # its index when the loader was made
            for name, value in expected[t].items():
                assert_equal(batch[name][k], np.array(value))


def test_masks_are_of_their_own(tmp_path):
    with world(tmp_path, [3]) as (buffer, _):
        batch = next(iter(window_loader(buffer, 3, length=2, fields=("action", "reward"))))
        batch["action_is_pad"].fill_(True)
        assert not batch["reward_is_pad"].all()


def test_chosen_entries_alone_are_gathered(tmp_path):
    with world(tmp_path, [5]) as (buffer, _):
        names = ("action_is_pad", "chunk", "_indices")
        batch = next(
            iter(
                window_loader(
                    buffer, 5, length=2, to_named_tuple=names, fieldname_map={"action": "chunk"}, return_indices=True
                )
            )
        )
        assert batch._fields == ("action_is_pad", "chunk", "indices")
        assert batch.chunk.shape == (5, 2)
        only_mask = window_loader(buffer, 5, length=2, to_named_tuple=("action_is_pad",))
        assert not only_mask.dataset.samples.entries.read_fields
        assert next(iter(only_mask))._fields == ("action_is_pad",)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "length"),
        ({"offsets": {}}, "length"),
        ({"offsets": {"nothing": (0,)}}, "nothing"),
        ({"offsets": {"action": 3}}, r"\(3,\)"),
        ({"offsets": {"action": ()}}, "at least one"),
        ({"offsets": {"action": (0.5,)}}, "0.5"),
        ({"offsets": (0, 1)}, "dict"),
        ({"length": 0}, "length"),
        ({"length": True}, "length"),
        ({"length": 2, "stride": 0}, "stride"),
        ({"length": 2, "boundary": "nearest"}, "nearest"),
        ({"length": 2, "boundary": ("edge", "drop", "zero")}, "boundary"),
        ({"length": 2, "fields": "action"}, "sequence"),
        ({"length": 2, "fields": ("nothing",)}, "nothing"),
        ({"length": 2, "n_steps": 2}, "n_step"),
    ],
)
def test_what_is_wrong_is_said(tmp_path, options, message):
    with world(tmp_path, [3]) as (buffer, _), pytest.raises(FieldError, match=message):
        window_loader(buffer, 2, **options)


def test_kinds_exclude_one_another(tmp_path):
    with world(tmp_path, [3]) as (buffer, _):
        for options in ({"n_steps": 1, "length": 2}, {"timestep_level": True, "crop": 2}, {"crop": 1, "length": 1}):
            with pytest.raises(FieldError, match="exclude"):
                buffer.dataloader(2, **options)
        with pytest.raises(FieldError, match="window"):
            buffer.dataloader(2, boundary="drop")


def test_a_field_that_was_added_is_windowed(tmp_path):
    with world(tmp_path, [3, 5], fields={"x": "int"} | FIELDS) as (buffer, episodes):
        buffer.add_field("advantage", Field("float", (2,)), [np.full((len(e), 2), 7.0) for e in episodes])
        batch = next(iter(window_loader(buffer, 8, length=4, fields=("advantage",), boundary="zero")))
        assert batch["advantage"].shape == (8, 4, 2)
        assert torch.equal(batch["advantage"][..., 0] == 7, ~batch["advantage_is_pad"])
