"""Wrappers that record vector environments, and other batches of environments."""

from gym_replay.wrappers.vector.adapters.adapter import Adapter, ResetCall
from gym_replay.wrappers.vector.adapters.registry import register_adapter
from gym_replay.wrappers.vector.autoreset import Autoreset
from gym_replay.wrappers.vector.record_to_buffer import RecordToBuffer

__all__ = ["Adapter", "Autoreset", "RecordToBuffer", "ResetCall", "register_adapter"]
