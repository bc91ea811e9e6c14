"""play() with a function in the person's role: what is recorded, what becomes of episodes, and how it ends."""

import os
import signal

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st

from gym_replay import (
    BufferLockedError,
    ConfigMismatchError,
    FieldError,
    Intent,
    RecordToBuffer,
    ReplayBuffer,
    check_buffer,
    n_step_loader,
    play,
    timestep_loader,
)

LENGTH = 4


class Count(gym.Env):
    """Episodes of ``LENGTH`` steps; an observation is the seed and how many steps there were."""

    observation_space = spaces.Box(0, 1 << 31, (2,), np.int64)
    action_space = spaces.Discrete(10)

    def __init__(self, fail_at=None, error=RuntimeError):
        self.fail_at, self.error, self.closed, self.steps = fail_at, error, 0, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seed, self.t = seed, 0
        return np.array([self.seed, 0]), {}

    def step(self, action):
        self.steps += 1
        if self.steps == self.fail_at:
            raise self.error("the floor gave way")
        self.t += 1
        return np.array([self.seed, self.t]), float(action), self.t == LENGTH, False, {}

    def close(self):
        self.closed += 1


def script(intents, at_end=()):
    """A person who has these intents one after another, and these at the ends of episodes; then it quits."""
    playing, ending = iter(intents), iter(at_end)

    def person(scene):
        return next(playing if scene.finished is None else ending, Intent(wish="quit"))

    return person


def acts(*actions):
    return [Intent(action=action) for action in actions]


def actions_of(buffer):
    return [episode["action"].tolist() for episode in buffer]


KEEP, DISCARD, REPEAT, WAIT, QUIT = (Intent(wish=wish) for wish in ("keep", "discard", "repeat", "wait", "quit"))


def test_what_is_recorded_is_what_a_recorder_records(tmp_path):
    """The same actions through a recorder: all that decides what an episode is, bit for bit."""
    chosen = [0, 1, 1, 0, 1] * 100

    played = play(
        "CartPole-v1",
        tmp_path / "played",
        seed=7,
        player="Ada",
        person=script(acts(*chosen), [KEEP, KEEP]),
        record_info=True,
    )
    env = RecordToBuffer(gym.make("CartPole-v1"), tmp_path / "recorded", record_info=True)
    actions = iter(chosen)
    for episode in played:
        env.reset(seed=int(episode.meta["episode_seed"]))
        for _ in range(len(episode)):
            env.step(next(actions))
    env.close()
    assert [int(seed) for seed in played.meta["episode_seed"]] == [7, 8, 9]
    assert played.fieldnames == env.buffer.fieldnames
    for ours, theirs in zip(played, env.buffer, strict=True):
        for name in played.fieldnames:
            np.testing.assert_array_equal(ours[name], theirs[name])
        for name in ("episode_seed", "episode_return", "episode_complete", "episode_rng"):
            np.testing.assert_array_equal(ours.meta[name], theirs.meta[name])
    assert played.meta["player"] == ["Ada"] * 3
    assert played.env_spec == env.buffer.env_spec
    assert check_buffer(played.folder).ok


@pytest.mark.parametrize(
    ("at_end", "kept", "seeds"),
    [
        ([KEEP, KEEP], [[1] * 4, [2] * 4], [5, 6]),
        ([DISCARD, KEEP], [[2] * 4], [6]),
        ([REPEAT, KEEP], [[2] * 4], [5]),
        ([WAIT, WAIT, DISCARD, WAIT, REPEAT], [], []),
        ([QUIT], [[1] * 4], [5]),  # it is whole
    ],
)
def test_what_becomes_of_an_episode_that_is_over(tmp_path, at_end, kept, seeds):
    person = script(acts(*[1] * 4, *[2] * 4), at_end)
    buffer = play(Count(), tmp_path / "data", person=person, seed=5)
    assert actions_of(buffer) == kept
    assert buffer.meta["episode_seed"].tolist() == seeds


