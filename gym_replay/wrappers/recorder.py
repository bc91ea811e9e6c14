"""What the recorders of single and of vector environments share apart from recording: the buffer, and the end."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, ClassVar, NoReturn, Protocol

import gymnasium as gym

from gym_replay.buffer.replay_buffer import ReplayBuffer
from gym_replay.errors import EpisodeStateError, FieldError, GymReplayError, StorageError
from gym_replay.schema.fields import describe
from gym_replay.spaces import space_from_json, space_to_json
from gym_replay.wrappers.bounds import BoundsCheck
from gym_replay.wrappers.infos import Infos


def wrong_result(call: str, result: Any, *expected: str) -> FieldError:
    """The error of a ``step`` or ``reset`` that returned something else than a tuple of what is expected."""
    if isinstance(result, (tuple, list)):
        got = f"{len(result)} values: " + ", ".join(type(value).__name__ for value in result)
    else:
        got = describe(result)
    is_old = len(result) == 4 if call == "step" and isinstance(result, tuple) else call == "reset"
    if is_old and (call == "step" or not isinstance(result, (tuple, list))):
        remedy = "wrap an environment of the old gym with the shimmy package"
    elif isinstance(result, (tuple, list)) and len(result) > len(expected):
        remedy = f"return these {len(expected)} values, and put what is more into the info"
    else:
        remedy = f"return these {len(expected)} values"
    return FieldError(f"{call}: expected ({', '.join(expected)}), got {got}; {remedy}")


def refuse_other_spaces(
    error: FieldError, buffer: ReplayBuffer, observation_space: gym.Space[Any], action_space: gym.Space[Any]
) -> None:
    """Raise FieldError where the environment, of which a value does not fit, has other spaces than the buffer.

    Args:
        error: of the value.
        buffer: of the recorder.
        observation_space, action_space: what the environment has now.
    """
    recorded = buffer.metadata.environment or {}
    for name, space in (("observation_space", observation_space), ("action_space", action_space)):
        try:
            is_same = space_to_json(space, name) == recorded.get(name)
        except GymReplayError:
            is_same = False
        if not is_same:
            was = space_from_json(recorded[name])
            raise FieldError(
                f"the environment's {name} changed after it was wrapped, from {was} to {space}, and the buffer's "
                f"fields are those of the first one ({error}); give the environment its last spaces before it is "
                "wrapped, or record each into a folder of its own"
            ) from error


class UnderWay(Protocol):
    """The episodes that a recorder has under way."""

    @property
    def bounds(self) -> BoundsCheck:
        """Looks at what was committed."""

    def refuse_within_on_episode(self) -> None:
        """Raise EpisodeStateError where ``on_episode`` is looking at an episode."""


class Recorder:
    """A wrapper that is the only writer of its folder."""

    _buffer: ReplayBuffer
    _owns_buffer: bool
    _recording: UnderWay
    _infos: Infos | None = None
    _instead_of_pickling: ClassVar[str]

    def _refuse_second_thread(self) -> None:
        """Raise EpisodeStateError where another thread is inside of ``step`` or ``reset``."""
        codes = {getattr(getattr(type(self), name), "__code__", None) for name in ("step", "reset")}
        for thread, frame in sys._current_frames().items():
            found: FrameType | None = frame if thread != threading.get_ident() else None
            while found is not None:
                if found.f_code in codes and found.f_locals.get("self") is self:
                    raise EpisodeStateError(
                        "another thread is inside of a step or reset of this recorder: one recorder belongs to one "
                        "thread; give each thread an environment of its own with a recorder and a folder of its own"
                    )
                found = found.f_back

    @property
    def buffer(self) -> ReplayBuffer:
        """The buffer; readable also after :meth:`close`."""
        return self._buffer

    @property
    def out_of_bounds(self) -> dict[str, int]:
        """How many committed rows of each field had values outside of their space's bounds; they are kept."""
        self._recording.bounds.finish()
        return dict(self._recording.bounds.counts)

    def _close_after(self, end: Callable[[], None], close: Callable[[], Any]) -> None:
        """End what is running, and then let the folder go and close the environment, unless the disk refused."""
        refused = False
        self._recording.refuse_within_on_episode()
        try:
            end()
        except StorageError:
            refused = True
            raise
        finally:
            if not refused:
                self._let_go(close)
        if self._infos is not None:
            self._infos.warn_of_losses()

    def _let_go(self, close: Callable[[], Any]) -> None:
        try:
            try:
                self._recording.bounds.finish()
            finally:
                if self._owns_buffer:
                    self._buffer.release()
        finally:
            close()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a recorder is the only writer of its folder and cannot be pickled or copied; make one environment in each "
            f"process, with a folder of its own{self._instead_of_pickling}"
        )

    def __deepcopy__(self, memo: Any) -> NoReturn:
        self.__reduce__()
