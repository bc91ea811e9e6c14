"""Which samples are served: episodes by index, mask and predicate, conditions on meta fields and on steps."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from loading_helpers import assert_equal, assert_rows, by_index, samples_of, world, worlds

from gym_replay import EmptyBufferError, FieldError, ReplayBuffer, n_step_loader, timestep_loader, trajectory_loader


@settings(max_examples=40)
@given(
    how=worlds(),
    form=st.sampled_from(["mask", "list", "indices", "negative", "set", "predicate", "boolean list"]),
    chosen=st.lists(st.booleans(), min_size=8, max_size=8),
    tasks=st.sets(st.integers(0, 3)),
    names=st.sampled_from([None, {"name 0", "name 2"}, "name 1", ["name 3", "name 1"]]),
    data=st.data(),
)
def test_selected_episodes_are_served_as_they_are(tmp_path_factory, how, form, chosen, tasks, names, data):
    with world(tmp_path_factory.mktemp("b"), **how) as (buffer, episodes):
        mask = np.array(chosen[: len(episodes)])
        places = np.flatnonzero(mask)
        shuffled = data.draw(st.permutations(places.tolist()))
        given_names = np.array([episode.meta["name"] for episode in episodes], object)
        forms = {
            "mask": mask,
            "boolean list": mask.tolist(),
            "list": shuffled,
            "set": set(shuffled),
            "indices": np.array(shuffled, np.int32),
            "negative": [place - len(episodes) for place in shuffled],
            "predicate": lambda meta: (
                mask & (meta["task"] >= 0) & (meta["name"] == given_names) & (meta["task"].shape == mask.shape)
            ),
        }
        selected = [
            e for e in places.tolist()
            if episodes[e].meta["task"] in tasks
            and (names is None or episodes[e].meta["name"] in ([names] if isinstance(names, str) else names))
        ]  # fmt: skip
        options = {"episodes": forms[form], "return_indices": True}
        options["filter_meta"] = {"task": tasks} | ({} if names is None else {"name": names})
        if not selected:
            with pytest.raises(EmptyBufferError):
                trajectory_loader(buffer, 3, **options)
            return
        found = by_index(timestep_loader(buffer, 3, **options))
        assert list(found) == [(e, t) for e in selected for t in range(len(episodes[e]))]
        for (e, t), sample in found.items():
            assert_equal(sample["observation"], episodes[e]["observation"][t])
            assert_rows(sample, "words", episodes[e]["words"][t])
            assert sample["task"] == episodes[e].meta["task"]
            assert sample["name"] == episodes[e].meta["name"]
        for e, sample in zip(selected, samples_of(trajectory_loader(buffer, 3, **options)), strict=True):
            assert sample["_index"] == e
            assert_equal(sample["action"][: len(episodes[e])], episodes[e]["action"])


@settings(max_examples=30)
@given(
    how=worlds(),
    n=st.integers(1, 4),
    rewards=st.sets(st.integers(0, 800)),
    low=st.integers(0, 800),
    terminated=st.sampled_from([None, True, False]),
)
def test_filtered_steps_equal_the_reference(tmp_path_factory, how, n, rewards, low, terminated):
    with world(tmp_path_factory.mktemp("b"), **how) as (buffer, episodes):
        conditions = {"reward": [1 + reward / 7 for reward in rewards], "action": lambda action: action >= low}
        expected = [
            (e, t)
            for e, episode in enumerate(episodes)
            for t in range(len(list(episode["observation"])) - 1)
            if episode["action"][t] >= low and episode["reward"][t] in conditions["reward"]
        ]
        if terminated is not None:
            conditions["terminated"] = terminated
            expected = [(e, t) for e, t in expected if episodes[e]["terminated"][t] == terminated]
        assume(any(len(list(episode["observation"])) > 1 for episode in episodes))
        if not expected:
            with pytest.raises(EmptyBufferError):
                n_step_loader(buffer, 3, n, filter_fields=conditions)
            return
        found = by_index(n_step_loader(buffer, 3, n, filter_fields=conditions, return_indices=True))
        assert list(found) == expected
        for (e, t), sample in found.items():
            m = min(n, len(list(episodes[e]["observation"])) - 1 - t)
            assert_equal(sample["next_observation"], episodes[e]["observation"][t + m])


def test_slices_and_single_indices(tmp_path):
    with world(tmp_path, [1, 2, 3, 4]) as (buffer, _):
        for episodes, expected in (
            (slice(1, 3), [2, 3]),
            (-1, [4]),
            (np.int64(0), [1]),
            (slice(None, None, -2), [2, 4]),
        ):
            batch = next(iter(trajectory_loader(buffer, 4, episodes=episodes)))
            assert batch["_lens"].tolist() == expected


@pytest.mark.parametrize(
    ("episodes", "error", "message"),
    [
        ([], EmptyBufferError, "no episode"),
        (slice(9, 10), EmptyBufferError, "no episode"),
        (np.zeros(3, bool), EmptyBufferError, "no episode"),
        ([0, 0], FieldError, "twice"),
        ([0, -3], FieldError, "twice"),
        ([3], IndexError, "there are 3"),
        ([-4], IndexError, "there are 3"),
        (np.ones(2, bool), FieldError, "mask over 3"),
        ([0.5], FieldError, "indices"),
        ("all", FieldError, "unknown name 'all'"),
        ([[0, 1]], FieldError, "indices"),
        (lambda meta: meta["task"], FieldError, "boolean mask"),
        (lambda meta: meta["nothing"] > 0, FieldError, "nothing"),
        (lambda meta: True, FieldError, "boolean mask"),
    ],
)
def test_selections_that_cannot_be(tmp_path, episodes, error, message):
    with world(tmp_path, [3, 2, 1]) as (buffer, _), pytest.raises(error, match=message):
        buffer.dataset(episodes=episodes)


def test_conditions_are_compared_as_stored(tmp_path):
    fields = {"x": "float32", "flag": "bool", "big": "int64"}
    with ReplayBuffer(tmp_path, fields=fields, meta_fields={"score": "float32", "goal": ("float", 2)}) as buffer:
        buffer.store_episode(x=[0.1, 0.2, 0.3], flag=[True, False, True], big=[2**60, 2**60 + 1, 0], score=0.7)

        def count(**conditions):
            return len(buffer.dataset(timestep_level=True, filter_fields=conditions))

        assert count(x=0.1) == 1
        assert count(x={0.1, 0.3}) == 2
        assert count(flag=True) == 2
        assert count(flag={True, False}) == 3
        assert count(big=2**60 + 1) == 1
        assert count(big=[2**60 + 1]) == 1
        assert count(big=range(5)) == 1
        assert len(buffer.dataset(filter_meta={"score": 0.7})) == 1
        for conditions in ({"big": {"0"}}, {"big": "0"}, {"big": {0, "0"}}):
            with pytest.raises((FieldError, EmptyBufferError)):
                count(**conditions)
        with pytest.raises(FieldError, match="single values"):
            buffer.dataset(filter_meta={"goal": {1, 2}})
        with pytest.raises(EmptyBufferError):
            count(x=set())


def test_ragged_and_wide_fields_cannot_be_filtered(tmp_path):
    with world(tmp_path, [3]) as (buffer, _):
        for name in ("observation", "words"):
            with pytest.raises(FieldError, match="only scalar fields"):
                timestep_loader(buffer, 2, filter_fields={name: 1})
        with pytest.raises(FieldError, match="nothing"):
            timestep_loader(buffer, 2, filter_fields={"nothing": 1})


def test_the_length_works_in_every_kind_of_condition(tmp_path):
    buffer = ReplayBuffer(tmp_path, fields={"x": "int"})
    for length in (2, 5, 3):
        buffer.store_episode(x=np.arange(length))
    for chosen in (
        {"episodes": "length > 2"},
        {"episodes": lambda values: values["length"] > 2},
        {"filter_meta": {"length": lambda lengths: lengths > 2}},
        {"filter_meta": {"length": {3, 5}}},
    ):
        (batch,) = buffer.dataloader(10, **chosen)
        assert batch["_lens"].tolist() == [5, 3]
