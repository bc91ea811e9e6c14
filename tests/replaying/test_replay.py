"""Replaying recorded episodes: equal bit for bit where nothing has changed, and the first difference where something
has."""

import json

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from internals import generator_state, restore_generator
from wrappers.matrix import build, needs

from gym_replay import (
    ConcatReplayBuffer,
    ConfigMismatchError,
    EpisodeEvictedError,
    EpisodeStateError,
    Field,
    FieldError,
    MakeEnvError,
    RecordToBuffer,
    ReplayBuffer,
    ReplayReport,
    replay,
)


class Walk(gym.Env):
    """A random walk that is told apart by what decides it.

    Args:
        drift: added to each observation from ``drift_from`` on.
        source: ``"generator"``: the environment's own; ``"inside"``: another one, which only a seeded reset seeds;
            ``"nothing"``: the operating system.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 1}  # noqa: RUF012
    observation_space = spaces.Dict({"place": spaces.Box(-9, 9, (2,), np.float64), "count": spaces.Discrete(99)})
    action_space = spaces.Tuple((spaces.Discrete(3, start=-1), spaces.Dict({"push": spaces.Box(-1, 1, (2,))})))
    alive = 0

    def __init__(self, source="generator", length=5, drift=0.0, drift_from=0, render_mode=None):
        self.source, self.length, self.drift, self.drift_from = source, length, drift, drift_from
        self.render_mode = render_mode
        self.inside = np.random.default_rng()
        self.base = 0
        Walk.alive += 1

    def close(self):
        Walk.alive -= 1

    def _noise(self):
        if self.source == "generator":
            return self.np_random.random(2)
        return (self.inside if self.source == "inside" else np.random.default_rng()).random(2)

    def _observation(self):
        place = self.place + (self.drift if self.t >= self.drift_from else 0.0)
        return {"place": place, "count": self.base + self.t}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.inside = np.random.default_rng(seed)
        self.base = (options or {}).get("base", 0)
        self.t = 0
        self.place = self._noise()
        return self._observation(), {}

    def step(self, action):
        self.t += 1
        step, parts = action
        self.place = self.place + self._noise() * step + parts["push"]
        return self._observation(), float(self.place.sum()) / 3, self.t >= self.length, False, {}

    def render(self):
        return np.concatenate((self.place, [self.t]))


@pytest.fixture(autouse=True)
def registered():
    gym.register("Walk-v0", Walk, disable_env_checker=True)
    before = Walk.alive
    yield
    del gym.registry["Walk-v0"]
    assert Walk.alive == before, "an environment was left open, or one that was passed in was closed"


@pytest.fixture
def opened():
    """Makes environments that the test may leave open."""
    made = []

    def make(*args, **kwargs):
        made.append(Walk(*args, **kwargs))
        return made[-1]

    yield make
    for env in made:
        env.close()


def record(env, folder, seeds, *, limit=1000, options=None, **arguments):
    """One episode for each seed, and an open buffer of them."""
    env = RecordToBuffer(env, folder, **arguments)
    env.action_space.seed(5)
    for seed in seeds:
        env.reset(seed=seed, options=options)
        for _ in range(limit):
            if any(env.step(env.action_space.sample())[2:4]):
                break
    env.close()
    return ReplayBuffer.from_folder(folder)


def statuses(buffer, **options):
    return [replay(buffer, index, **options).status for index in range(len(buffer))]


# Environments of which every episode replays: where a limit is given, all but the last one are cut.
ENVIRONMENTS = {
    "CartPole-v1": 500,
    "Pendulum-v1": 60,
    "FrozenLake-v1": 100,
    "MountainCarContinuous-v0": 60,
    "Blackjack-v1": 100,
    "Taxi-v4": 60,
    "LunarLander-v3": 200,
    "HalfCheetah-v5": 60,
    "Ant-v5": 60,
    "ALE/Pong-v5": 60,
    "PongNoFrameskip-v4": 60,
    "MiniGrid-DoorKey-5x5-v0": 60,
    "FetchPush-v4": 60,
}
FIRST_SEEDED = (3, None, None, None)
NEVER_SEEDED = (None, None, None)


@pytest.mark.filterwarnings("ignore")  # of versions, by the environments themselves
@pytest.mark.parametrize("name", ENVIRONMENTS)
@pytest.mark.parametrize(
    "seeds",
    [
        pytest.param((3, 4, 0), id="each seeded"),
        pytest.param(FIRST_SEEDED, id="first seeded"),
        pytest.param(NEVER_SEEDED, id="never seeded"),
    ],
)
def test_every_recorded_episode_replays_equal(tmp_path, monkeypatch, name, seeds):
    monkeypatch.chdir(tmp_path)  # MuJoCo writes a log of its warnings where it runs
    if name == "ALE/Pong-v5" and seeds is NEVER_SEEDED:
        pytest.skip("its emulator is then seeded by the operating system, where nobody can read the seed")
    buffer = record(build(name), tmp_path / "buffer", seeds, limit=ENVIRONMENTS[name])
    assert len(buffer) == len(seeds)
    reports = [replay(buffer, index) for index in range(len(buffer))]
    assert [report.status for report in reports] == ["equal"] * len(seeds), list(map(str, reports))
    assert all(report.equal and report.step is None and report.what is None for report in reports)
    if seeds[-1] is not None:
        assert [report.origin for report in reports] == [f"seed {seed}" for seed in seeds]


def test_nested_spaces_replay(tmp_path):
    buffer = record(gym.make("Walk-v0"), tmp_path / "a", [0, 1, 2])
    other = record(gym.make("Walk-v0"), tmp_path / "b", [3])
    assert statuses(buffer) == ["equal"] * 3
    assert statuses(ConcatReplayBuffer([buffer, other])) == ["equal"] * 4
    assert replay(buffer, buffer.episode(-1)) == ReplayReport(2, "equal", "seed 2")
    assert str(replay(buffer, 1)) == "episode 1: equal, from seed 1"


def test_a_narrower_stored_dtype_is_compared_as_stored(tmp_path):
    dtypes = {"observation.place": "float16", "observation.count": "uint8"}
    buffer = record(gym.make("Walk-v0"), tmp_path, [0, 1], dtypes=dtypes)
    assert buffer.episode(0)["observation.place"].dtype == np.float16
    assert statuses(buffer) == ["equal"] * 2


def test_actions_that_were_stored_with_less_precision_differ(tmp_path):
    buffer = record(gym.make("Walk-v0"), tmp_path, [0], dtypes={"action.1.push": "float16"})
    report = replay(buffer, 0)
    assert (report.status, report.step, report.what) == ("differs", 0, "reward")


def test_a_cut_episode_replays_without_its_last_truncated_flag(tmp_path):
    buffer = record(gym.make("Walk-v0"), tmp_path, [0, 1], limit=3)
    assert [(episode.complete, episode["truncated"].tolist()) for episode in buffer] == [
        (False, [False, False, True])
    ] * 2
    assert statuses(buffer) == ["equal"] * 2
    buffer.update(0, truncated=[False, True, True])  # of the other steps it is compared
    assert replay(buffer, 0).step == 1
    buffer.close()


def _changed(array, index, value):
    array = array.copy()
    array[index] = value
    return array


@pytest.mark.parametrize(
    ("field", "index", "change", "step", "what"),
    [
        ("observation.place", (0, 1), lambda x: x + 1, -1, "observation"),
        ("observation.place", (1, 0), lambda x: np.nextafter(x, 9), 0, "observation"),
        ("observation.place", (5, 0), lambda x: np.nan, 4, "observation"),
        ("observation.count", 3, lambda x: x + 1, 2, "observation"),
        ("reward", 2, lambda x: np.nextafter(x, 9), 2, "reward"),
        ("terminated", 1, lambda x: True, 1, "terminated"),
        ("terminated", 4, lambda x: False, 4, "terminated"),
        ("truncated", 3, lambda x: True, 3, "truncated"),
        ("truncated", 4, lambda x: True, 4, "truncated"),
    ],
)
def test_the_first_difference_is_found(tmp_path, field, index, change, step, what):
    buffer = record(gym.make("Walk-v0"), tmp_path, [0, 1])
    recorded = buffer.episode(1)[field].copy()
    changed = _changed(recorded, index, change(recorded[index]))
    buffer.update(1, **{field: changed})
    report = replay(buffer, 1)
    assert (report.episode, report.status, report.origin) == (1, "differs", "seed 1")
    assert (report.step, report.what) == (step, what)
    place = f"{field}[{index if np.isscalar(index) else index[0]}]"
    assert place in report.detail
    assert f"{recorded[index]!s}, recorded {changed[index]!s}" in report.detail
    assert str(report).startswith("episode 1: differs, from seed 1")
    assert replay(buffer, 0).equal
    buffer.close()


def test_the_sign_of_zero_is_a_difference(tmp_path):
    class Zero(gym.Env):
        observation_space = spaces.Box(-1, 1, (3,), np.float32)
        action_space = spaces.Discrete(2)
        zero = 0.0

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            return np.zeros(3, np.float32), {}

        def step(self, action):
            return np.array([np.nan, 0, self.zero], np.float32), 0.0, True, False, {}

    env = Zero()
    buffer = record(env, tmp_path, [0])
    assert replay(buffer, 0, env=env).equal  # not a number, and yet the same bits
    env.zero = -0.0
    report = replay(buffer, 0, env=env)
    assert (report.status, report.step) == ("differs", 0)
    assert report.detail == "observation[1]: 1 of 3 values differ, the first at [2]: -0.0, recorded 0.0"


@pytest.mark.parametrize(("drift_from", "step"), [(0, -1), (1, 0), (4, 3)])
def test_a_changed_environment_differs(tmp_path, opened, drift_from, step):
    buffer = record(gym.make("Walk-v0"), tmp_path, [0])
    report = replay(buffer, 0, env=opened(drift=1e-9, drift_from=drift_from))
    assert (report.status, report.step, report.what) == ("differs", step, "observation")


def test_an_observation_that_does_not_fit_differs(tmp_path, opened):
    buffer = record(gym.make("Walk-v0"), tmp_path, [0])
    env = opened()
    env._observation = lambda: {"place": np.zeros(3), "count": 0}
    report = replay(buffer, 0, env=env)
    assert (report.status, report.step, report.what) == ("differs", -1, "observation")
    assert "expected shape (2,)" in report.detail


def test_a_reward_that_does_not_fit_differs(tmp_path, opened):
    buffer = record(gym.make("Walk-v0"), tmp_path, [0])
    env = opened()
    env.step = lambda action: (Walk.step(env, action)[0], [1.0, 2.0], False, False, {})
    report = replay(buffer, 0, env=env)
    assert (report.status, report.step, report.what) == ("differs", 0, "reward")
    assert "field 'reward': expected shape ()" in report.detail


def test_an_environment_that_ends_earlier_differs(tmp_path, opened):
    buffer = record(gym.make("Walk-v0"), tmp_path, [0])
    report = replay(buffer, 0, env=opened(length=2))
    assert (report.step, report.what, report.detail) == (1, "terminated", "terminated[1] is True, recorded False")


def test_an_environment_of_other_spaces_is_refused(tmp_path):
    buffer = record(gym.make("Walk-v0"), tmp_path, [0])
    with pytest.raises(ConfigMismatchError, match="another observation space"):
        replay(buffer, 0, env=gym.make("CartPole-v1"))


def test_an_environment_that_cannot_be_made(tmp_path, opened):
    buffer = record(Walk(), tmp_path, [0])
    with pytest.raises(MakeEnvError, match="no environment spec was recorded"):
        replay(buffer, 0)
    assert replay(buffer, 0, env=opened()).equal


def test_a_buffer_without_an_environment_is_refused(tmp_path):
    buffer = ReplayBuffer(tmp_path, fields={"x": "int"})
    buffer.store_episode(x=[1])
    with pytest.raises(FieldError, match="not made by RecordToBuffer"):
        replay(buffer, 0)


class Foreign(Walk):
    """One whose generator is none that can be kept."""

    def __init__(self, **arguments):
        super().__init__(**arguments)
        self._np_random = np.random.Generator(np.random.MT19937())

    def reset(self, *, seed=None, options=None):
        result = super().reset(seed=seed, options=options)
        self._np_random = np.random.Generator(np.random.MT19937())
        return result


def test_without_seed_or_generator_an_episode_is_not_replayable(tmp_path):
    buffer = record(Foreign(), tmp_path, [None])
    report = replay(buffer, 0, env=(again := Foreign()))
    assert (report.status, report.origin, report.step) == ("not replayable", "", None)
    assert report.detail == "neither a seed nor the state of a generator was kept"
    again.close()


def test_what_depends_on_something_else_is_not_replayable(tmp_path):
    buffer = record(gym.make("Walk-v0", source="nothing"), tmp_path, [0, 1])
    report = replay(buffer, 1)
    assert report.status == "not replayable"
    assert "two replays from seed 1 differ from one another" in report.detail


def test_the_generator_stands_in_for_the_seed(tmp_path):
    buffer = record(gym.make("Walk-v0"), tmp_path, [0, None, None])
    assert [replay(buffer, index).origin for index in range(3)] == ["seed 0", *["the generator's state"] * 2]
    buffer.delete([0, 1])
    assert replay(buffer, 0) == ReplayReport(2, "equal", "the generator's state")
    buffer.close()


class TestLineage:
    """Episodes that only those before them lead to."""

    def test_they_are_executed_from_the_last_seeded_one(self, tmp_path):
        buffer = record(gym.make("Walk-v0", source="inside"), tmp_path, [7, None, 8, None, None])
        reports = [replay(buffer, index) for index in range(5)]
        assert [report.status for report in reports] == ["equal"] * 5
        assert [report.origin for report in reports] == [
            "seed 7",
            "seed 7 of episode 0 and all episodes since",
            "seed 8",
            *["seed 8 of episode 2 and all episodes since"] * 2,
        ]

    def test_a_cut_episode_is_part_of_it(self, tmp_path):
        buffer = record(gym.make("Walk-v0", source="inside"), tmp_path, [7, None, None], limit=2)
        assert statuses(buffer) == ["equal"] * 3

    def test_one_that_is_gone_breaks_it(self, tmp_path):
        buffer = record(gym.make("Walk-v0", source="inside"), tmp_path, [7, None, None])
        buffer.delete(1)
        assert statuses(buffer) == ["equal", "not replayable"]
        buffer.close()

    def test_a_reset_that_was_not_recorded_breaks_it(self, tmp_path):
        env = RecordToBuffer(gym.make("Walk-v0", source="inside"), tmp_path)
        action = env.action_space.sample()
        for seed in (7, None, None):
            env.reset(seed=seed)
        env.step(action)
        env.reset()
        env.step(action)
        env.close()
        assert statuses(env.buffer) == ["not replayable"] * 2

    def test_where_nothing_else_is_known_a_broken_one_says_nothing(self, tmp_path):
        env, again = Foreign(source="inside"), Foreign(source="inside")
        buffer = record(env, tmp_path, [7, None, None])
        assert statuses(buffer, env=again) == ["equal"] * 3
        buffer.update(1, reward=np.zeros(5))
        assert (
            replay(buffer, 2, env=again).detail == "it was not reached from seed 7 of episode 0 and all episodes since"
        )
        buffer.close()
        again.close()

    def test_one_environment_goes_through_a_buffer_in_order(self, tmp_path, opened):
        buffer = record(gym.make("Walk-v0", source="inside"), tmp_path, [7, None, None])
        env = opened(source="inside")
        resets = []
        env.reset = lambda **arguments: resets.append(arguments["seed"]) or Walk.reset(env, **arguments)
        assert statuses(buffer, env=env) == ["equal"] * 3
        assert resets == [7, None, None]  # each went on from the one before

    def test_seeded_episodes_may_depend_on_those_before(self, tmp_path):
        needs("BipedalWalker-v3")
        buffer = record(build("BipedalWalker-v3"), tmp_path, range(10, 14), limit=120)
        assert statuses(buffer) == ["equal"] * 4


def test_options_are_passed_to_reset(tmp_path):
    buffer = record(gym.make("Walk-v0"), tmp_path, [0], options={"base": 40})
    assert buffer.episode(0)["observation.count"][0] == 40
    assert json.loads(buffer.episode(0).meta["episode_options"]) == {"base": 40}
    assert replay(buffer, 0).equal


def test_an_episode_that_was_evicted_meanwhile(tmp_path):
    env = RecordToBuffer(gym.make("Walk-v0"), tmp_path, max_episodes=2, circular=True)
    for seed in range(2):
        env.reset(seed=seed)
        while not env.step(env.action_space.sample())[2]:
            pass
    episode = env.buffer.episode(0)
    env.reset(seed=2)
    while not env.step(env.action_space.sample())[2]:
        pass
    with pytest.raises(EpisodeEvictedError):
        replay(env.buffer, episode)
    assert statuses(env.buffer) == ["equal"] * 2
    env.close()


def test_an_episode_that_is_evicted_while_it_replays(tmp_path, opened):
    env = RecordToBuffer(gym.make("Walk-v0"), tmp_path, max_episodes=2, circular=True)

    def record_one(seed):
        env.reset(seed=seed)
        while not env.step(env.action_space.sample())[2]:
            pass

    class Slow(gym.Wrapper):
        def step(self, action):
            result = self.env.step(action)
            if result[2]:
                record_one(2)
            return result

    record_one(0)
    record_one(1)
    with pytest.raises(EpisodeEvictedError):
        replay(env.buffer, 0, env=Slow(opened()))
    env.close()


class TestRendering:
    def test_it_gives_a_frame_of_each_state(self, tmp_path, opened):
        buffer = record(gym.make("Walk-v0"), tmp_path, [0, 1])
        for index, episode in enumerate(buffer):
            frames = list(replay(buffer, index, render=True))
            expected = np.column_stack((episode["observation.place"], episode["observation.count"]))
            np.testing.assert_array_equal(frames, expected)
        assert len(list(replay(buffer, 0, env=opened(render_mode="rgb_array"), render=True))) == 6

    def test_pictures(self, tmp_path):
        pytest.importorskip("pygame")
        buffer = record(gym.make("CartPole-v1"), tmp_path, [0])
        frames = list(replay(buffer, 0, render=True))
        assert len(frames) == len(buffer.episode(0)) + 1
        assert {(frame.shape, frame.dtype.name) for frame in frames} == {((400, 600, 3), "uint8")}
        assert (frames[0] != frames[-1]).any()

    def test_after_the_episodes_that_led_to_it(self, tmp_path):
        buffer = record(gym.make("Walk-v0", source="inside"), tmp_path, [7, None])
        frames = list(replay(buffer, 1, render=True))
        np.testing.assert_array_equal(np.array(frames)[:, :2], buffer.episode(1)["observation.place"])

    def test_there_are_no_frames_of_what_differs(self, tmp_path, opened):
        buffer = record(gym.make("Walk-v0"), tmp_path, [0])
        frames = replay(buffer, 0, env=opened(drift=1, drift_from=3, render_mode="rgb_array"), render=True)
        with pytest.raises(EpisodeStateError, match="episode 0: differs, from seed 0 at step 2"):
            next(frames)

    def test_an_environment_that_cannot_render_is_refused(self, tmp_path, opened):
        buffer = record(gym.make("Walk-v0"), tmp_path, [0])
        with pytest.raises(FieldError, match="no render mode"):
            replay(buffer, 0, env=opened(), render=True)


class TestGeneratorState:
    @pytest.mark.parametrize("odd", [False, True])
    def test_it_comes_back(self, odd):
        env, other = gym.make("FrozenLake-v1"), gym.make("FrozenLake-v1")
        env.reset(seed=3)
        if odd:  # half of a 64-bit number is left over
            env.np_random.integers(9, dtype=np.int32)
        kept = generator_state(env)
        assert (kept.dtype, kept.shape) == (np.uint64, (5,))
        assert bool(kept[4] >> np.uint64(32)) == odd
        expected = env.np_random.integers(1 << 30, size=9, dtype=np.int32)
        assert restore_generator(other, kept)
        np.testing.assert_array_equal(generator_state(other), kept)
        np.testing.assert_array_equal(other.np_random.integers(1 << 30, size=9, dtype=np.int32), expected)

    def test_looking_creates_no_generator(self):
        env = gym.make("CartPole-v1")
        assert not generator_state(env).any()
        assert env.unwrapped._np_random is None
        assert generator_state(env, create=True).any()
        np.testing.assert_array_equal(generator_state(env), generator_state(env, create=True))

    def test_one_that_others_hold_is_changed_in_place(self):
        env = gym.make("CartPole-v1")
        env.reset(seed=0)
        kept, held = generator_state(env), env.np_random
        first = held.random()
        restore_generator(env, kept)
        assert env.np_random is held
        assert held.random() == first

    @pytest.mark.parametrize("kind", [np.random.MT19937, np.random.PCG64DXSM])
    def test_other_generators_are_left_alone(self, kind):
        env = gym.make("CartPole-v1")
        env.reset(seed=0)
        kept = generator_state(env)
        env.unwrapped.np_random = other = np.random.Generator(kind(1))
        assert not generator_state(env, create=True).any()
        assert not restore_generator(env, kept)
        assert env.np_random is other

    def test_a_property_of_the_environments_own_is_not_called(self):
        class Own(gym.Env):
            @property
            def np_random(self):
                raise AssertionError

        assert not generator_state(Own(), create=True).any()

    def test_five_zeros_change_nothing(self):
        env = gym.make("CartPole-v1")
        assert not restore_generator(env, np.zeros(5, np.uint64))
        assert env.unwrapped._np_random is None

    @pytest.mark.parametrize("numbers", [[1, 2, 3, 4, 0], [1, 2, 3, 5, 1 << 33]])
    def test_what_is_no_state_is_refused(self, numbers):
        with pytest.raises(FieldError, match="no state of a PCG64 generator"):
            restore_generator(gym.make("CartPole-v1"), np.array(numbers, np.uint64))


def test_the_recorder_keeps_the_state_before_the_reset(tmp_path):
    bare, env = gym.make("CartPole-v1"), RecordToBuffer(gym.make("CartPole-v1"), tmp_path)
    bare.reset(seed=0)
    env.reset(seed=0)
    env.step(0)
    kept = generator_state(bare)
    env.reset()
    env.step(0)
    env.close()
    np.testing.assert_array_equal(env.buffer.episode(1).meta["episode_rng"], kept)
    assert env.buffer.metadata.meta_fields["episode_rng"] == Field("uint64", (5,))


def test_actions_that_were_stored_in_a_wider_dtype_are_given_as_they_were(tmp_path):
    env = RecordToBuffer(gym.make("Pendulum-v1"), tmp_path, dtypes={"action": "float64"})
    env.reset(seed=1)
    for t in range(20):
        env.step(np.array([t / 7]))  # float64, as a policy of plain NumPy gives them
    env.close()
    assert env.buffer.episode(0)["action"].dtype == np.float64
    assert replay(env.buffer, 0).status == "equal"