@pytest.mark.parametrize(
    ("wish", "on_incomplete", "kept", "seeds"),
    [
        (KEEP, "discard", [[1, 1], [2] * 4], [5, 6]),
        (DISCARD, "keep", [[2] * 4], [6]),
        (REPEAT, "keep", [[2] * 4], [5]),
        (QUIT, "keep", [[1, 1]], [5]),
        (QUIT, "discard", [], []),
    ],
)
def test_an_episode_that_is_cut(tmp_path, wish, on_incomplete, kept, seeds):
    person = script([*acts(1, 1), WAIT, wish, *acts(2, 2, 2, 2)], [QUIT])
    buffer = play(Count(), tmp_path / "data", person=person, seed=5, on_incomplete=on_incomplete)
    assert actions_of(buffer) == kept
    assert buffer.meta["episode_seed"].tolist() == seeds
    assert buffer.meta["episode_complete"].tolist() == [len(each) == LENGTH for each in kept]


INTENTS = st.one_of(
    st.integers(0, 9).map(lambda action: Intent(action=action)),
    st.just(Intent()),
    st.sampled_from([WAIT, KEEP, DISCARD, REPEAT]),
)


@settings(max_examples=40)
@given(
    st.lists(INTENTS, max_size=40),
    st.lists(st.sampled_from([KEEP, DISCARD, REPEAT, WAIT]), max_size=10),
    st.booleans(),
    st.booleans(),
)
def test_any_course_of_events(intents, at_end, keeps_cut, asks):
    """A model of what is kept: lists of (action, by the person, the policy's action) for each episode."""
    import tempfile

    def policy(observation):
        return int(observation[1])

    kept, open_, ends = [], [], iter(at_end)
    seed, next_seed, done = None, 0, False
    for intent in intents:
        if seed is None:
            seed, next_seed = next_seed, next_seed + 1
        if intent.wish == "wait":
            continue
        if intent.wish is not None:
            if intent.wish == "keep" and open_:
                kept.append((seed, open_))
            seed, open_ = (seed if intent.wish == "repeat" else None), []
            continue
        advised = len(open_)
        open_ = [*open_, (advised if intent.action is None else intent.action, intent.action is not None, advised)]
        if len(open_) == LENGTH:
            verdict = KEEP
            if asks:
                verdict = next((each for each in ends if each is not WAIT), QUIT)
            if verdict in (KEEP, QUIT):
                kept.append((seed, open_))
            seed, open_ = (seed if verdict is REPEAT else None), []
            if verdict is QUIT:
                done = True
                break
    if open_ and keeps_cut and not done:
        kept.append((seed, open_))

    with tempfile.TemporaryDirectory() as folder:
        buffer = play(
            Count(),
            folder,
            policy=policy,
            person=script(intents, at_end),
            seed=0,
            ask=asks,
            on_incomplete="keep" if keeps_cut else "discard",
        )
        assert buffer.meta["episode_seed"].tolist() == [seed for seed, _ in kept]
        columns = ("action", "is_intervention", "policy_action")
        for episode, (_, rows) in zip(buffer, kept, strict=True):
            assert list(zip(*(episode[name].tolist() for name in columns), strict=True)) == rows
        if any(by_person for _, rows in kept for _, by_person, _ in rows):
            loader = timestep_loader(buffer, 3, filter_fields={"is_intervention": True}, fields=("action",))
            labels = [int(action) for batch in loader for action in batch["action"]]
            assert labels == [action for _, rows in kept for action, by_person, _ in rows if by_person]
        buffer.close()


def test_the_policy_is_asked_once_a_step_and_the_person_sees_what_it_would_do(tmp_path):
    asked, scenes = [], []

    def policy(observation):
        asked.append(int(observation[1]))
        return 3

    def person(scene):
        scenes.append(scene)
        if scene.finished is not None:
            return Intent(wish="quit")
        return Intent(wish="wait") if len(scenes) % 2 else Intent()

    play(Count(), tmp_path / "data", policy=policy, person=person)
    assert asked == [0, 1, 2, 3]
    assert [scene.step for scene in scenes] == [0, 0, 1, 1, 2, 2, 3, 3, 4]
    assert [scene.policy_action for scene in scenes] == [3] * 8 + [None]
    assert [scene.episode_return for scene in scenes[::2]] == [0, 3, 6, 9, 12]
    assert scenes[-1].finished["observation"][:, 1].tolist() == [0, 1, 2, 3, 4]


