"""Wrappers that record vector environments."""

from gym_replay.wrappers.vector.record_to_buffer import RecordToBuffer

__all__ = ["RecordToBuffer"]
