"""Goals: where they come from, how often, what is recomputed for them, and what decides them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loading_helpers import assert_equal, assert_rows, by_index, world, worlds

from gym_replay import (
    EmptyBufferError,
    EpisodeEvictedError,
    FieldError,
    GoalMixture,
    GoalSampler,
    PrioritizedSampler,
    ReplayBuffer,
    n_step_loader,
    timestep_loader,
    window_loader,
)

CHANCES = [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0.2, 0.5, 0.3), (0.5, 0.5, 0), (0, 0.4, 0.6), (0.3, 0, 0.7)]


def mixtures():
    return st.builds(
        lambda chances, geometric, discount: GoalMixture(*chances, geometric=geometric, discount=discount),
        st.sampled_from(CHANCES),
        st.booleans(),
        st.sampled_from([0.0, 0.5, 0.99]),
    )


def place_of(observation):
    """Episode and row that an observation of the helpers' buffers is from."""
    return divmod(round(observation[0].item() - 0.25), 100)


def numbers_of(episodes):
    """The number that each episode's values were made with, by its index."""
    return [place_of(episode["observation"][0])[0] for episode in episodes]


@settings(max_examples=50)
@given(
    how=worlds(),
    value=mixtures(),
    policy=mixtures(),
    kind=st.sampled_from(["timestep", "n_step", "window"]),
    chosen=st.lists(st.booleans(), min_size=8, max_size=8),
    seed=st.integers(0, 99),
)
def test_goals_are_from_where_they_may_be(tmp_path_factory, how, value, policy, kind, chosen, seed):
    with world(tmp_path_factory.mktemp("b"), **how) as (buffer, episodes):
        mask = np.array(chosen[: len(episodes)])
        loaders = {
            "timestep": timestep_loader,
            "n_step": lambda *args, **kwargs: n_step_loader(*args, 2, **kwargs),
            "window": lambda *args, **kwargs: window_loader(*args, offsets={"action": range(2)}, **kwargs),
        }
        try:
            loader = loaders[kind](
                buffer, 4, goal_sampler=GoalSampler(value, policy), return_indices=True, episodes=mask, seed=seed
            )
        except EmptyBufferError:
            return
        numbers = numbers_of(episodes)
        selected = {numbers[e] for e in np.flatnonzero(mask)}
        for (e, t), sample in by_index(loader).items():
            for name, mixture in (("value", value), ("policy", policy)):
                number, row = place_of(sample[f"{name}_goal_observation"])
                goal = numbers.index(number)
                rows = len(list(episodes[goal]["observation"]))
                assert number in selected
                possible = mixture.current > 0 and (goal, row) == (e, t)
                possible |= mixture.future > 0 and goal == e and t < row < rows
                possible |= mixture.future > 0 and (goal, row) == (e, t) and t == rows - 1
                possible |= mixture.random > 0 and row < len(episodes[goal])
                assert possible
                assert_equal(sample[f"{name}_goal_observation"], episodes[goal]["observation"][row])
                assert_rows(sample, f"{name}_goal_seen", episodes[goal]["seen"][row])
                if name == "value":
                    assert sample["goal_reward"].item() == (0 if (goal, row) == (e, t) else -1)
                    assert sample["goal_mask"].item() == (0 if (goal, row) == (e, t) else 1)


