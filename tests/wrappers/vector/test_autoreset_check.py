"""Vector environments that do not say how they reset their sub-environments, or say it wrongly."""

import gc
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode

from gym_replay import FieldError, ReplayBuffer, check_buffer, collect
from gym_replay.wrappers.vector import RecordToBuffer

NEXT, SAME, DISABLED = AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP, AutoresetMode.DISABLED
LENGTHS = ((2, 4), (3, 1))
"""Of both sub-environments those of their episodes, again and again."""


class Foreign(gym.vector.VectorEnv):
    """Observation t of episode k is ``start(k) + t``, the reward of the step to it is ``reward(t)``.

    Args:
        fact: how it resets its sub-environments.
        says: the mode in its metadata; None for none.
        finals: the name of the last observations in the infos, and how they come: "masked", "dense" or "list".
        same_start: whether each episode begins with the same observation.
        reward: by t.
        honours: whether a reset with a mask resets only what is in it.
    """

    num_envs = 2
    single_observation_space, observation_space = spaces.Box(-1e6, 1e6, (1,)), spaces.Box(-1e6, 1e6, (2, 1))
    single_action_space, action_space = spaces.Discrete(100), spaces.MultiDiscrete([100] * 2)

    def __init__(self, fact, says=None, finals=None, same_start=False, reward=float, honours=True, lengths=LENGTHS):
        self.fact, self.finals, self.same_start, self.reward, self.honours = fact, finals, same_start, reward, honours
        self.metadata = {} if says is None else {"autoreset_mode": says}
        self.lengths, self.k, self.t, self.waiting = lengths, [-1, -1], [0, 0], [False, False]

    def _observe(self):
        starts = [0.0 if self.same_start else 100.0 * k for k in self.k]
        return np.array([[start + t] for start, t in zip(starts, self.t, strict=True)], np.float32)

    def _begin(self, i):
        self.k[i], self.t[i], self.waiting[i] = self.k[i] + 1, 0, False

    def reset(self, *, seed=None, options=None):
        mask = (options or {}).get("reset_mask", np.ones(2, bool)) if self.honours else np.ones(2, bool)
        for i in np.flatnonzero(mask).tolist():
            self._begin(i)
        return self._observe(), {}

    def step(self, actions):
        rewards, done = np.zeros(2), np.zeros(2, bool)
        for i in range(2):
            if self.waiting[i] and self.fact is NEXT:
                self._begin(i)
                continue
            self.t[i] += 1
            rewards[i] = self.reward(self.t[i])
            done[i] = self.t[i] >= self.lengths[i][self.k[i] % 2]
        last = self._observe()
        for i in np.flatnonzero(done).tolist():
            if self.fact is SAME:
                self._begin(i)
            self.waiting[i] = True
        return self._observe(), rewards, done, np.zeros(2, bool), self._infos(last, done)

    def _infos(self, last, done):
        if self.finals is None:
            return {}
        name, how = self.finals
        if how == "dense":
            return {name: last}
        if how == "list":
            return [{name: last[i]} if done[i] else {} for i in range(2)]
        objects = np.full(2, None, object)
        for i in np.flatnonzero(done).tolist():
            objects[i] = last[i]
        return {name: objects, f"_{name}": done} if done.any() else {}


def step(envs, count, first=0):
    for number in range(first, first + count):
        envs.step(np.array([number, number + 50]))


def played(folder):
    """By sub-environment and episode: observations with row T, actions, whether it was whole."""
    assert check_buffer(folder, progress=False).ok
    found = {0: [], 1: []}
    with ReplayBuffer.from_folder(folder, read_only=True) as buffer:
        for episode in buffer:
            rows = episode["observation"][:, 0].tolist()
            found[int(episode.meta["env_index"])].append((rows, episode["action"].tolist(), episode.complete))
    return found


