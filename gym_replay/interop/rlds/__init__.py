"""RLDS data sets, as TensorFlow Datasets lays them out, imported without TensorFlow."""

from gym_replay.interop.rlds.importing import from_rlds

__all__ = ["from_rlds"]
