"""What the recorders of single and of vector environments share apart from recording: the buffer, and the end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, NoReturn, Protocol

from gym_replay.buffer.replay_buffer import ReplayBuffer
from gym_replay.errors import StorageError
from gym_replay.wrappers.bounds import BoundsCheck


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
    _instead_of_pickling: ClassVar[str]

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
