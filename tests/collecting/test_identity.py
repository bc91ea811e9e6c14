"""A policy of the same name that does something else is told from the one that a folder was collected with."""

import functools
import importlib
import logging
import sys

import numpy as np
import pytest
import torch

from gym_replay import ConfigMismatchError, collect


def gather(folder, policy, episodes=2, **options):
    options = {"episodes": episodes, "max_episode_steps": 5, "progress": False, **options}
    return collect("CartPole-v1", folder, policy=policy, **options)


def compiled(source):
    space = {"__name__": "script", "np": np}
    exec(source, space)
    return space["policy"]


def factor(gain, table=None):
    def policy(observation):
        if table is not None and table[0] > 0:
            return 1
        return int(observation[0] * gain > 0)

    return policy


def network(value):
    torch.manual_seed(0)
    module = torch.nn.Linear(4, 2)
    torch.nn.init.constant_(module.bias, value)
    return module


def of_network(module):
    return lambda observation: int(module(torch.as_tensor(observation)).argmax())


class Steered:
    def __init__(self, module):
        self.module = module

    def __call__(self, observation):
        return int(self.module(torch.as_tensor(observation)).argmax())


PAIRS = {
    "two lambdas": (lambda observation: 0, lambda observation: 1),
    "an edited function": (
        compiled("def policy(o):\n return 0"),
        compiled("def policy(o):\n return int(o[0] > 0)"),
    ),
    "an edited helper": (
        compiled("def help(o): return 0\ndef policy(o): return help(o)"),
        compiled("def help(o): return 1\ndef policy(o): return help(o)"),
    ),
    "an edited inner function": (
        compiled("def policy(o):\n def inner():\n  return 0\n return inner()"),
        compiled("def policy(o):\n def inner():\n  return 1\n return inner()"),
    ),
    "another constant of the module": (
        compiled("GAIN = 1\ndef policy(o): return int(o[0] * GAIN > 0)"),
        compiled("GAIN = -1\ndef policy(o): return int(o[0] * GAIN > 0)"),
    ),
    "another closure": (factor(1.0), factor(-1.0)),
    "another array": (factor(1.0, np.zeros(3)), factor(1.0, np.ones(3))),
    "another default": (
        compiled("def policy(o, a=0): return a"),
        compiled("def policy(o, a=1): return a"),
    ),
    "another keyword default": (
        compiled("def policy(o, *, a=0): return a"),
        compiled("def policy(o, *, a=1): return a"),
    ),
    "another partial": (
        functools.partial(lambda a, o: a, 0),
        functools.partial(lambda a, o: a, 1),
    ),
    "other weights": (of_network(network(0.0)), of_network(network(1.0))),
    "other weights in an object": (Steered(network(0.0)), Steered(network(1.0))),
}


@pytest.mark.parametrize("pair", PAIRS)
def test_another_policy_of_the_same_name_is_refused(tmp_path, pair):
    first, second = PAIRS[pair]
    before = [episode["action"].tolist() for episode in gather(tmp_path, first)]
    with pytest.raises(ConfigMismatchError, match=r"policy: .* has other code, constants or weights.*policy_name="):
        gather(tmp_path, second, 3)
    again = gather(tmp_path, first, 3)
    assert [episode["action"].tolist() for episode in again][:2] == before
    assert len(gather(tmp_path, second, 3, overwrite=True)) == 3


def test_a_comment_is_no_other_policy(tmp_path):
    gather(tmp_path, compiled("def policy(o):\n 'what it does'\n x = 1 # right\n return x"))
    assert len(gather(tmp_path, compiled("\n\ndef policy(o):\n 'says more'\n\n x = 1\n return x"), 3)) == 3


def test_the_name_says_that_it_is_the_same_policy(tmp_path):
    gather(tmp_path, factor(1.0))
    name = f"{__name__}.factor.<locals>.policy"
    with pytest.raises(ConfigMismatchError, match="policy_name=") as caught:
        gather(tmp_path, factor(2.0), 3)
    assert name in str(caught.value)
    assert len(gather(tmp_path, factor(2.0), 3, policy_name=name)) == 3
    assert len(gather(tmp_path, factor(1.0), 4)) == 4, "the folder still knows the code of the first one"


def test_an_edited_keep_is_refused_too(tmp_path):
    gather(tmp_path, "random", keep=lambda episode: True)
    with pytest.raises(ConfigMismatchError, match=r"keep: .* has other code"):
        gather(tmp_path, "random", 3, keep=lambda episode: len(episode) > 1)


def test_what_a_watcher_fills_does_not_count(tmp_path):
    seen, sums = [], np.zeros(2)

    def watch(episode):
        seen.append(len(episode))
        sums[0] += 1

    gather(tmp_path, "random", on_episode=watch)
    assert len(gather(tmp_path, "random", 3, on_episode=watch)) == 3
    assert len(seen) == sums[0] == 3


def test_a_policy_by_name_is_compared_by_its_code(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    source = tmp_path / "steering_module.py"
    source.write_text("def policy(o):\n    return 0\n")
    gather(tmp_path / "data", "steering_module:policy")
    source.write_text("def policy(o):\n    return int(o[2] > 0)\n")
    del sys.modules["steering_module"]
    importlib.invalidate_caches()
    with pytest.raises(ConfigMismatchError, match="other code"):
        gather(tmp_path / "data", "steering_module:policy", 3)


@pytest.mark.parametrize(
    ("policy", "options", "told"),
    [
        ("random", {}, "already"),
        (PAIRS["two lambdas"][0], {}, "already"),
        (torch.inference_mode()(of_network(network(0.0))), {}, "already"),
        (torch.no_grad()(of_network(network(0.0))), {}, "already"),
        (PAIRS["two lambdas"][0], {"policy_name": "mine"}, "identified by its name only, 'mine'"),
        (Steered(network(0.0)), {}, "by its name and code only"),
    ],
)
def test_a_call_that_plays_nothing_says_so(tmp_path, caplog, policy, options, told):
    caplog.set_level(logging.WARNING, "gym_replay")
    gather(tmp_path, policy, **options)
    assert not caplog.messages
    gather(tmp_path, policy, **options)
    (said,) = caplog.messages
    assert "0 new episodes: it holds the 2 that are asked for already" in said
    assert said.endswith(told) or told in said


def test_a_policy_that_raised_at_once_can_be_mended(tmp_path):
    with pytest.raises(ZeroDivisionError):
        gather(tmp_path, compiled("def policy(o):\n return 1 // 0"))
    assert len(gather(tmp_path, compiled("def policy(o):\n return 1 // 1"), seed=3)) == 2
