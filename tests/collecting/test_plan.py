import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gym_replay.collecting.plan import Goal, Plan, Played, seeds_of, unneeded

GOALS = st.builds(Goal, st.none() | st.integers(1, 12), st.integers(1, 60)) | st.builds(Goal, st.integers(1, 12))


def surplus(plan):
    return unneeded(plan.kept, [plan.goal])


def wanted(goal, length_of, is_kept):
    """The numbers of a collection, one after another, as if one player had played them all."""
    found, steps, number = [], 0, 0
    while not goal.is_reached(len(found), steps):
        if is_kept(number):
            found.append(number)
            steps += length_of(number)
        number += 1
    return found


@settings(max_examples=200)
@given(
    goal=GOALS,
    seed=st.integers(0, 1 << 20),
    players=st.integers(1, 6),
    share=st.sampled_from([1.0, 1.0, 0.6, 0.2]),
    lost=st.sampled_from([0.0, 0.1]),
    there=st.sets(st.integers(0, 30)),
)
def test_the_set_does_not_depend_on_who_ends_when(goal, seed, players, share, lost, there):
    facts = random.Random(seed)
    lengths = [facts.randint(1, 15) for _ in range(1000)]
    keeps = [facts.random() < share for _ in range(1000)]
    expected = wanted(goal, lengths.__getitem__, keeps.__getitem__)
    # Some were played before, and some of those are beyond what is needed.
    before = [Played(number, lengths[number]) for number in there if keeps[number]]
    plan = Plan(goal, before, [number for number in there if not keeps[number]], may_discard=share < 1)
    events = random.Random(seed)
    left = {}
    for _ in range(100_000):
        if plan.is_complete:
            break
        while len(left) < players and (number := plan.next()) is not None:
            assert number not in left
            assert number not in plan.kept
            left[number] = lengths[number]
        assert left, "there is nothing to play, and it is not complete"
        number = events.choice(sorted(left))
        left[number] -= 1
        if left[number] == 0:
            del left[number]
            plan.settle(Played(number, lengths[number], is_kept=keeps[number]))
        elif events.random() < lost:
            del left[number]
            plan.give_back(number)
        plan.note_lengths({each: lengths[each] - left[each] for each in left})
    assert plan.is_complete
    assert plan.end == expected[-1] + 1
    assert sorted(plan.kept.keys() - surplus(plan)) == expected


@pytest.mark.parametrize("players", [1, 2, 5])
def test_players_that_cannot_choose(players):
    goal = Goal(steps=40)
    lengths = [1 + number * 7 % 11 for number in range(500)]
    plan = Plan(goal)
    left = {}
    while not plan.is_complete:
        for place in range(players):
            if place not in left:
                number = plan.next_of(place, players)
                if number is None:
                    break
                assert number % players == place
                left[place] = number, lengths[number]
            number, steps = left.pop(place)
            if steps == 1:
                plan.settle(Played(number, lengths[number]))
            else:
                left[place] = number, steps - 1
    assert sorted(plan.kept.keys() - surplus(plan)) == wanted(goal, lengths.__getitem__, lambda number: True)


def test_players_that_cannot_choose_play_nothing_beyond_the_last():
    plan = Plan(Goal(episodes=5))
    assert [plan.next_of(place, 3) for place in (0, 1, 2, 0, 1, 2, 0)] == [0, 1, 2, 3, 4, None, None]


def test_nothing_is_played_that_cannot_be_needed():
    plan = Plan(Goal(episodes=3))
    assert [plan.next() for _ in range(4)] == [0, 1, 2, None]
    plan = Plan(Goal(steps=10))
    assert plan.next() == 0
    plan.note_lengths({0: 9})
    assert plan.next() == 1
    plan.note_lengths({1: 1})
    assert plan.next() is None


def test_what_was_asked_for_earlier_is_not_unneeded():
    kept = dict.fromkeys(range(10), 1)
    assert unneeded(kept, [Goal(episodes=4)]) == {4, 5, 6, 7, 8, 9}
    assert unneeded(kept, [Goal(episodes=4), Goal(episodes=8)]) == {8, 9}
    # What may still be needed, as others before it are missing, stays.
    assert unneeded({0: 1, 7: 1, 9: 1}, [Goal(episodes=4), Goal(steps=4)]) == set()


def test_goals_cover_one_another():
    assert Goal(episodes=5).covers(Goal(episodes=5))
    assert Goal(episodes=5).covers(Goal(episodes=4, steps=9))
    assert not Goal(episodes=5).covers(Goal(steps=1))
    assert not Goal(episodes=5, steps=3).covers(Goal(episodes=4))


def test_seeds():
    every = [seeds_of(seed, number) for seed in (0, 1, 1 << 40) for number in range(500)]
    assert len({seeds.env for seeds in every}) == len({seeds.policy for seeds in every}) == len(every)
    assert all(0 <= seeds.env < 1 << 31 and 0 <= seeds.policy < 1 << 63 for seeds in every)
    # They stay what they are, as folders are completed by later versions.
    assert seeds_of(0, 0) == (1009188246, 7292093880020223915)
    assert seeds_of(7, 12345) == (336240254, 7804974662063631615)
