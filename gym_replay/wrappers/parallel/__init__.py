"""Wrappers that record multi-agent environments of PettingZoo's parallel API."""

from gym_replay.wrappers.parallel.record_to_buffer import RecordToBuffer

__all__ = ["RecordToBuffer"]