def test_a_person_who_does_what_the_policy_would_has_acted_all_the_same(tmp_path):
    def agrees(scene):
        return Intent(action=scene.policy_action) if scene.finished is None else QUIT

    buffer = play(Count(), tmp_path / "data", policy=lambda observation: 1, person=agrees)
    assert buffer.episode(0)["is_intervention"].all()


def test_policies_of_composite_actions(tmp_path):
    class Composite(Count):
        action_space = spaces.Dict({"move": spaces.Box(-1, 1, (2,)), "grip": spaces.Discrete(2)})

        def step(self, action):
            return super().step(action["grip"])

    action = {"move": np.array([0.5, -0.5], np.float32), "grip": np.int64(1)}
    other = {"move": np.zeros(2, np.float32), "grip": np.int64(0)}
    person = script([Intent(), Intent(action=other), Intent(), Intent(action=other)])
    buffer = play(Composite(), tmp_path / "data", policy=lambda observation: action, person=person)
    episode = buffer.episode(0)
    assert episode["is_intervention"].tolist() == [False, True, False, True]
    assert episode["policy_action.grip"].tolist() == [1] * 4
    assert episode["policy_action.move"].tolist() == [[0.5, -0.5]] * 4
    assert episode["action.grip"].tolist() == [1, 0, 1, 0]
    batch = next(iter(n_step_loader(buffer, 4, nested=True)))
    assert batch["policy_action"]["move"].shape == (4, 2)


def test_random_policies_and_objects_with_predict(tmp_path):
    class Model:
        def predict(self, observation, state=None, episode_start=None, deterministic=True):
            return np.array(4 if deterministic else 5), state

    person = script([Intent()] * LENGTH)
    buffer = play(Count(), tmp_path / "a", policy=Model(), person=person, deterministic=False)
    assert buffer.episode(0)["policy_action"].tolist() == [5] * LENGTH
    buffers = [
        play(Count(), tmp_path / name, policy="random", person=script([Intent()] * LENGTH), seed=1)
        for name in ("b", "c")
    ]
    assert actions_of(buffers[0]) == actions_of(buffers[1])


def test_it_ends_when_the_folder_holds_as_many_as_asked_for(tmp_path, caplog):
    folder = tmp_path / "data"
    for total in (2, 3):
        buffer = play(Count(), folder, person=script(acts(*[1] * 100), [KEEP] * 9), episodes=total)
        assert len(buffer) == total
    assert len(set(buffer.meta["episode_seed"].tolist())) == 3  # drawn anew
    cut = script([*acts(1), KEEP, *acts(2), KEEP, *acts(3)])
    assert actions_of(play(Count(), folder, person=cut, episodes=4))[3:] == [[1]]
    play(Count(), folder, person=script([]), episodes=4)
    assert "nothing is played" in caplog.text


def test_on_episode_sees_what_the_person_keeps(tmp_path):
    seen = []

    def on_episode(episode):
        seen.append(episode["action"].tolist())
        return {"quality": 0.5}

    buffer = play(
        Count(),
        tmp_path / "data",
        person=script(acts(*[1] * 4, *[2] * 4), [DISCARD, KEEP]),
        on_episode=on_episode,
        meta_fields={"quality": "float"},
    )
    assert seen == [[2] * 4]
    assert buffer.meta["quality"].tolist() == [0.5]


# --- how it ends ---


def is_released(folder):
    """Whether somebody else can write to the folder now."""
    with ReplayBuffer.from_folder(folder) as buffer:
        buffer.acquire()
        return True


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_environment_that_raises(tmp_path, error):
    env = Count(fail_at=7, error=error)
    with pytest.raises(error, match="the floor gave way"):
        play(env, tmp_path / "data", person=script(acts(*range(9)), [KEEP]))
    with ReplayBuffer.from_folder(tmp_path / "data", read_only=True) as buffer:
        assert actions_of(buffer) == [[0, 1, 2, 3], [4, 5]]
        assert buffer.meta["episode_complete"].tolist() == [True, False]
    assert is_released(tmp_path / "data")
    assert env.closed == 1
    assert check_buffer(tmp_path / "data").ok


