"""buffer.sample against a plain list of what was played: committed, open, in rings, by priority, from elsewhere."""

import os
import threading
from contextlib import suppress
from dataclasses import dataclass, field

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from internals import small_sizes
from loading_helpers import assert_equal, world, worlds

from gym_replay import (
    BufferClosedError,
    ConcatReplayBuffer,
    EmptyBufferError,
    Field,
    FieldError,
    PrioritizedSampler,
    RecordToBuffer,
    ReplayBuffer,
    n_step_loader,
    statistics,
)
from gym_replay.wrappers import vector

DISCOUNT = 0.9


@dataclass
class Played:
    """The transitions of one episode, as lists."""

    observations: list = field(default_factory=list)
    actions: list = field(default_factory=list)
    rewards: list = field(default_factory=list)
    terminated: list = field(default_factory=list)


class Told(gym.Env):
    """Observation t of episode k is (k, t); episodes have the lengths that are given, in turn.

    Attributes:
        played: every episode so far by its k.
    """

    observation_space = spaces.Box(-1e6, 1e6, (2,), np.float32)
    action_space = spaces.Discrete(100)

    def __init__(self, lengths=(5,), first=0, played=None, info=False):
        self.lengths, self.info = lengths, info
        self.k = first - 1
        self.played = {} if played is None else played
        self.count = -1

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.k, self.t, self.count = self.k + 1, 0, self.count + 1
        self.played[self.k] = Played([(self.k, 0)])
        return np.array([self.k, 0], np.float32), self._info()

    def _info(self):
        return {"speed": self.t if self.t < 7 else self.t + 0.5} if self.info else {}

    def step(self, action):
        self.t += 1
        length = self.lengths[self.count % len(self.lengths)]
        reward, terminated, truncated = self.k + self.t / 7, self.t >= length, False
        if terminated and self.k % 3 == 2:
            terminated, truncated = False, True
        one = self.played[self.k]
        one.observations.append((self.k, self.t))
        one.actions.append(int(action))
        one.rewards.append(reward)
        one.terminated.append(terminated)
        return np.array([self.k, self.t], np.float32), reward, terminated, truncated, self._info()


def live_steps(buffer, played, opened=()):
    """The transitions, as (k, t), that are committed, and those of the episodes that are open."""
    committed = [int(episode["observation"][0, 0]) for episode in buffer]
    return {(k, t) for k in [*committed, *opened] for t in range(len(played[k].actions))}


def check(batch, played, steps, n_steps=1):
    """Each sample is one of these transitions, with what the environment said n steps on."""
    for index in range(len(batch["action"])):
        k, t = (int(value) for value in batch["observation"][index])
        assert (k, t) in steps
        one = played[k]
        m = min(n_steps, len(one.actions) - t)
        assert tuple(batch["next_observation"][index].tolist()) == one.observations[t + m]
        assert int(batch["action"][index]) == one.actions[t]
        assert batch["reward"][index] == pytest.approx(one.rewards[t], rel=1e-6)
        assert bool(batch["terminated"][index]) == one.terminated[t]
        assert int(batch["n_step_lens"][index]) == m
        expected = sum(DISCOUNT**j * one.rewards[t + j] for j in range(m))
        assert batch["n_step_return"][index] == pytest.approx(expected, rel=1e-5)
        ended = any(one.terminated[t : t + m])
        assert batch["n_step_discount"][index] == pytest.approx(0 if ended else DISCOUNT**m, rel=1e-6)


def assert_all_come(buffer, steps, n=64, **options):
    """All of these transitions are drawn, sooner or later."""
    found = set()
    for _ in range(200):
        batch = buffer.sample(n, **options)
        found |= {tuple(map(int, pair)) for pair in batch["observation"].tolist()}
        if found == steps:
            return
    raise AssertionError(f"never drawn: {steps - found}")


