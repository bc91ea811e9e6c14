"""Wrappers that record environments."""

from gym_replay.wrappers.record_to_buffer import RecordToBuffer

__all__ = ["RecordToBuffer"]
