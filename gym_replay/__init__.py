"""Record any Gymnasium environment to plain NumPy memory maps, and train from them with PyTorch."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if sys.platform == "win32":  # pragma: no cover
    raise ImportError("gym_replay runs on Linux and macOS; on Windows use it inside WSL 2")

from gym_replay.errors import (
    BufferChangedError,
    BufferClosedError,
    BufferFullError,
    BufferLockedError,
    BufferNotFoundError,
    ConfigMismatchError,
    CorruptBufferError,
    EmptyBufferError,
    EpisodeEvictedError,
    EpisodeStateError,
    EpisodeTooLongError,
    FieldError,
    GymReplayError,
    MakeEnvError,
    MissingExtraError,
    NotABufferError,
    ReadOnlyError,
    StaleFieldError,
    StorageError,
    UnsupportedFormatError,
    UnsupportedSpaceError,
)

if TYPE_CHECKING:
    from gym_replay.buffer.check import CheckReport, Fault, check_buffer
    from gym_replay.buffer.concat import ConcatReplayBuffer
    from gym_replay.buffer.copying import merge, select, split_into
    from gym_replay.buffer.door import Ragged, ReferenceReturns, normalized_score
    from gym_replay.buffer.episode import Episode
    from gym_replay.buffer.loading.formats import DecisionTransformerFormat, LeRobotFormat
    from gym_replay.buffer.loading.goals import GoalMixture, GoalSampler
    from gym_replay.buffer.loading.loaders import (
        crop_loader,
        n_step_loader,
        timestep_loader,
        trajectory_loader,
        window_loader,
    )
    from gym_replay.buffer.loading.mixing import Mixture, mix
    from gym_replay.buffer.loading.prioritized import PrioritizedSampler
    from gym_replay.buffer.loading.returns import returns_to_go
    from gym_replay.buffer.loading.selection import split
    from gym_replay.buffer.loading.statistics import FieldStatistics, Statistics, statistics
    from gym_replay.buffer.replay_buffer import ReplayBuffer
    from gym_replay.collecting.collect import collect
    from gym_replay.collecting.evaluate import evaluate
    from gym_replay.collecting.evaluation import Evaluation
    from gym_replay.collecting.reference import measure_reference
    from gym_replay.interop.d3rlpy import to_d3rlpy
    from gym_replay.interop.d4rl import from_d4rl
    from gym_replay.interop.flat import to_d4rl, to_ogbench
    from gym_replay.interop.lerobot import ExportReport, export_lerobot, import_lerobot
    from gym_replay.interop.memmap_replay_buffer import from_memmap_replay_buffer
    from gym_replay.interop.minari import export_minari, import_minari
    from gym_replay.interop.ogbench import from_ogbench
    from gym_replay.interop.old_data import ImportReport
    from gym_replay.interop.ray_data import to_ray_dataset
    from gym_replay.interop.rlds import from_rlds
    from gym_replay.interop.robomimic import from_robomimic
    from gym_replay.interop.sb3 import fill_sb3, to_sb3
    from gym_replay.interop.torchrl import to_torchrl
    from gym_replay.interop.trajectories import from_trajectories
    from gym_replay.playing.person import Intent, Scene
    from gym_replay.playing.play import play
    from gym_replay.remote.pull import pull
    from gym_replay.remote.push import Pushed, push
    from gym_replay.replaying.reobserve import Reobserved, reobserve
    from gym_replay.replaying.replay import ReplayReport, replay
    from gym_replay.schema.fields import Field
    from gym_replay.spaces import register_space
    from gym_replay.viewing.opening import view
    from gym_replay.viewing.plots import plot
    from gym_replay.viewing.sheet import contact_sheet
    from gym_replay.viewing.video import video
    from gym_replay.viewing.view import View
    from gym_replay.wrappers.record_to_buffer import RecordToBuffer
    from gym_replay.wrappers.session import FinishedEpisode

__version__ = "0.1.0"

# Imported at first use, so that each costs only those who use it: the loaders need torch, the recorder gymnasium.
_LAZY = {
    "ConcatReplayBuffer": "gym_replay.buffer.concat",
    "Episode": "gym_replay.buffer.episode",
    "Field": "gym_replay.schema.fields",
    "Ragged": "gym_replay.buffer.door",
    "ReferenceReturns": "gym_replay.buffer.door",
    "ReplayBuffer": "gym_replay.buffer.replay_buffer",
    "normalized_score": "gym_replay.buffer.door",
    "CheckReport": "gym_replay.buffer.check",
    "Evaluation": "gym_replay.collecting.evaluation",
    "Fault": "gym_replay.buffer.check",
    "FieldStatistics": "gym_replay.buffer.loading.statistics",
    "FinishedEpisode": "gym_replay.wrappers.session",
    "GoalMixture": "gym_replay.buffer.loading.goals",
    "GoalSampler": "gym_replay.buffer.loading.goals",
    "PrioritizedSampler": "gym_replay.buffer.loading.prioritized",
    "Reobserved": "gym_replay.replaying.reobserve",
    "ReplayReport": "gym_replay.replaying.replay",
    "Statistics": "gym_replay.buffer.loading.statistics",
    "check_buffer": "gym_replay.buffer.check",
    "collect": "gym_replay.collecting.collect",
    "evaluate": "gym_replay.collecting.evaluate",
    "measure_reference": "gym_replay.collecting.reference",
    "RecordToBuffer": "gym_replay.wrappers.record_to_buffer",
    "crop_loader": "gym_replay.buffer.loading.loaders",
    "Intent": "gym_replay.playing.person",
    "Scene": "gym_replay.playing.person",
    "play": "gym_replay.playing.play",
    "merge": "gym_replay.buffer.copying",
    "ExportReport": "gym_replay.interop.lerobot",
    "export_lerobot": "gym_replay.interop.lerobot",
    "import_lerobot": "gym_replay.interop.lerobot",
    "export_minari": "gym_replay.interop.minari",
    "import_minari": "gym_replay.interop.minari",
    "Mixture": "gym_replay.buffer.loading.mixing",
    "mix": "gym_replay.buffer.loading.mixing",
    "n_step_loader": "gym_replay.buffer.loading.loaders",
    "Pushed": "gym_replay.remote.push",
    "pull": "gym_replay.remote.pull",
    "push": "gym_replay.remote.push",
    "register_space": "gym_replay.spaces",
    "returns_to_go": "gym_replay.buffer.loading.returns",
    "reobserve": "gym_replay.replaying.reobserve",
    "replay": "gym_replay.replaying.replay",
    "select": "gym_replay.buffer.copying",
    "split": "gym_replay.buffer.loading.selection",
    "split_into": "gym_replay.buffer.copying",
    "statistics": "gym_replay.buffer.loading.statistics",
    "timestep_loader": "gym_replay.buffer.loading.loaders",
    "trajectory_loader": "gym_replay.buffer.loading.loaders",
    "window_loader": "gym_replay.buffer.loading.loaders",
    "View": "gym_replay.viewing.view",
    "contact_sheet": "gym_replay.viewing.sheet",
    "plot": "gym_replay.viewing.plots",
    "video": "gym_replay.viewing.video",
    "view": "gym_replay.viewing.opening",
    "fill_sb3": "gym_replay.interop.sb3",
    "from_d4rl": "gym_replay.interop.d4rl",
    "from_memmap_replay_buffer": "gym_replay.interop.memmap_replay_buffer",
    "from_ogbench": "gym_replay.interop.ogbench",
    "from_rlds": "gym_replay.interop.rlds",
    "from_robomimic": "gym_replay.interop.robomimic",
    "from_trajectories": "gym_replay.interop.trajectories",
    "to_d3rlpy": "gym_replay.interop.d3rlpy",
    "to_d4rl": "gym_replay.interop.flat",
    "to_ogbench": "gym_replay.interop.flat",
    "to_ray_dataset": "gym_replay.interop.ray_data",
    "to_sb3": "gym_replay.interop.sb3",
    "to_torchrl": "gym_replay.interop.torchrl",
    "DecisionTransformerFormat": "gym_replay.buffer.loading.formats",
    "LeRobotFormat": "gym_replay.buffer.loading.formats",
    "ImportReport": "gym_replay.interop.old_data",
}

__all__ = [
    "BufferChangedError",
    "BufferClosedError",
    "BufferFullError",
    "BufferLockedError",
    "BufferNotFoundError",
    "CheckReport",
    "ConcatReplayBuffer",
    "ConfigMismatchError",
    "CorruptBufferError",
    "DecisionTransformerFormat",
    "EmptyBufferError",
    "Episode",
    "EpisodeEvictedError",
    "EpisodeStateError",
    "EpisodeTooLongError",
    "Evaluation",
    "ExportReport",
    "Fault",
    "Field",
    "FieldError",
    "FieldStatistics",
    "FinishedEpisode",
    "GoalMixture",
    "GoalSampler",
    "GymReplayError",
    "ImportReport",
    "Intent",
    "LeRobotFormat",
    "MakeEnvError",
    "MissingExtraError",
    "Mixture",
    "NotABufferError",
    "PrioritizedSampler",
    "Pushed",
    "Ragged",
    "ReadOnlyError",
    "RecordToBuffer",
    "ReferenceReturns",
    "Reobserved",
    "ReplayBuffer",
    "ReplayReport",
    "Scene",
    "StaleFieldError",
    "Statistics",
    "StorageError",
    "UnsupportedFormatError",
    "UnsupportedSpaceError",
    "View",
    "check_buffer",
    "collect",
    "contact_sheet",
    "crop_loader",
    "evaluate",
    "export_lerobot",
    "export_minari",
    "fill_sb3",
    "from_d4rl",
    "from_memmap_replay_buffer",
    "from_ogbench",
    "from_rlds",
    "from_robomimic",
    "from_trajectories",
    "import_lerobot",
    "import_minari",
    "measure_reference",
    "merge",
    "mix",
    "n_step_loader",
    "normalized_score",
    "play",
    "plot",
    "pull",
    "push",
    "register_space",
    "reobserve",
    "replay",
    "returns_to_go",
    "select",
    "split",
    "split_into",
    "statistics",
    "timestep_loader",
    "to_d3rlpy",
    "to_d4rl",
    "to_ogbench",
    "to_ray_dataset",
    "to_sb3",
    "to_torchrl",
    "trajectory_loader",
    "video",
    "view",
    "window_loader",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