@settings(max_examples=15)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=5),
    st.lists(st.sampled_from(["step", "step", "step", "sample", "open", "reset"]), min_size=5, max_size=60),
    st.integers(1, 4),
    st.booleans(),
    st.booleans(),
)
def test_samples_are_what_was_played(tmp_path_factory, lengths, does, n_steps, is_ring, is_early):
    env = Told(lengths)
    limits = {"circular": True, "max_steps": 12} if is_ring else {}
    with pytest.MonkeyPatch.context() as patch:
        if is_early:
            small_sizes(patch, chunk_rows=2)
        recorder = RecordToBuffer(env, tmp_path_factory.mktemp("told"), **limits)
        recorder.reset(seed=0)
        buffer, options = recorder.buffer, {"n_steps": n_steps, "discount": DISCOUNT}
        for number, what in enumerate(does):
            if what == "step":
                _, _, terminated, truncated, _ = recorder.step(number % 100)
                if terminated or truncated:
                    recorder.reset()
            elif what == "reset":
                recorder.reset()
            else:
                opened = (env.k,) if what == "open" else ()
                steps = live_steps(buffer, env.played, opened)
                asked = options | {"include_open": what == "open"}
                if steps:
                    check(buffer.sample(16, **asked), env.played, steps, n_steps)
                else:
                    with pytest.raises(EmptyBufferError):
                        buffer.sample(16, **asked)
        steps = live_steps(buffer, env.played, (env.k,))
        if steps:
            assert_all_come(buffer, steps, include_open=True)
        recorder.close()


@pytest.mark.parametrize("mode", ["NextStep", "SameStep", "Disabled"])
def test_the_open_episodes_of_a_vector_environment(tmp_path, mode, monkeypatch):
    small_sizes(monkeypatch, vector_staging_bytes=600)  # so that most rows are in the file
    played: dict[int, Played] = {}
    envs = [lambda i=i: Told((3 + 2 * i, 40), 1000 * i, played) for i in range(3)]
    made = gym.vector.SyncVectorEnv(envs, autoreset_mode=gym.vector.AutoresetMode(mode))
    recorder = vector.RecordToBuffer(made, tmp_path)
    recorder.reset(seed=0)
    inner = [env.unwrapped for env in made.envs]
    for number in range(45):
        _, _, terminated, truncated, _ = recorder.step(np.array([number, 1, 2]))
        done = terminated | truncated
        opened = [env.k for env, ended in zip(inner, done, strict=True) if mode == "SameStep" or not ended]
        steps = live_steps(recorder.buffer, played, opened)
        if number > 8:  # before, ends are on hold until the mode is known
            batch = recorder.buffer.sample(32, n_steps=2, discount=DISCOUNT, include_open=True)
            check(batch, played, steps, 2)
        if mode == "Disabled" and done.any():
            recorder.reset(options={"reset_mask": done})
    assert_all_come(recorder.buffer, steps, 256, include_open=True)
    recorder.close()


def test_draws_are_uniform(tmp_path):
    env = Told((10, 30, 200))
    recorder = RecordToBuffer(env, tmp_path)
    recorder.reset(seed=0)
    for number in range(100):
        _, _, terminated, truncated, _ = recorder.step(number)
        if terminated or truncated:
            recorder.reset()
    for asked, total in (({}, 40), ({"include_open": True}, 100)):
        batch = recorder.buffer.sample(50_000, seed=1, **asked)
        _, counts = batch["action"].unique(return_counts=True)
        expected = 50_000 / total
        assert len(counts) == total
        # The sum of squares over the expectation is chi-squared with total - 1 degrees of freedom.
        squares = float((((counts - expected) ** 2) / expected).sum())
        assert abs(squares - (total - 1)) < 5 * (2 * (total - 1)) ** 0.5
    recorder.close()


@settings(max_examples=12)
@given(worlds(), st.integers(1, 4), st.booleans())
def test_entries_are_those_of_the_loader(tmp_path_factory, made, n_steps, with_reward):
    options = {"n_steps": n_steps, "next_fields": ("observation", "seen", "action"), "sequence_fields": ("words",)}
    options |= {"discount": 0.5} if with_reward else {}
    options |= {"return_indices": True}
    with world(tmp_path_factory.mktemp("world"), **made) as (buffer, _):
        try:
            loader = n_step_loader(buffer, 64, **options)
        except EmptyBufferError:
            with pytest.raises(EmptyBufferError):
                buffer.sample(4, **options)
            return
        known = {}
        for batch in loader:
            for index, key in enumerate(map(tuple, batch["_indices"].tolist())):
                known[key] = {name: values[index] for name, values in batch.items()}
        sampled = buffer.sample(50, **options)
        assert [*sampled] == [*batch]
        assert {name: getattr(value, "dtype", None) for name, value in sampled.items()} == {
            name: getattr(value, "dtype", None) for name, value in batch.items()
        }
        for index, key in enumerate(map(tuple, sampled["_indices"].tolist())):
            for name, values in sampled.items():
                value, expected = values[index], known[key][name]
                if not isinstance(value, str) and value.shape != expected.shape:  # padded to other widths
                    common = tuple(slice(0, min(pair)) for pair in zip(value.shape, expected.shape, strict=True))
                    assert value.sum() == value[common].sum()
                    value, expected = value[common], expected[common]
                assert value == expected if isinstance(value, str) else torch.equal(value, expected)