def counted(mixture, lengths, *, epochs):
    """Of the middle step of the first episode: how often each row was its goal, by episode and row."""
    counts = {}
    lengths = np.array(lengths)
    for epoch in range(epochs):
        t = np.array([lengths[0] // 2])
        own, is_random = mixture.rows(t, lengths[:1], np.random.default_rng(epoch).random((2, 1)))
        key = "random" if is_random[0] else int(own[0] - t[0])
        counts[key] = counts.get(key, 0) + 1
    return counts


def chi_square(counts, expected):
    assert set(counts) <= set(expected)
    return sum((counts.get(key, 0) - often) ** 2 / often for key, often in expected.items())


def test_the_mixture_is_what_was_asked_for():
    n = 4000
    mixture = GoalMixture(current=0.2, future=0.5, random=0.3)
    expected = {0: 0.2 * n, "random": 0.3 * n} | dict.fromkeys(range(1, 6), 0.5 * n / 5)
    assert chi_square(counted(mixture, [10], epochs=n), expected) < 30
    geometric = GoalMixture(future=1, geometric=True, discount=0.7)
    expected = {k: n * 0.3 * 0.7 ** (k - 1) for k in range(1, 5)} | {5: n * 0.7**4}
    assert chi_square(counted(geometric, [10], epochs=n), expected) < 25


def test_random_goals_are_uniform_over_transitions(tmp_path):
    lengths = [1, 6, 3]
    with world(tmp_path, lengths) as (buffer, _):
        loader = timestep_loader(buffer, 10, goal_sampler=GoalSampler(GoalMixture(random=1), None), seed=0)
        drawn = [place_of(goal) for _ in range(500) for batch in loader for goal in batch["value_goal_observation"]]
    counts = {place: drawn.count(place) for place in set(drawn)}
    expected = {(e, t): 500.0 for e, length in enumerate(lengths) for t in range(length)}
    assert chi_square(counts, expected) < 30


def goals_of(loader):
    return {key: place_of(sample["policy_goal_observation"]) for key, sample in by_index(loader).items()}


def test_goals_depend_on_seed_epoch_and_sample_alone(tmp_path):
    sampler = GoalSampler(None, GoalMixture(0.1, 0.5, 0.4))
    with world(tmp_path, [9, 7, 8]) as (buffer, _):

        def make(batch_size=4, **options):
            options = {"seed": 1, "goal_sampler": sampler, "return_indices": True} | options
            return timestep_loader(buffer, batch_size, **options)

        loader = make()
        epochs = [goals_of(loader) for _ in range(3)]
        assert epochs[0] != epochs[1] != epochs[2]
        assert goals_of(make(batch_size=7, shuffle=True)) == epochs[0]
        assert goals_of(make(seed=2)) != epochs[0]
        workers = make(num_workers=2, persistent_workers=True, multiprocessing_context="fork")
        assert [goals_of(workers) for _ in range(3)] == epochs
        later = make()
        later.set_epoch(2)
        assert goals_of(later) == epochs[2]


@pytest.mark.parametrize("kind", [{"replacement": True}, {"sampler": None}, {"refresh": "batch", "shuffle": True}])
def test_each_draw_with_replacement_has_goals_of_its_own(tmp_path, kind):
    """And the same ones whoever makes the batch."""
    sampler = GoalSampler(None, GoalMixture(random=1))
    with world(tmp_path, [2, 60]) as (buffer, _):

        def drawn(**options):
            chosen = {name: PrioritizedSampler() if name == "sampler" else value for name, value in kind.items()}
            options |= {"seed": 5, "goal_sampler": sampler, "return_indices": True, "episodes": [0]} | chosen
            loader = timestep_loader(buffer, 16, samples_per_epoch=64, **options)
            return [
                (tuple(index), place_of(goal))
                for batch in loader
                for index, goal in zip(batch["_indices"].tolist(), batch["policy_goal_observation"], strict=True)
            ]

        found = drawn()
        assert {goal for index, goal in found if index == (0, 0)} == {goal for _, goal in found} == {(0, 0), (0, 1)}
        assert drawn() == found
        assert drawn(num_workers=2, multiprocessing_context="fork") == found


def test_value_and_policy_goals_are_drawn_apart(tmp_path):
    with world(tmp_path, [30]) as (buffer, _):
        both = GoalSampler(GoalMixture(random=1), GoalMixture(random=1))
        batch = next(iter(timestep_loader(buffer, 30, goal_sampler=both)))
        assert not torch.equal(batch["value_goal_observation"], batch["policy_goal_observation"])
        one = GoalSampler(None, GoalMixture(random=1))
        alone = next(iter(timestep_loader(buffer, 30, goal_sampler=one, seed=0)))
        batch = next(iter(timestep_loader(buffer, 30, goal_sampler=both, seed=0)))
        assert torch.equal(batch["policy_goal_observation"], alone["policy_goal_observation"])
        assert not {"value_goal_observation", "goal_reward", "goal_mask"} & set(alone)


def reach(samples):
    ahead = samples.goal("observation")[:, 0] - samples.following("observation")[:, 0]
    return np.where(samples.current("action") > 0, ahead, np.nan), ahead == 0


def test_rewards_are_recomputed(tmp_path):
    with world(tmp_path, [9, 7, 8]) as (buffer, episodes):
        sampler = GoalSampler(GoalMixture(future=1), None, fields=("observation",), relabel=reach)
        found = by_index(n_step_loader(buffer, 5, goal_sampler=sampler, return_indices=True))
        for (e, t), sample in found.items():
            goal, row = place_of(sample["value_goal_observation"])
            assert goal == e
            assert sample["goal_reward"].item() == row - (t + 1)
            assert sample["goal_mask"].item() == (row == t + 1)
            assert_equal(sample["reward"], episodes[e]["reward"][t])
            assert "value_goal_seen" not in sample
        assert any(sample["goal_mask"] for sample in found.values())
        names = ("goal_reward",)
        (batch,) = n_step_loader(buffer, 24, goal_sampler=sampler, to_named_tuple=names, seed=0)
        (whole,) = n_step_loader(buffer, 24, goal_sampler=sampler, seed=0)
        assert torch.equal(batch.goal_reward, whole["goal_reward"])


def test_evicted_goals_are_replaced_by_live_ones(tmp_path):
    """Goals may be in episodes that left while those of the samples did not."""
    with world(tmp_path, [4] * 5, kind="circular") as (buffer, episodes):
        numbers = numbers_of(episodes)
        sampler = GoalSampler(GoalMixture(random=1), None)
        loader = timestep_loader(
            buffer, 4, goal_sampler=sampler, episodes=None, filter_fields={"action": lambda a: a >= 1200}
        )
        goals = {place_of(g)[0] for _ in range(30) for batch in loader for g in batch["value_goal_observation"]}
        assert goals == set(numbers) == {2, 3, 4}
        with ReplayBuffer.from_folder(tmp_path / "a") as other:
            assert other.num_episodes == 3
        episode = {"observation": np.full((5, 2), 900.25), "seen": [[]] * 5, "words": [[]] * 4}
        buffer.store_episode(**episode)
        goals = {place_of(g)[0] for _ in range(30) for batch in loader for g in batch["value_goal_observation"]}
        assert goals == {3, 4}
        for _ in range(2):
            buffer.store_episode(**episode)
        with pytest.raises(EpisodeEvictedError, match="new loader"):
            next(iter(loader))


def test_goals_that_leave_while_they_are_copied(tmp_path, monkeypatch):
    """The copy of an evicted goal is thrown away."""
    with world(tmp_path, [4] * 3, kind="circular") as (buffer, _):
        sampler = GoalSampler(GoalMixture(random=1), None, fields=("observation",))
        filters = {"action": lambda a: a >= 600}
        dataset = buffer.dataset(timestep_level=True, goal_sampler=sampler, filter_fields=filters, fields=("action",))
        take = dataset.source.rows.take
        evicting = iter([True])

        def take_while_evicted(name, rows):
            copied = take(name, rows)
            if name == "observation" and next(evicting, False):
                buffer.store_episode(observation=np.full((5, 2), 900.25), seen=[[]] * 5, words=[[]] * 4)
                copied[:] = -1  # torn
            return copied

        monkeypatch.setattr(dataset.source.rows, "take", take_while_evicted)
        for _ in range(20):
            batch = dataset[np.arange(4)]
            assert {place_of(goal)[0] for goal in batch["value_goal_observation"]} <= {1, 2}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GoalMixture(), "sum up"),
        (lambda: GoalMixture(0.5, 0.4), "sum up"),
        (lambda: GoalMixture(1.5, -0.5), "current: expected a number from 0 to 1, got 1.5"),
        (lambda: GoalMixture(future=1, discount=1), "discount"),
        (lambda: GoalSampler(None, None), "both None"),
        (lambda: GoalSampler((1, 0, 0)), "GoalMixture"),
        (lambda: GoalSampler(relabel=3), "relabel"),
    ],
)
def test_samplers_that_cannot_be(make, message):
    with pytest.raises(FieldError, match=message):
        make()


def test_what_is_wrong_is_said(tmp_path):
    value = GoalMixture(current=1)
    with world(tmp_path, [4], [False]) as (buffer, _):
        for sampler, message in (
            (3, "GoalSampler"),
            (GoalSampler(fields=("action",)), "state fields"),
            (GoalSampler(fields=()), "state fields"),
            (GoalSampler(fields=("nothing",)), "nothing"),
        ):
            with pytest.raises(FieldError, match=message):
                timestep_loader(buffer, 4, goal_sampler=sampler)
        for relabel, message in (
            (lambda samples: samples.reached, "tuple"),
            (lambda samples: (samples.reached, samples.reached[:1]), "goal_mask"),
            (lambda samples: (samples.current("nothing"),) * 2, "nothing"),
            (lambda samples: (samples.goal("action"),) * 2, "action"),
            (lambda samples: (samples.following("observation"),) * 2, "n_steps=1"),
        ):
            loader = timestep_loader(buffer, 4, goal_sampler=GoalSampler(value, relabel=relabel))
            with pytest.raises(FieldError, match=message):
                next(iter(loader))
        with pytest.raises(FieldError, match="goal_sampler"):
            buffer.dataloader(2, goal_sampler=GoalSampler())