@pytest.mark.parametrize("which", ["policy", "person", "on_episode"])
@pytest.mark.parametrize("on_incomplete", ["keep", "discard"])
def test_somebody_else_who_raises(tmp_path, which, on_incomplete):
    """Whatever raises in the second episode, the first one is there, and of a cut one what was asked for."""
    env, calls = Count(), []

    def fails(observation=None):
        calls.append(None)
        if len(calls) == LENGTH + 2:
            raise RuntimeError("lost the thread")
        return 1

    def person(scene):
        if which == "person" and scene.finished is None:
            fails()
        return KEEP if scene.finished is not None else Intent()

    def on_episode(episode):
        if which == "on_episode":
            raise RuntimeError("lost the thread")

    with pytest.raises(RuntimeError, match="lost the thread"):
        play(
            env,
            tmp_path / "data",
            policy=fails if which == "policy" else lambda observation: 1,
            person=person,
            on_incomplete=on_incomplete,
            on_episode=on_episode,
        )
    with ReplayBuffer.from_folder(tmp_path / "data", read_only=True) as buffer:
        lengths = [len(episode) for episode in buffer]
    cut = [] if on_incomplete == "discard" or which == "on_episode" else [1]
    assert lengths == [LENGTH, *cut]
    assert is_released(tmp_path / "data")
    assert env.closed == 1


@pytest.mark.parametrize("at_end", [False, True])
def test_ctrl_c(tmp_path, at_end):
    """The step under way is done, and an episode that is over when it is asked about is kept."""
    env = Count()

    def person(scene):
        if scene.step == (LENGTH if at_end else 2):
            os.kill(os.getpid(), signal.SIGINT)
        return Intent(action=1) if scene.finished is None else WAIT

    with pytest.raises(KeyboardInterrupt):
        play(env, tmp_path / "data", person=person)
    with ReplayBuffer.from_folder(tmp_path / "data", read_only=True) as buffer:
        assert [len(episode) for episode in buffer] == [LENGTH if at_end else 3]
        assert buffer.meta["episode_complete"].tolist() == [at_end]
    assert is_released(tmp_path / "data")
    assert env.closed == 1


def test_a_folder_that_somebody_else_writes_to(tmp_path):
    play(Count(), tmp_path / "data", person=script(acts(1)))
    with ReplayBuffer.from_folder(tmp_path / "data") as other:
        other.acquire()
        env = Count()
        with pytest.raises(BufferLockedError):
            play(env, tmp_path / "data", person=script(acts(1)))
        assert env.closed == 1


def test_a_folder_of_something_else(tmp_path):
    play(Count(), tmp_path / "data", person=script([Intent()]), policy=lambda observation: 1)
    with pytest.raises(FieldError, match="pass policy="):
        play(Count(), tmp_path / "data", person=script(acts(1)))
    with pytest.raises(ConfigMismatchError, match="CartPole"):
        play("CartPole-v1", tmp_path / "data", person=script(acts(1)))
    assert is_released(tmp_path / "data")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"episodes": 0}, "episodes: expected an integer from 1"),
        ({"seed": -1}, "seed"),
        ({"ramp": -1}, "ramp"),
        ({"zoom": 0}, "zoom"),
        ({"on_incomplete": "drop"}, "'keep' or 'discard'"),
        ({"policy": "nonsense"}, "module:name"),
        ({"env_kwargs": {"size": 3}}, "made already"),
        ({"person": lambda scene: 1}, "gym_replay.Intent"),
    ],
)
def test_wrong_arguments(tmp_path, arguments, message):
    with pytest.raises(FieldError, match=message):
        play(Count(), tmp_path / "data", **{"person": script([]), **arguments})


def test_wrong_words(tmp_path):
    with pytest.raises(FieldError, match="did you mean 'keep'"):
        Intent(wish="keeps")
    with pytest.raises(TypeError, match="did you mean 'episodes'"):
        play(Count(), tmp_path / "data", episode=3)