class Rich(Told):
    """With a ragged part and a picture, and infos whose type becomes wider in the middle of an episode."""

    observation_space = spaces.Dict(
        {
            "at": Told.observation_space,
            "words": spaces.Sequence(spaces.Box(0, 100, (), np.int16), stack=True),
            "seen": spaces.Box(0, 255, (12, 12, 3), np.uint8),
        }
    )

    def _rich(self, at):
        seen = np.full((12, 12, 3), int(at.sum()) % 256, np.uint8)
        return {"at": at, "words": np.arange(int(at[1]) % 4, dtype=np.int16) + int(at[1]), "seen": seen}

    def reset(self, **options):
        at, info = super().reset(**options)
        return self._rich(at), info

    def step(self, action):
        at, *rest = super().step(action)
        return self._rich(at), *rest


@pytest.mark.parametrize("first_look", [0, 9])
@pytest.mark.parametrize("count", [0, 2])
@pytest.mark.parametrize("is_ragged", [True, False])
def test_open_rows_of_every_kind(tmp_path, first_look, count, is_ragged, monkeypatch):
    """Ragged and encoded parts, infos that are widened, meta fields, and rows that were written early."""
    small_sizes(monkeypatch, chunk_rows=4, ragged_chunk_rows=4)
    options = {"record_info": True, "codecs": {"observation.seen": "zstd"}}
    options |= {"meta_fields": {"task": "str", "level": "int"}, "extra_fields": {"weight": "float"}}

    def make():
        env = Rich((6, 20), info=True)
        return env if is_ragged else gym.wrappers.FilterObservation(env, ["at", "seen"])

    if count:
        mode = gym.vector.AutoresetMode.NEXT_STEP
        recorder = vector.RecordToBuffer(
            gym.vector.SyncVectorEnv([make] * count, autoreset_mode=mode), tmp_path, **options
        )
    else:
        recorder = RecordToBuffer(make(), tmp_path, **options)
    recorder.reset(seed=0)
    recorder.annotate(task="stack", level=3)
    for t in range(19):
        recorder.annotate_step(weight=np.full(count, t / 2) if count else t / 2)
        _, _, terminated, truncated, _ = recorder.step(np.full(count, t) if count else t)
        if not count and (terminated or truncated):
            recorder.reset()
        if t >= first_look:
            batch = recorder.buffer.sample(40, include_open=True)
            for index, (k, at) in enumerate(batch["observation.at"].long().tolist()):
                assert (batch["observation.seen"][index] == k + at).all()
                assert (batch["next_observation.seen"][index] == k + at + 1).all()
                assert batch["next_observation.at"][index].tolist() == [k, at + 1]
                assert batch["info.speed"][index] == (at if at < 7 else at + 0.5)
                assert (batch["task"][index], int(batch["level"][index])) == (("stack", 3) if k == 0 else ("", 0))
                if k == 0:
                    assert batch["weight"][index] == at / 2
                if is_ragged:
                    lens = int(batch["observation.words_lens"][index])
                    assert batch["observation.words"][index][:lens].tolist() == [at + j for j in range(at % 4)]
                    assert int(batch["next_observation.words_lens"][index]) == (at + 1) % 4
    assert batch["info.speed"].dtype == torch.float32
    recorder.close()


