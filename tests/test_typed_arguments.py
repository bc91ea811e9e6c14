"""The arguments that type checkers know are those that there are."""

import inspect

from gym_replay import (
    ReplayBuffer,
    collect,
    crop_loader,
    n_step_loader,
    timestep_loader,
    trajectory_loader,
    window_loader,
)
from gym_replay.buffer.loading import options as known
from gym_replay.buffer.loading.datasets import ReplayDataset
from gym_replay.buffer.loading.loaders import OF_KIND
from gym_replay.buffer.loading.ordering import OrderOptions
from gym_replay.collecting.collect import CollectArguments


def keywords(function):
    return {name for name, kind in inspect.signature(function).parameters.items() if kind.kind == kind.KEYWORD_ONLY}


def test_loaders():
    assert keywords(ReplayDataset) - {"only", "open_source"} == known.OF_DATASETS
    own = set(inspect.signature(OrderOptions).parameters) - {"batch_size"} | {"device", "to_named_tuple", "in_order"}
    assert own | known.OF_TORCH | known.OF_DATASETS == known.OF_LOADERS
    assert set(known.SampleOptions.__annotations__) | {"n_steps"} == set().union(*OF_KIND.values())
    for loader, kind in (
        (trajectory_loader, "trajectory"),
        (timestep_loader, "timestep"),
        (n_step_loader, "n_step"),
        (window_loader, "window"),
        (crop_loader, "crop"),
    ):
        assert set(inspect.signature(loader).parameters) - {"buffer", "batch_size", "options"} == OF_KIND[kind]


def test_samples_of_now():
    of_n_step = set(inspect.signature(n_step_loader).parameters) - {"buffer", "batch_size", "options"}
    own = keywords(ReplayBuffer.sample)
    assert set(known.RandomOptions.__annotations__) == of_n_step - own | known.OF_DATASETS | {"device"}
    assert own - of_n_step == {"include_open", "sampler", "seed", "generator"}


def test_collect():
    parameters = inspect.signature(collect).parameters
    own = {"env", "folder", "engine"}
    assert set(CollectArguments.__annotations__) == set(parameters) - own
