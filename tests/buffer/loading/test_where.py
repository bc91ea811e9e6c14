"""Conditions as text: what they mean, compared with one episode at a time, and what is refused."""

import math
import operator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from internals import small_sizes

from gym_replay import FieldError, ReplayBuffer
from gym_replay.buffer.loading.where import Where

COUNT = 7
VALUES = {
    "length": np.array([1, 5, 2, 9, 5, 3, 0]),
    "score": np.array([0.5, -1.0, math.nan, math.inf, 2.25, 0.1, 5.0]),
    "small": np.array([0.1, 0.2, 0.3, -0.5, 1.0, 7.0, 2.0], np.float32),
    "done": np.array([True, False, True, True, False, False, True]),
    "task": np.array(["reach", "push", "", "reach-2", "grasp", "push", "r"], object),
    "goal": np.arange(14.0).reshape(7, 2) % 5,
}


def mask(text):
    return Where(text).mask(VALUES, COUNT).tolist()


# Parts of conditions: their text, and a function that gives their value in one episode, in plain Python.


def _name(name):
    return name, lambda k: VALUES[name][k].item() if hasattr(VALUES[name][k], "item") else VALUES[name][k]


def _constant(value):
    return f"({value!r})", lambda k: value


def _divide(a, b):
    if b == 0:
        return math.nan if a == 0 or math.isnan(a) else math.copysign(math.inf, a) * math.copysign(1, b)
    return a / b


ARITHMETIC = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": _divide}
COMPARISONS = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge} | {
    "==": operator.eq,
    "!=": operator.ne,
}
LEAVES = st.one_of(
    st.sampled_from(["length", "score"]).map(_name),
    st.just(("goal[1]", lambda k: VALUES["goal"][k, 1].item())),
    st.integers(-5, 9).map(_constant),
    st.sampled_from([0.5, 2.25, -0.0, 1e300]).map(_constant),
)
TEXTS = st.one_of(st.just(_name("task")), st.sampled_from(["push", "r", "", "reach-2"]).map(_constant))


def _arithmetic(inner):
    binary = st.tuples(inner, st.sampled_from(sorted(ARITHMETIC)), inner).map(
        lambda p: (
            f"({p[0][0]} {p[1]} {p[2][0]})",
            lambda k: ARITHMETIC[p[1]](float(p[0][1](k)), float(p[2][1](k))),
        )
    )
    return st.one_of(
        binary,
        inner.map(lambda p: (f"abs({p[0]})", lambda k: abs(p[1](k)))),
        inner.map(lambda p: (f"(-{p[0]})", lambda k: -p[1](k))),
    )


NUMBERS = st.recursive(LEAVES, _arithmetic, max_leaves=4)


def _chain(parts):
    first, rest = parts
    text = first[0] + "".join(f" {op} {part[0]}" for op, part in rest)

    def value(k):
        values = [first[1](k), *(part[1](k) for _, part in rest)]
        return all(COMPARISONS[op](a, b) for (op, _), a, b in zip(rest, values, values[1:], strict=False))

    return f"({text})", value


def _chains(inner):
    ops = st.sampled_from(sorted(COMPARISONS))
    return st.tuples(inner, st.lists(st.tuples(ops, inner), min_size=1, max_size=3)).map(_chain)


def _among(parts):
    value, items, negated = parts
    text = f"({value[0]} {'not in' if negated else 'in'} [{', '.join(item[0] for item in items)}])"
    return text, lambda k: any(value[1](k) == item[1](k) for item in items) != negated


def _lists(inner):
    return st.tuples(inner, st.lists(inner, max_size=3), st.booleans()).map(_among)


CONDITIONS = st.recursive(
    st.one_of(
        st.just(_name("done")),
        _chains(NUMBERS),
        _chains(TEXTS),
        _lists(NUMBERS),
        _lists(TEXTS),
        st.tuples(TEXTS, TEXTS).map(lambda p: (f"({p[0][0]} in {p[1][0]})", lambda k: p[0][1](k) in p[1][1](k))),
        st.tuples(TEXTS, TEXTS).map(
            lambda p: (f"{p[0][0]}.startswith({p[1][0]})", lambda k: p[0][1](k).startswith(p[1][1](k)))
        ),
    ),
    lambda inner: st.one_of(
        inner.map(lambda p: (f"(not {p[0]})", lambda k: not p[1](k))),
        st.tuples(inner, inner).map(lambda p: (f"({p[0][0]} and {p[1][0]})", lambda k: p[0][1](k) and p[1][1](k))),
        st.tuples(inner, inner).map(lambda p: (f"({p[0][0]} or {p[1][0]})", lambda k: p[0][1](k) or p[1][1](k))),
    ),
    max_leaves=4,
)