def test_a_long_open_episode_is_followed_from_the_middle_on(tmp_path, monkeypatch):
    """What went to the files before the first look is read once, and is among the samples."""
    small_sizes(monkeypatch, chunk_rows=4)
    env = Told((1000,))
    recorder = RecordToBuffer(env, tmp_path)
    recorder.reset(seed=0)
    for number in range(23):
        recorder.step(number)
    assert_all_come(recorder.buffer, {(0, t) for t in range(23)}, include_open=True)
    recorder.close()


def test_episodes_that_are_stored_by_hand(tmp_path):
    fields = {"observation": Field("float32", (2,), state=True), "action": "int", "reward": "float64"}
    made = ReplayBuffer(tmp_path / "a", fields=fields, meta_fields={"task": "str"})
    with made as buffer, buffer.one_episode(task="push"):
        for t in range(6):
            buffer.store(observation=[0, t], action=t, reward=1.0)
            if t == 0:  # what it led to is not known yet
                with pytest.raises(EmptyBufferError, match="step the environment once"):
                    buffer.sample(4, include_open=True)
            else:
                batch = buffer.sample(30, include_open=True)
                assert set(batch["action"].tolist()) == set(range(t))
                assert_equal(batch["next_observation"][:, 1], batch["action"].numpy() + np.float32(1))
                assert batch["task"] == ["push"] * 30
    plain = {"x": "float32"}
    with ReplayBuffer(tmp_path / "b", fields=plain) as buffer, buffer.one_episode():
        for t in range(5):
            buffer.store(x=t)
        batch = buffer.sample(30, include_open=True)  # rows 0 .. 3 are staged, and the last has no next one
        assert set(batch["x"].tolist()) == {0, 1, 2}
        assert_equal(batch["next_x"], batch["x"].numpy() + 1)


def test_what_there_is_not_is_said(tmp_path):
    recorder = RecordToBuffer(Told(), tmp_path)
    buffer = recorder.buffer
    with pytest.raises(EmptyBufferError, match=r"committed when it ends.*include_open=True"):
        buffer.sample(2)
    with pytest.raises(EmptyBufferError, match="step the environment once"):
        buffer.sample(2, include_open=True)
    recorder.reset(seed=0)
    with pytest.raises(EmptyBufferError, match="step the environment once"):
        buffer.sample(2, include_open=True)
    recorder.step(0)
    assert buffer.sample(2, include_open=True)["action"].tolist() == [0, 0]
    for options, error, said in (
        ({"include_open": True, "filter_meta": {"episode_return": 1.0}}, FieldError, "filter_meta"),
        ({"include_open": True, "normalize": ["observation"]}, FieldError, "statistics"),
        ({"include_open": True, "current_fields": ["observation", "episode_return"]}, FieldError, "has ended"),
        ({"shuffle": True}, FieldError, "option of loaders"),
        ({"sampler": 3}, FieldError, "PrioritizedSampler"),
        ({"seed": -1}, FieldError, "seed"),
        ({"seed": 1, "generator": torch.Generator()}, FieldError, "exclude"),
        ({"generator": np.random.default_rng()}, FieldError, r"torch\.Generator"),
    ):
        with pytest.raises(error, match=said):
            buffer.sample(2, **options)
    for count in (0, -1, 2.5, True):
        with pytest.raises(FieldError, match="n: expected an integer"):
            buffer.sample(count, include_open=True)
    recorder.close()
    for options, error, said in (
        ({"n_step": 3}, TypeError, "n_steps"),
        ({"length": 3}, FieldError, "window"),
        ({"filter_meta": {"episode_return": -5.0}}, EmptyBufferError, "filter_meta"),
    ):
        with pytest.raises(error, match=said):
            buffer.sample(2, **options)
    buffer.close()
    with pytest.raises(BufferClosedError):
        buffer.sample(2)


def stored(folder, *lengths, **options):
    """A buffer with episodes of these lengths, whose actions are numbered over all of them."""
    fields = {"observation": Field("float32", (2,), state=True), "action": "int", "reward": "float64"}
    buffer = ReplayBuffer(folder, fields=fields, **options)
    add(buffer, *lengths)
    return buffer


def add(buffer, *lengths, first=None):
    for length in lengths:
        begin = int(buffer.num_steps if first is None else first)
        steps = np.arange(begin, begin + length)
        observations = np.stack((np.arange(length + 1) + begin, np.zeros(length + 1)), 1)
        buffer.store_episode(observation=observations, action=steps, reward=steps / 2)
        first = None if first is None else first + length


