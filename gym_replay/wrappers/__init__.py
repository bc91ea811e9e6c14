"""Wrappers that record environments, and one that adds the states of a simulator to what is recorded."""

from gym_replay.wrappers.record_to_buffer import RecordToBuffer
from gym_replay.wrappers.simulator_state import SimulatorState, mujoco_state, restore_mujoco

__all__ = ["RecordToBuffer", "SimulatorState", "mujoco_state", "restore_mujoco"]