@given(CONDITIONS)
@settings(max_examples=80)
def test_conditions_mean_what_they_mean_of_each_episode(condition):
    text, expected = condition
    assert mask(text) == [bool(expected(k)) for k in range(COUNT)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("length > 2 and not done", [1, 4, 5]),
        ("1 < length <= 5", [1, 2, 4, 5]),
        ("length % 2 == 1 or done", [0, 1, 2, 3, 4, 5, 6]),
        ("length // 2 ** 2 == 1", [1, 4]),
        ("length ** 2 > 20", [1, 3, 4]),
        ("small == 0.1", [0]),  # in the field's own precision
        ("small in [0.1, 0.3]", [0, 2]),
        ("isnan(score)", [2]),
        ("not score > 0", [1, 2]),  # NaN compares as false
        ("length / 0 > 1e308", [0, 1, 2, 3, 4, 5]),  # 0 / 0 is NaN
        ("min(length, 3, small) == small", [0, 1, 2, 3, 4]),
        ("max(length, 4) == 4", [0, 2, 5, 6]),
        ("task in ('push', \"grasp\")", [1, 4, 5]),
        ("'each' in task", [0, 3]),
        ("task.startswith('r') and task.endswith('h')", [0]),
        ("task < 'push'", [2, 4]),
        ("goal[0] == goal[-1] - 1", [0, 1, 3, 4, 5, 6]),
        ("meta['task'] == 'r'", [6]),
        ("True", [0, 1, 2, 3, 4, 5, 6]),
        ("1 > 2", []),
        ("  length\n >\t8 ", [3]),
        ("done == True", [0, 2, 3, 6]),
        ("length in []", []),
    ],
)
def test_the_language(text, expected):
    assert np.flatnonzero(mask(text)).tolist() == expected


@pytest.mark.parametrize(
    ("text", "message", "caret"),
    [
        ("lenght > 1", "did you mean 'length'", 0),
        ("length > 1 and", "invalid syntax", 14),
        ("done and nonsense == 1", "unknown name 'nonsense'", 9),
        ("length", "expected a condition, got a number", 0),
        ("done and task", "expected a condition, got a string", 9),
        ("length == 'a'", "a number is compared with a string", 10),
        ("length + task > 1", "expected a number, got a string", 9),
        ("goal > 1", r"shape \(2,\)", 0),
        ("goal[2] > 1", "no such part", 5),
        ("goal[0][0] > 1", "no such part", 8),
        ("goal[0.5] > 1", "expected an integer", 5),
        ("(length > 1) & done", "instead of & and |", 0),
        ("~done", "`not` instead of ~", 0),
        ("length is 1", "==", 10),
        ("length > 1 if done else done", "if has no meaning", 0),
        ("task in task in task", "cannot be chained", 8),
        ("length in 5", "expected a list", 10),
        ("length > None", "got None", 9),
        ("length > 'ä' and 'ö' == lenght", "is compared", 9),
        ("'ä' == 'ä' and lenght > 1", "unknown name", 15),
        ("abs(length, 1) > 1", "takes 1 number, got 2", 0),
        ("min(length) > 1", "takes 2 numbers or more", 0),
        ("len(task) > 1", "no functions but", 0),
        ("task.upper() == 'R'", "no functions but", 0),
        ("task.startswith(1)", "one string", 0),
        ("abs(x=length) > 1", "plain arguments", 0),
        ("max(*goal) > 1", "plain arguments", 0),
        (f"1{'0' * 400} + length > 1", "too large", 0),
    ],
)
def test_faults_are_shown_where_they_are(text, message, caret):
    with pytest.raises(FieldError, match=message) as caught:
        mask(text)
    _, shown, below = str(caught.value).split("\n")
    assert shown.strip() == text[:100]
    assert below == "  " + " " * caret + "^"