def test_seeds_and_generators(tmp_path):
    with stored(tmp_path, 50, 30) as buffer:

        def draws(count=3, **options):
            return [buffer.sample(8, **options)["action"].tolist() for _ in range(count)]

        torch.manual_seed(3)
        first = draws(n_steps=2)
        torch.manual_seed(3)
        assert draws(n_steps=2) == first
        assert len({str(one) for one in first}) == 3
        one = torch.Generator().manual_seed(7)
        given_generator = draws(generator=one)
        one.manual_seed(7)
        assert draws(generator=one) == given_generator
        seeded = draws(seed=7)
        assert len({str(one) for one in seeded}) == 3  # one sequence, which the calls go on in
        with ReplayBuffer.from_folder(tmp_path, read_only=True) as other:
            assert [other.sample(8, seed=7)["action"].tolist() for _ in range(3)] == seeded
        names = [buffer.sample(4, current_fields=["action"], seed=1)["action"].tolist() for _ in range(2)]
        assert names[0] != names[1]  # lists of equal names are the same option


def test_options_of_datasets(tmp_path):
    with stored(tmp_path, 50, 30) as buffer:
        found = statistics(buffer)
        batch = buffer.sample(
            64,
            episodes=[0],
            filter_fields={"action": list(range(10, 20))},
            dtype=torch.float64,
            current_fields=("observation", "action"),
        )
        assert set(batch["action"].tolist()) <= set(range(10, 20))
        assert batch["observation"].dtype == torch.float64
        scaled = buffer.sample(64, normalize=found, transform=lambda batch: batch | {"twice": 2 * batch["action"]})
        assert scaled["observation"][:, 0].abs().max() < 2
        assert torch.equal(scaled["twice"], 2 * scaled["action"])
        d4rl = buffer.sample(5, device="cpu", fieldname_map={"action": "a"})
        assert "a" in d4rl


def test_commits_of_others_are_seen(tmp_path):
    with stored(tmp_path / "a", 5) as writer, ReplayBuffer.from_folder(tmp_path / "a", read_only=True) as reader:
        assert set(reader.sample(64)["action"].tolist()) == set(range(5))
        add(writer, 7)
        assert set(reader.sample(512)["action"].tolist()) == set(range(12))
        assert len(reader) == 2
        with stored(tmp_path / "b", 3) as second, ConcatReplayBuffer([tmp_path / "a", tmp_path / "b"]) as both:
            assert len(both.sample(512)["action"].unique()) == 12
            add(second, 20)
            assert len(both.sample(512)["action"].unique()) == 23
            assert len(both) == 4
            with pytest.raises(FieldError, match="one buffer"):
                both.sample(3, include_open=True)
            with pytest.raises(FieldError, match="one buffer"):
                both.sample(3, sampler=PrioritizedSampler())
        writer.update(0, reward=np.full(5, 100.0))
        assert reader.sample(512)["reward"].max() == 100
        writer.add_field("more", "int")
        assert (reader.sample(4)["more"] == 0).all()
        writer.delete([0])
        assert set(reader.sample(512)["action"].tolist()) == set(range(5, 12))
        writer.clear()
        with pytest.raises(EmptyBufferError, match="nothing is committed"):
            reader.sample(4)
        add(writer, 2)
        assert set(reader.sample(64)["action"].tolist()) == {0, 1}


def test_a_forked_child_has_nothing_open(tmp_path):
    recorder = RecordToBuffer(Told((50,)), tmp_path)
    recorder.reset(seed=0)
    recorder.step(1)
    assert len(recorder.buffer.sample(3, include_open=True)["action"]) == 3
    child = os.fork()
    if child == 0:
        code = 1
        with suppress(BaseException):
            try:
                recorder.buffer.sample(3, include_open=True)
            except EmptyBufferError:
                code = 0
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    recorder.close()