def expected_same_step(steps, *, has_last=True):
    """What happens in the same-step mode, played by hand."""
    found = {}
    for i in range(2):
        found[i], k, rows, actions = [], 0, [0.0], []
        for number in range(steps):
            rows.append(100.0 * k + len(actions) + 1)
            actions.append(number + 50 * i)
            if len(actions) == LENGTHS[i][k % 2]:
                found[i].append((rows if has_last else rows[:-1], actions, True))
                k, actions = k + 1, []
                rows = [100.0 * k]
        if actions:
            found[i].append((rows, actions, False))
    return found


FINALS = [
    ("final_obs", "masked"),
    ("final_observation", "masked"),
    ("final_observation", "dense"),
    ("terminal_observation", "list"),
    ("final_obs", "list"),
]


@pytest.mark.parametrize("says", [None, NEXT, DISABLED], ids=str)
@pytest.mark.parametrize("finals", FINALS, ids="-".join)
def test_last_observations_in_the_infos_show_the_same_step_mode(tmp_path, finals, says):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        envs = RecordToBuffer(Foreign(SAME, says, finals), tmp_path, record_info=True)
        envs.reset()
        step(envs, 12)
        envs.close()
    assert played(tmp_path) == expected_same_step(12)
    assert [("same-step mode" in str(each.message)) for each in caught] == ([False, True] if says is None else [True])
    if says is None:
        assert not [name for name in envs.buffer.metadata.fields if name.startswith("info")]


@pytest.mark.parametrize("finals", FINALS, ids="-".join)
def test_a_mode_that_the_user_names_is_not_questioned(tmp_path, finals):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        envs = RecordToBuffer(Foreign(SAME, None, finals), tmp_path, autoreset_mode="SameStep")
        envs.reset()
        step(envs, 12)
        envs.close()
    if finals[0] == "final_obs":
        assert played(tmp_path) == expected_same_step(12)


WRONG = {
    # the environment, after how many steps it is known, and what is said
    "a reward": ({"fact": SAME}, 3, "had a reward in the step that was to reset it"),
    "one reward of many": ({"fact": SAME, "reward": lambda t: float(t == 1)}, 3, "had a reward"),
    "done": ({"fact": SAME, "reward": lambda t: 0.0, "lengths": ((2, 1), (9, 9))}, 3, "was done in the step"),
    "the observation": ({"fact": SAME, "reward": lambda t: 0.0, "same_start": True}, 3, "is what a reset returns"),
    "final_info": ({"fact": SAME, "finals": ("final_info", "masked")}, 2, "'final_info' but no last observation"),
}


@pytest.mark.parametrize("says", [None, NEXT], ids=str)
@pytest.mark.parametrize("kind", WRONG)
def test_what_fits_no_reset_stops_with_what_to_say(tmp_path, kind, says):
    options, steps, message = WRONG[kind]
    if kind == "final_info" and says is NEXT:
        steps, message = 3, "had a reward"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        envs = RecordToBuffer(Foreign(says=says, **options), tmp_path)
        envs.reset()
        step(envs, steps - 1)
        assert len(envs.buffer) == 0
        with pytest.raises(FieldError, match=f"(?s){message}.*autoreset_mode='NextStep', 'SameStep'"):
            step(envs, 1, steps - 1)
        envs.close()
    # What was recorded so far is right, and holds nothing of the next episode.
    start = 0.0
    for episode in (one for each in played(tmp_path).values() for one in each):
        rows, actions, _ = episode
        assert rows[: len(actions)] == [start + t for t in range(len(actions))]
        assert len(rows) == len(actions) + (len(rows) > len(actions))
        assert rows[len(actions) :] in ([], [start + len(actions)])


def test_a_named_mode_records_what_was_refused(tmp_path):
    envs = RecordToBuffer(Foreign(SAME), tmp_path, autoreset_mode=SAME)
    envs.reset()
    with pytest.warns(UserWarning, match="final_obs"):
        step(envs, 12)
    envs.close()
    assert played(tmp_path) == expected_same_step(12, has_last=False)