@pytest.mark.parametrize("text", ["length >", "length = 1", "length > 'a", "length > 1)", "not"])
def test_what_is_no_python_is_shown(text):
    with pytest.raises(FieldError) as caught:
        mask(text)
    _, shown, below = str(caught.value).split("\n")
    assert shown == f"  {text}"
    assert below.strip() == "^"
    assert len(below) <= len(shown) + 1


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('touch /tmp/never')",
        "().__class__.__bases__[0].__subclasses__()",
        "task.__class__ == 1",
        "(lambda: True)()",
        "[x for x in (1,)]",
        "(x := 5) > 1",
        "f'{length}' == '1'",
        "done; done",
        "{1: 2}",
        "[length][0] > 1",
        "length @ length > 1",
        "length << 9 > 1",
        "length > 1j",
        "b'a' == b'a'",
        "...",
        "await done",
        "(yield)",
        "print",
        "open('/etc/passwd')",
        "task.format(1) == ''",
        "'%s' % task == ''",
        "'a' * 10 == task",
        "length\0 > 1",
        "",
        "   ",
        "#",
        "9" * 5000 + " > length",
        "not " * 400 + "done",
        "(" * 300 + "done" + ")" * 300,
        "-" * 1500 + "length > 1",
        "done" + " and done" * 3000,
        "length > 1" + " + 1" * 400,
        None,
        5,
    ],
)
def test_nothing_else_means_anything(text):
    with pytest.raises(FieldError):
        mask(text)


def test_powers_are_floats_and_cost_nothing():
    assert mask("9 ** 9 ** 9 ** 9 ** 9 > length") == [True] * COUNT
    assert mask("2 ** 0.5 * 2 ** 0.5 > 2") == [True] * COUNT


def test_large_integers_are_compared_exactly():
    values = {"seed": np.array([2**62, 2**62 + 1, -1]), "state": np.array([2**64 - 1, 0, 1], np.uint64)}
    assert Where(f"seed == {2**62 + 1}").mask(values, 3).tolist() == [False, True, False]
    assert Where(f"state == {2**64 - 1}").mask(values, 3).tolist() == [True, False, False]
    assert Where("state >= 0 > seed").mask(values, 3).tolist() == [False, False, True]


@pytest.fixture
def buffer(tmp_path):
    fields = {"reward": "float32", "terminated": "bool", "truncated": ("bool", 1)}
    with ReplayBuffer(tmp_path / "data", fields=fields, meta_fields={"length": "int", "nested.name": "str"}) as made:
        for number in range(6):
            rewards = np.full(number + 1, 0.1, np.float32)
            last = np.arange(number + 1) == number
            made.store_episode(
                reward=rewards,
                terminated=last & (number % 2 == 0),
                length=100 + number,
                **{"nested.name": f"n{number}"},
            )
        made.delete(1)
        yield made


@pytest.mark.parametrize("rows", [4, 1 << 20])
def test_values_of_episodes(buffer, monkeypatch, rows):
    small_sizes(monkeypatch, episode_rows=rows)  # returns are summed in stretches
    values = {}

    def looked_at(found):
        values.update(found)
        return found["index"] >= 0

    buffer.dataset(timestep_level=True, episodes=looked_at)
    assert set(values) == {
        "index",
        "id",
        "label",
        "length",
        "complete",
        "has_final",
        "terminated",
        "episode_return",
        "nested.name",
    }
    assert values["index"].tolist() == [0, 1, 2, 3, 4]
    assert values["id"].tolist() == [0, 2, 3, 4, 5]
    assert values["length"].tolist() == [100, 102, 103, 104, 105]  # the meta field goes first
    assert values["terminated"].tolist() == [True, True, False, True, False]
    for found, episode in zip(values["episode_return"], buffer, strict=True):
        total = 0.0
        for reward in episode["reward"]:
            total += float(reward)
        assert found == total


def test_loaders_take_conditions(buffer):
    chosen = buffer.dataset(timestep_level=True, episodes="nested.name == 'n3' or id == 5", return_indices=True)
    assert set(chosen[np.arange(len(chosen))]["_indices"][:, 0].tolist()) == {2, 4}
    loader = buffer.dataloader(
        batch_size=99, timestep_level=True, episodes="id % 2 == 0 and length > 100", return_indices=True
    )
    (batch,) = list(loader)
    assert batch["_indices"][:, 0].unique().tolist() == [1, 3]
    with pytest.raises(FieldError, match="unknown name 'nonsense'"):
        buffer.dataloader(batch_size=8, episodes="nonsense > 1")