def test_a_ring_that_is_written_meanwhile(tmp_path):
    """From another thread, through the same object: no torn transition, and none of what has left."""
    env = Told((3, 8, 2, 13))
    recorder = RecordToBuffer(env, tmp_path, circular=True, max_steps=40)
    recorder.reset(seed=0)
    recorder.step(1)
    stop, failures = threading.Event(), []

    def learn():
        try:
            while not stop.is_set():
                batch = recorder.buffer.sample(64, include_open=True)
                k, t = batch["observation"].unbind(1)
                assert torch.equal(batch["next_observation"], torch.stack((k, t + 1), 1))
                assert torch.allclose(batch["reward"], k + (t + 1) / 7)
        except BaseException as error:
            failures.append(error)

    learner = threading.Thread(target=learn)
    learner.start()
    try:
        for _ in range(3000):
            _, _, terminated, truncated, _ = recorder.step(1)
            if terminated or truncated:
                recorder.reset()
    finally:
        stop.set()
        learner.join()
    recorder.close()
    assert not failures


# --- by priority ---


def test_priorities_stay_with_their_transitions(tmp_path):
    """Through commits and evictions, a transition keeps the priority that it was given."""
    sampler, known = PrioritizedSampler(alpha=1.0, beta=0.0, epsilon=0.0), {}
    with stored(tmp_path, 4, circular=True, max_steps=40) as buffer:
        written = 4
        for round_ in range(60):
            batch = buffer.sample(32, sampler=sampler, seed=2)
            actions = batch["action"].tolist()
            live = {int(step) for episode in buffer for step in episode["action"]}
            assert set(actions) <= live
            priorities = sampler.priorities(batch["_samples"])
            for action, priority in zip(actions, priorities.tolist(), strict=True):
                assert priority == known.get(action, sampler.max_priority)
            new = {action: 1.0 + (action * 7 + round_) % 5 for action in actions}
            sampler.update(batch["_samples"], [new[action] for action in actions])
            known |= new
            if round_ % 2:
                add(buffer, 1 + round_ % 9, first=written)
                written += 1 + round_ % 9
                for action in range(written - 1 - round_ % 9, written):
                    known[action] = sampler.max_priority
        assert len(known) > 100
        assert buffer.num_steps <= 40


def test_probabilities_and_weights(tmp_path):
    sampler = PrioritizedSampler(alpha=1.0, beta=1.0, epsilon=0.0)
    env = Told((10, 100))
    recorder = RecordToBuffer(env, tmp_path)
    recorder.reset(seed=0)
    for number in range(16):
        _, _, terminated, _, _ = recorder.step(number)
        if number < 10:
            before = recorder.buffer.sample(8, sampler=sampler, include_open=True)
            assert set(before["_samples"].tolist()) == ({-1} if number < 9 else set(before["_samples"].tolist()))
            sampler.update(before["_samples"], torch.full((8,), 5.0))  # of open ones nothing is kept
            assert sampler.max_priority == (1.0 if number < 9 else 5.0)
        if terminated:
            recorder.reset()
    sampler.update(np.arange(10), np.arange(10) / 2)  # one of them is 4.5; the largest ever given is 5
    values = np.append(np.arange(10) / 2, np.full(6, 5.0))
    batch = recorder.buffer.sample(40_000, sampler=sampler, include_open=True, seed=0)
    counts = np.bincount(batch["action"].numpy(), minlength=16)
    np.testing.assert_allclose(counts / 40_000, values / values.sum(), atol=0.004)
    assert ((batch["_samples"] == -1) == (batch["action"] >= 10)).all()
    expected = values[batch["action"]].min() / values[batch["action"]]
    np.testing.assert_allclose(batch["_weights"].numpy(), expected, rtol=1e-5)
    recorder.close()


def test_n_steps_and_goals_by_priority(tmp_path):
    from gym_replay import GoalMixture, GoalSampler

    goals = GoalSampler(value=GoalMixture(0.0, 1.0, 0.0))
    with stored(tmp_path, 20, 20) as buffer:
        options = {"n_steps": 3, "sampler": PrioritizedSampler(), "goal_sampler": goals, "current_fields": ("action",)}
        first, second = (buffer.sample(200, **options) for _ in range(2))
        for batch in (first, second):
            assert (batch["value_goal_observation"][:, 0] > batch["action"]).all()
        assert len(set((first["value_goal_observation"][:, 0] - first["action"]).tolist())) > 3
