"""Random crops: what a crop holds, where it may lie, and what decides it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loading_helpers import FIELDS, RAGGED, assert_equal, assert_rows, samples_of, world, worlds

from gym_replay import FieldError, crop_loader


@settings(max_examples=50)
@given(
    how=worlds(),
    ends=st.tuples(st.integers(1, 10), st.integers(0, 5)),
    burn_in=st.integers(0, 4),
    stride=st.one_of(st.none(), st.integers(1, 5)),
    pad=st.sampled_from(["right", "left"]),
    seed=st.integers(0, 99),
)
def test_crops_hold_what_they_say(tmp_path_factory, how, ends, burn_in, stride, pad, seed):
    shortest, longest = ends[0], sum(ends)
    with world(tmp_path_factory.mktemp("b"), **how) as (buffer, episodes):
        following = ("observation",) if all(episode.has_final for episode in episodes) else ()
        options = {"burn_in": burn_in, "stride": stride, "pad": pad, "return_indices": True, "seed": seed}
        loader = crop_loader(buffer, 3, (shortest, longest), next_fields=following, shuffle=True, **options)
        anchors = []
        for sample in samples_of(loader):
            e, start = sample["_indices"].tolist()
            episode, total = episodes[e], sample["_lens"].item()
            before = min(burn_in, start)
            count = total - before
            # What may have been drawn.
            assert 1 <= count <= longest
            assert start + count <= len(episode)
            assert count >= min(shortest, len(episode) - (0 if stride is None else start))
            anchors.append((e, 0 if stride is None else start // stride))
            # Where it lies.
            time = burn_in + longest
            first = time - total if pad == "left" else 0
            inside = np.arange(time) - first
            assert sample["_mask"].tolist() == [0 <= place < total for place in inside]
            if burn_in:
                assert sample["_burn_in_mask"].tolist() == [0 <= place < before for place in inside]
            else:
                assert "_burn_in_mask" not in sample
            # What it holds.
            rows = slice(start - before, start + count)
            for name in FIELDS:
                taken = [np.asarray(row) for row in episode[name]][rows]
                if name in RAGGED:
                    nothing = [taken[0][:0]]
                    assert_rows(sample, name, nothing * first + taken + nothing * (time - first - total))
                else:
                    assert_equal(sample[name][first : first + total], np.array(taken))
                    assert not sample[name][:first].any()
                    assert not sample[name][first + total :].any()
            for name in following:
                assert_equal(
                    sample[f"next_{name}"][first : first + total], episode[name][rows.start + 1 : rows.stop + 1]
                )
                assert not sample[f"next_{name}"][first + total :].any()
        if stride is None:
            expected = [(e, 0) for e in range(len(episodes))]
        else:
            expected = [(e, k) for e, episode in enumerate(episodes) for k in range(-(-len(episode) // stride))]
        assert sorted(anchors) == expected


def starts_of(loader):
    return [tuple(sample["_indices"].tolist()) + (sample["_lens"].item(),) for sample in samples_of(loader)]


def test_every_crop_is_as_likely(tmp_path):
    with world(tmp_path, [6]) as (buffer, _):
        loader = crop_loader(buffer, 1, (2, 4), return_indices=True, seed=0)
        drawn = [starts_of(loader)[0] for _ in range(1200)]
    counts = {crop: drawn.count(crop) for crop in set(drawn)}
    # Lengths 2, 3, 4 equally often; then 5, 4, 3 places.
    expected = {(0, start, n): 400 / (7 - n) for n in (2, 3, 4) for start in range(7 - n)}
    assert counts.keys() == expected.keys()
    assert sum((counts[crop] - often) ** 2 / often for crop, often in expected.items()) < 40


def test_crops_depend_on_seed_and_epoch_alone(tmp_path):
    with world(tmp_path, [30, 40, 50, 35]) as (buffer, _):

        def make(**options):
            return crop_loader(buffer, 2, (3, 9), return_indices=True, **{"seed": 4, **options})

        loader = make()
        epochs = [starts_of(loader) for _ in range(3)]
        assert len({tuple(epoch) for epoch in epochs}) == 3
        again = make()
        again.set_epoch(2)
        assert starts_of(again) == epochs[2]
        assert starts_of(make(seed=5)) != epochs[0]
        # Neither the order nor the other episodes have a part in it.
        assert sorted(starts_of(make(shuffle=True))) == sorted(epochs[0])
        assert starts_of(make(episodes=[1, 3])) == [crop for crop in epochs[0] if crop[0] in (1, 3)]
        # A state goes on with the same crops.
        iterator = iter(loader := make())
        next(iterator)
        resumed = make(seed=99)
        resumed.load_state_dict(loader.state_dict())
        assert starts_of(resumed) == epochs[0][2:]
        assert starts_of(resumed) == epochs[1]


def test_workers_draw_the_same_crops_in_each_epoch(tmp_path):
    with world(tmp_path, [30, 40, 50, 35]) as (buffer, _):
        alone = crop_loader(buffer, 1, 5, return_indices=True, seed=4)
        shared = crop_loader(
            buffer, 1, 5, return_indices=True, seed=4, num_workers=1, persistent_workers=True,
            multiprocessing_context="fork",
        )  # fmt: skip
        for _ in range(3):
            assert starts_of(alone) == starts_of(shared)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop": 0}, "crop"),
        ({"crop": (3, 2)}, "before"),
        ({"crop": (1, 2, 3)}, "least"),
        ({"crop": "34"}, "least"),
        ({"crop": 3, "burn_in": -1}, "burn_in"),
        ({"crop": 3, "stride": 0}, "stride"),
        ({"crop": 3, "pad": "centre"}, "centre"),
        ({"crop": 3, "filter_fields": {"action": 1}}, "stride=1"),
        ({"crop": 3, "next_fields": ("action",)}, "no state field"),
    ],
)
def test_what_is_wrong_is_said(tmp_path, options, message):
    with world(tmp_path, [3]) as (buffer, _), pytest.raises(FieldError, match=message):
        crop_loader(buffer, 2, **options)


def test_crops_begin_at_chosen_steps(tmp_path):
    with world(tmp_path, [9, 9]) as (buffer, _):
        chosen = {"action": lambda action: action % 2 == 0}
        found = starts_of(crop_loader(buffer, 2, 3, stride=1, filter_fields=chosen, return_indices=True))
        assert found == [(e, t, min(3, 9 - t)) for e in range(2) for t in range(9) if (3 * (100 * e + t) + 1) % 2 == 0]