@pytest.mark.parametrize("says", [None, NEXT], ids=str)
@pytest.mark.parametrize("same_start", [False, True])
@pytest.mark.parametrize("finals", [None, ("final_obs", "dense"), ("final_observation", "list")], ids=str)
def test_what_is_next_step_is_recorded_so(tmp_path, says, same_start, finals):
    """The first episode is committed one step later, all others in the step that ends them."""
    envs = Foreign(NEXT, says, finals, same_start)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        envs = RecordToBuffer(envs, tmp_path)
    envs.reset()
    counts = []
    for number in range(8):
        step(envs, 1, number)
        counts.append(len(envs.buffer))
    envs.close()
    assert counts == [0, 0, 2, 2, 3, 3, 4, 4]
    start = 0.0 if same_start else 100.0
    assert played(tmp_path) == {
        0: [([0.0, 1, 2], [0, 1], True), ([start + t for t in range(5)], [3, 4, 5, 6], True)],
        1: [
            ([0.0, 1, 2, 3], [50, 51, 52], True),
            ([start, start + 1], [54], True),
            ([2 * start, 2 * start + 1, 2 * start + 2], [56, 57], False),
        ],
    }


@pytest.mark.parametrize("ending", ["close", "reset", "drop"])
@pytest.mark.parametrize(("says", "has_last"), [(None, False), (NEXT, True)])
def test_what_nothing_shows_any_more(tmp_path, ending, says, has_last):
    """No step follows: of an environment that says nothing, last observations are left out."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        envs = RecordToBuffer(Foreign(NEXT, says, lengths=((2, 2), (2, 2))), tmp_path)
        envs.reset()
        step(envs, 2)
        assert len(envs.buffer) == 0
        if ending == "reset":
            envs.reset()
            assert len(envs.buffer) == 2
        if ending == "drop":
            del envs
            gc.collect()
        else:
            envs.close()
    assert sum("left out" in str(each.message) for each in caught) == (not has_last)
    rows = [0.0, 1.0, 2.0] if has_last else [0.0, 1.0]
    assert played(tmp_path) == {0: [(rows, [0, 1], True)], 1: [(rows, [50, 51], True)]}
    if not has_last:
        raw = np.load(tmp_path / "steps" / "observation.npy", mmap_mode="r")
        assert raw[[2, 5], 0].tolist() == [0.0, 0.0]


def test_a_wrapper_that_pays_for_resets_is_no_contradiction(tmp_path):
    class Shifted(gym.vector.VectorRewardWrapper):
        def rewards(self, rewards):
            return rewards - 1.0

    envs = RecordToBuffer(Shifted(Foreign(NEXT, NEXT)), tmp_path)
    envs.reset()
    step(envs, 8)
    envs.close()
    assert [len(episode) for episode in envs.buffer] == [2, 3, 1, 4, 2]


@pytest.mark.parametrize("lengths", [LENGTHS, ((1, 1), (1, 1)), ((9, 9), (9, 9))], ids=repr)
def test_next_step_that_says_same_step(tmp_path, lengths):
    envs = RecordToBuffer(Foreign(NEXT, SAME, same_start=True, lengths=lengths), tmp_path)
    envs.reset()
    if lengths[0] == (9, 9):
        step(envs, 8)
        envs.close()
        return
    with pytest.raises(FieldError, match="was reset in the step after"), pytest.warns(UserWarning, match="final_obs"):
        step(envs, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        envs.close()
    for episode in (one for each in played(tmp_path).values() for one in each):
        assert episode[0] == [float(t) for t in range(len(episode[0]))]


@pytest.mark.parametrize("honours", [True, False])
def test_disabled_and_a_mask_that_may_not_be_heeded(tmp_path, honours):
    """What the environment resets beside the mask is cut, so that no transition crosses a reset."""
    envs = RecordToBuffer(Foreign(DISABLED, DISABLED, honours=honours), tmp_path)
    envs.reset()
    step(envs, 2)
    mask = np.array([True, False])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        envs.reset(options={"reset_mask": mask})
        step(envs, 1, 2)
        envs.close()
    assert any("does not know" in str(each.message) for each in caught) == (not honours)
    assert played(tmp_path)[0] == [([0.0, 1, 2], [0, 1], True), ([100.0, 101], [2], False)]
    whole = [([0.0, 1, 2, 3], [50, 51, 52], True)]
    assert played(tmp_path)[1] == (whole if honours else [([0.0, 1, 2], [50, 51], False), ([100.0, 101], [52], True)])


@pytest.mark.parametrize("named", ["sometimes", 3, "next-step"])
def test_what_is_no_mode(tmp_path, named):
    with pytest.raises(FieldError, match=r"autoreset_mode=.*expected an AutoresetMode.*NextStep"):
        RecordToBuffer(Foreign(NEXT), tmp_path, autoreset_mode=named)


def test_flags_as_bytes_and_spaces_of_one(tmp_path):
    """As SuperSuit has them."""

    class Bytes(Foreign):
        observation_space, action_space = Foreign.single_observation_space, Foreign.single_action_space
        single_observation_space = single_action_space = property(lambda self: self.missing)

        def step(self, actions):
            observations, rewards, *flags, infos = super().step(actions)
            return observations, rewards, *(flag.astype(np.uint8) for flag in flags), infos

    envs = RecordToBuffer(Bytes(SAME, SAME, ("terminal_observation", "list")), tmp_path)
    envs.reset()
    step(envs, 12)
    envs.close()
    assert played(tmp_path) == expected_same_step(12)
    assert envs.buffer.observation_space == Foreign.single_observation_space


def test_an_environment_of_both_classes(tmp_path):
    """As EnvPool's are, with a spec that is none of Gymnasium's."""

    class Both(Foreign, gym.Env):
        spec = "a specification"

    envs = RecordToBuffer(Both(NEXT, NEXT), tmp_path)
    envs.reset()
    step(envs, 4)
    envs.close()
    assert len(envs.buffer) == 3


@pytest.mark.filterwarnings("ignore:vectorization='native'")
@pytest.mark.parametrize("says", [None, DISABLED], ids=str)
def test_native_collections_need_a_mode(tmp_path, says):
    with pytest.raises(FieldError, match=r"native.*(does not say how|leaves the resets)"):
        collect(
            lambda num_envs: Foreign(NEXT, says),
            tmp_path,
            episodes=2,
            num_envs=2,
            vectorization="native",
            progress=False,
        )


@pytest.mark.parametrize("fact", [NEXT, SAME], ids=str)
def test_native_collections_of_a_foreign_environment(tmp_path, fact):
    with pytest.warns(UserWarning, match="native"):
        buffer = collect(
            lambda num_envs: Foreign(fact, fact, ("final_obs", "masked") if fact is SAME else None),
            tmp_path,
            episodes=6,
            num_envs=2,
            vectorization="native",
            progress=False,
            keep=lambda episode: True,
        )
    with buffer:
        assert sorted(int(episode.meta["collect_index"]) for episode in buffer) == list(range(6))
        for episode in buffer:
            assert np.diff(episode["observation"][:, 0]).tolist() == [1.0] * len(episode)


@pytest.mark.parametrize(("fact", "value"), [(NEXT, "NextStep"), (SAME, "SameStep"), (DISABLED, "Disabled")])
def test_the_recorder_tells_the_mode(tmp_path, fact, value):
    envs = RecordToBuffer(Foreign(fact), tmp_path, autoreset_mode=fact)
    assert envs.autoreset_mode == value == AutoresetMode(envs.autoreset_mode).value
    envs.close()
