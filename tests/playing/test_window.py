"""play() in a window that nobody sees: events of keys and gamepads, as pygame delivers them, and what they come to.

The environment stands in for the person's hands: it is rendered once for each frame of the window, and posts the events
that are due then.
"""

import json

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from gym_replay import FieldError, GymReplayError, play
from gym_replay.cli import main

pygame = pytest.importorskip("pygame")

LENGTH = 6


@pytest.fixture(autouse=True)
def _no_screen(monkeypatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    yield
    assert not pygame.display.get_init()  # the window is closed, however it ended


class Hands(gym.Env):
    """An environment whose frames come with events: ``press`` and so on of :data:`EVENTS`, by the number of the frame.

    After the last of them, and ``rest`` frames, the window is closed.
    """

    observation_space = spaces.Discrete(100)

    def __init__(self, space, events, rest=1, length=LENGTH, keys=None):
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": 5000}
        self.action_space, self.events, self.rest, self.length = space, events, rest, length
        self.render_mode, self.frames, self.shots = "rgb_array", 0, []
        if keys is not None:
            self.get_keys_to_action = lambda: keys

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return 0, {}

    def step(self, action):
        self.t += 1
        return self.t, 1.0, self.t == self.length, False, {}

    def render(self):
        if (surface := pygame.display.get_surface()) is not None:
            self.shots.append(pygame.surfarray.array3d(surface))
        for kind, *details in self.events.get(self.frames, ()):
            pygame.event.post(EVENTS[kind](*details))
        if self.frames == max(self.events, default=0) + self.rest:
            pygame.event.post(pygame.event.Event(pygame.QUIT))
        self.frames += 1
        return np.full((30, 40, 3), 200, np.uint8)


def code(name):
    return pygame.key.key_code(name)


EVENTS = {
    "press": lambda name: pygame.event.Event(pygame.KEYDOWN, key=code(name)),
    "let go": lambda name: pygame.event.Event(pygame.KEYUP, key=code(name)),
    "axis": lambda axis, value: pygame.event.Event(pygame.JOYAXISMOTION, axis=axis, value=value),
    "hat": lambda x, y: pygame.event.Event(pygame.JOYHATMOTION, hat=0, value=(x, y)),
    "button": lambda number: pygame.event.Event(pygame.JOYBUTTONDOWN, button=number),
    "button up": lambda number: pygame.event.Event(pygame.JOYBUTTONUP, button=number),
    "leave": lambda: pygame.event.Event(pygame.WINDOWFOCUSLOST),
}


def tap(name):
    """A key that is pressed and let go between two frames."""
    return [("press", name), ("let go", name)]


def played(tmp_path, space, events, **arguments):
    """The actions of each episode."""
    of_env = {name: arguments.pop(name) for name in ("rest", "length", "own") if name in arguments}
    env = Hands(space, events, of_env.get("rest", 1), of_env.get("length", LENGTH), of_env.get("own"))
    buffer = play(env, tmp_path / "data", ramp=arguments.pop("ramp", 0), **arguments)
    return [episode["action"].tolist() for episode in buffer], buffer, env


def test_keys_that_are_held_and_taps(tmp_path):
    """The episode begins with the first of them."""
    events = {1: [("press", "2")], 3: [("press", "3")], 4: [("let go", "3")], 5: [("let go", "2"), *tap("4")]}
    episodes, _, _ = played(tmp_path, spaces.Discrete(5), events, length=20)
    assert episodes == [[1, 1, 2, 1, 3]]


def test_what_is_held_when_the_window_is_left_is_held_no_more(tmp_path):
    events = {1: [("press", "2")], 3: [("leave",)], 4: []}
    episodes, _, _ = played(tmp_path, spaces.Discrete(5), events, length=20)
    assert episodes == [[1, 1, 0, 0]]


def test_keep_discard_repeat_pause_and_quit(tmp_path):
    """Six steps to each end; then a question, which lasts until it is answered."""
    events = {
        0: [("press", "2")],  # each episode begins at once
        2: tap("p"),
        5: tap("p"),  # steps at the frames 0, 1, 5, 6, 7, 8; the question at 9
        11: tap("return"),  # steps at 12 .. 17, the question at 18
        18: tap("backspace"),  # steps at 19 .. 24, the question at 25
        25: tap("r"),  # steps at 26 .. 31, the question at 32
        33: tap("return"),  # steps at 34, 35, 36
        37: tap("escape"),
    }
    _, buffer, _ = played(tmp_path, spaces.Discrete(3), events, seed=10)
    assert [len(episode) for episode in buffer] == [6, 6, 3]
    assert buffer.meta["episode_seed"].tolist() == [10, 12, 13]
    assert buffer.meta["episode_complete"].tolist() == [True, True, False]


def test_no_question(tmp_path):
    _, buffer, _ = played(
        tmp_path, spaces.Discrete(3), {0: [("press", "2")], 13: tap("r"), 15: tap("return")}, ask=False, seed=0
    )
    assert [len(episode) for episode in buffer] == [6, 6, 1]
    assert buffer.meta["episode_seed"].tolist() == [0, 1, 2]


def test_a_policy_that_is_taken_over_and_given_back(tmp_path):
    events = {2: [("press", "2")], 4: [("let go", "2")], 6: tap("tab"), 9: tap("tab"), 11: []}
    _, buffer, env = played(tmp_path, spaces.Discrete(3), events, length=50, policy=lambda observation: 2)
    episode = buffer.episode(0)
    assert episode["action"].tolist() == [2, 2, 1, 1, 2, 2, 0, 0, 0, 2, 2, 2]
    assert episode["is_intervention"].tolist() == [0, 0, 1, 1, 0, 0, 1, 1, 1, 0, 0, 0]
    assert (episode["policy_action"] == 2).all()
    # The line below the counts says who acts, each in a color of its own.
    bars = [shot[:, -80:].reshape(-1, 3) for shot in env.shots]
    assert (bars[1] == (140, 170, 255)).all(axis=1).any()
    assert (bars[7] == (120, 230, 130)).all(axis=1).any()
    assert not (bars[1] == (120, 230, 130)).all(axis=1).any()


# --- continuous actions ---


def test_a_key_moves_a_continuous_action_at_a_rate_and_a_stick_at_once(tmp_path):
    events = {
        1: [("press", "right")],
        6: [("let go", "right")],
        10: [("axis", 0, -0.5)],
        11: [("axis", 0, 0.05)],  # as good as let go
        12: [],
    }
    episodes, buffer, _ = played(tmp_path, spaces.Box(-2, 2, (1,)), events, length=50, fps=1000, ramp=0.004)
    found = [action[0] for action in episodes[0]]
    assert found == [0.5, 1, 1.5, 2, 2, 1.5, 1, 0.5, 0, -1, -0.5, 0]
    assert buffer.episode(0)["action"].dtype == np.float32


def test_what_goes_one_way_only_has_one_key_and_a_trigger(tmp_path):
    """As CarRacing: steering goes both ways, gas and brake from zero up."""
    space = spaces.Box(np.array([-1, 0, 0], np.float32), np.ones(3, np.float32))
    events = {
        1: [("press", "up"), ("press", "left")],
        2: [("let go", "up"), ("press", "down"), ("press", "right")],
        3: [("let go", name) for name in ("left", "right", "down")],
        4: [("axis", 5, 0.0)],
        5: [("axis", 5, -1.0), ("axis", 0, 1.0)],
    }
    episodes, _, _ = played(tmp_path, space, events, length=50, rest=0)
    assert episodes == [[[-1, 1, 0], [1, 0, 1], [0, 0, 0], [0, 0.5, 0]]]


def test_keys_of_ones_own_for_parts_of_an_action(tmp_path):
    """Also of spaces without bounds, for which nobody else could know how far a key goes."""
    keys = {"a": {0: -3.5}, "d": {"0": 1, "3": 2}, "axis 1": {2: -1}, "button 3": {1: 1}}
    events = {
        1: tap("a"),
        2: tap("d"),
        3: [("axis", 1, 0.5), ("button", 3)],
        4: [("button up", 3), ("axis", 1, 0)],
    }
    space = spaces.Box(-np.inf, np.inf, (2, 2), np.float64)
    episodes, _, _ = played(tmp_path, space, events, keys=keys, idle=[[0, 0.25], [0, 0]], length=50, rest=0)
    left, right = [[-3.5, 0.25], [0, 0]], [[1, 0.25], [0, 2]]
    assert episodes == [[left, right, [[0, 1], [-0.5, 0]]]]


def test_parts_that_are_choices(tmp_path):
    events = {1: [*tap("2"), *tap("q")], 2: [*tap("1"), *tap("2"), *tap("e")], 3: []}
    episodes, _, _ = played(tmp_path, spaces.MultiDiscrete([3, 4], start=[5, 0]), events, length=50, rest=0)
    assert episodes == [[[7, 1], [7, 3]]]


def test_switches(tmp_path):
    episodes, _, _ = played(tmp_path, spaces.MultiBinary(4), {1: [*tap("1"), *tap("4")], 2: []}, length=50, rest=0)
    assert episodes == [[[1, 0, 0, 1]]]


# --- keys of the environment, and gamepads ---

OWN = {("e",): 0, ("a",): 1, ("d",): 2, ("a", " "): 3, (276,): 4}


def test_keys_of_the_environment_and_what_stands_for_them(tmp_path):
    """Characters, also several, and codes of pygame 1; pad and stick are as good as the keys for a direction."""
    events = {
        1: tap("d"),
        2: [*tap("space"), *tap("a")],
        3: tap("left"),
        4: tap("right"),  # as good as d
        5: [("hat", 1, 0)],
        6: [("hat", 0, 0), ("axis", 0, -0.9)],
        7: [("button", 0), ("axis", 0, 0)],  # space, which means nothing alone
        8: [*tap("a")],  # with the button that is held
        9: [],
    }
    episodes, _, _ = played(tmp_path, spaces.Discrete(5), events, own=OWN, length=50, rest=0)
    assert episodes == [[2, 3, 4, 2, 2, 4, 0, 3]]


def test_a_gamepad_answers_the_question(tmp_path):
    events = {
        0: [("press", "1")],
        7: [("button", 1), ("button up", 1)],
        14: [("button", 2)],
        15: [("button up", 2)],
        22: [("button", 0)],
    }
    _, buffer, _ = played(tmp_path, spaces.Discrete(3), events, seed=0)
    assert buffer.meta["episode_seed"].tolist() == [1]


def test_an_environment_that_waits(tmp_path):
    """Each press is a step, those that came at once too, one after another."""
    events = {
        3: tap("1"),
        6: [*tap("2"), *tap("3")],
        10: [("press", "2")],
        15: [("let go", "2")],
        20: [*tap("3"), *tap("return"), *tap("1")],
        30: [*tap("p"), *tap("2"), *tap("p"), *tap("3")],
    }
    episodes, _, _ = played(tmp_path, spaces.Discrete(3), events, waits=True, length=50, rest=9)
    assert episodes == [[0, 1, 2, 1, 2], [0, 2]]


def test_commands_keep_away_from_the_keys_of_the_actions(tmp_path):
    own = {"p": 1, "return": 2, "escape": 3, "r": 4}
    events = {1: tap("p"), 2: tap("return"), 3: tap("escape"), 4: tap("r"), 5: tap("k"), 6: tap("f10")}
    episodes, _, _ = played(tmp_path, spaces.Discrete(5), events, keys=own, length=50, rest=9)
    assert episodes == [[1, 2, 3, 4]]


@pytest.mark.parametrize(
    ("env", "presses", "actions"),
    [
        ("CartPole-v1", [["right"], [], ["left"], []], [1, 1, 0, 0]),
        ("Acrobot-v1", [["left"], [], ["right"]], [0, 1, 2]),
        ("MountainCar-v0", [["left"], [], ["right"]], [0, 1, 2]),
        ("FrozenLake-v1", [["right"], ["w"], ["up"]], [2, 3]),
        ("Taxi-v4", [["up"], ["page up"]], [1, 4]),
        (
            "MiniGrid-Empty-8x8-v0",
            [["up"], ["right"], ["page up"], ["left shift"], ["space"], ["tab"]],
            [2, 1, 3, 4, 5, 3],
        ),
        ("ALE/Breakout-v5", [["space"], ["d"], ["left"], []], [1, 2, 3, 0]),
    ],
)
def test_environments_that_people_play(tmp_path, env, presses, actions):
    import ale_py
    import minigrid  # noqa: F401

    gym.register_envs(ale_py)
    made = gym.make(env, render_mode="rgb_array")

    class Player(gym.Wrapper):
        frames = 0

        def render(self):
            if self.frames < len(presses):
                for name in presses[self.frames]:
                    for event in tap(name):
                        pygame.event.post(EVENTS[event[0]](event[1]))
            else:
                pygame.event.post(pygame.event.Event(pygame.QUIT))
            self.frames += 1
            return self.env.render()

    buffer = play(Player(made), tmp_path / "data", fps=5000)
    assert buffer.episode(0)["action"].tolist() == actions


# --- what cannot be played ---


@pytest.mark.parametrize(
    ("space", "arguments", "message"),
    [
        (spaces.Dict({"x": spaces.Discrete(2)}), {}, "there are no keys for actions of Dict.*pass keys="),
        (spaces.Box(-np.inf, np.inf, (1,)), {}, "there are no keys for actions of Box.*moves a part"),
        (spaces.Box(-1, 1, (40,)), {}, "there are no keys"),
        (spaces.Discrete(99), {}, "there are no keys"),
        (spaces.MultiDiscrete([2] * 9), {}, "there are no keys"),
        (spaces.Discrete(2), {"keys": {"lefft": 1}}, "there is no key 'lefft'; did you mean 'left'"),
        (spaces.Discrete(2), {"keys": {"left": 7}}, r"keys\['left'\]: expected an action of Discrete\(2\), got 7"),
        (spaces.Discrete(2), {"keys": {}}, "expected a dict"),
        (spaces.Discrete(2), {"keys": {"axis 0": 1}}, "moves a part"),
        (spaces.Discrete(2), {"keys": {"a": {0: 1}}}, "arrays of numbers"),
        (spaces.Discrete(2), {"idle": 9}, "idle: expected an action"),
        (spaces.Box(-1, 1, (2,)), {"keys": {"a": {2: 1}}}, "indices below 2"),
        (spaces.Box(-1, 1, (2,)), {"keys": {"a": {0: 5}}}, "from -1 to 1, got 5"),
        (spaces.Box(-1, 1, (2,)), {"keys": {"a+b": {0: 1}}}, "one key"),
        (spaces.Dict({"x": spaces.Discrete(2)}), {"keys": {"a": {"x": 1}}}, "pass idle="),
    ],
)
def test_what_to_pass_is_said_before_anything_is_made(tmp_path, space, arguments, message):
    with pytest.raises(FieldError, match=message):
        play(Hands(space, {}), tmp_path / "data", **arguments)
    assert not (tmp_path / "data").exists()


def test_whole_actions_of_any_space(tmp_path):
    space = spaces.Dict({"x": spaces.Discrete(2), "y": spaces.Box(0, 1, (1,))})
    zero, one = ({"x": x, "y": np.full(1, x, np.float32)} for x in range(2))
    env = Hands(space, {1: tap("a"), 2: []}, length=50)
    buffer = play(env, tmp_path / "data", keys={"a": one}, idle=zero)
    assert buffer.episode(0)["action.x"].tolist() == [1, 0]


def test_an_environment_that_renders_nothing(tmp_path):
    with pytest.raises(FieldError, match="render_mode='rgb_array'"):
        play(gym.make("CartPole-v1"), tmp_path / "data")


def test_a_wrong_frame(tmp_path):
    class Bad(Hands):
        def render(self):
            return np.zeros((3, 3))

    with pytest.raises(FieldError, match=r"render: expected an array uint8 \(height, width, 3\)"):
        play(Bad(spaces.Discrete(2), {}), tmp_path / "data")


def test_no_display(tmp_path, monkeypatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "nonsense")
    with pytest.raises(GymReplayError, match="no display"):
        play("CartPole-v1", tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_a_window_that_nobody_would_see(tmp_path, monkeypatch):
    """Where there is no screen SDL draws into memory, and whoever started it would wait for ever."""
    monkeypatch.delenv("SDL_VIDEODRIVER")
    monkeypatch.setattr(pygame.display, "init", lambda: None)
    monkeypatch.setattr(pygame.display, "get_driver", lambda: "offscreen")
    with pytest.raises(GymReplayError, match=r"no display .*put SDL_VIDEODRIVER=offscreen into the environment"):
        play("CartPole-v1", tmp_path / "data")
    assert not (tmp_path / "data").exists()


# --- the command ---


def test_the_command(tmp_path, monkeypatch, capsys):
    """Its options reach play(), and its report says what there is."""
    monkeypatch.setattr(pygame.event, "get", lambda: [pygame.event.Event(pygame.KEYDOWN, key=code("left"))])
    command = ["play", "CartPole-v1", str(tmp_path / "data"), "--no-ask", "--episodes", "2", "--fps", "5000"]
    more = ["--player", "Ada", "--seed", "3", "--keys", '{"left": 0, "d": 1}', "--idle", "last", "--zoom", "0.5"]
    assert main([*command, *more, "--policy", "random", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["status"], said["num_episodes"]) == ("complete", 2)
    assert main(["head", str(tmp_path / "data")]) == 0
    assert "is_intervention" in capsys.readouterr().out
    assert main([*command, "--json"]) == 2
    assert "--policy" in capsys.readouterr().err
