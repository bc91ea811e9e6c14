"""Many buffers of one schema, read as one."""

from __future__ import annotations

import os
from collections.abc import Sequence

from gym_replay.buffer.reading import Readable
from gym_replay.buffer.replay_buffer import ReplayBuffer
from gym_replay.buffer.storage.layout import Metadata
from gym_replay.buffer.storage.reader import Snapshot
from gym_replay.errors import ConfigMismatchError, EmptyBufferError


class ConcatReplayBuffer(Readable):
    """The reading side of :class:`ReplayBuffer` over several of them, one after another.

    Args:
        buffers: folders or buffers; folders are opened read-only.

    Raises:
        ConfigMismatchError: their schemas differ; the message lists how.

    Example:
        >>> both = ConcatReplayBuffer(["data/monday", "data/tuesday"])  # doctest: +SKIP
        >>> loader = both.dataloader(batch_size=256, timestep_level=True, shuffle=True)  # doctest: +SKIP
    """

    def __init__(self, buffers: Sequence[str | os.PathLike[str] | ReplayBuffer]) -> None:
        if isinstance(buffers, (str, os.PathLike)):
            raise TypeError(f"expected a list of folders or buffers, got {buffers!r}; write [{str(buffers)!r}]")
        if not buffers:
            raise EmptyBufferError("expected at least one folder or buffer, got none")
        self._opened: list[ReplayBuffer] = []
        self.buffers: list[ReplayBuffer] = []
        try:
            for item in buffers:
                if isinstance(item, ReplayBuffer):
                    self.buffers.append(item)
                else:
                    self._opened.append(ReplayBuffer.from_folder(item, read_only=True))
                    self.buffers.append(self._opened[-1])
            self._check_schemas()
        except BaseException:
            self.close()
            raise

    def _check_schemas(self) -> None:
        first, *others = self.buffers
        for other in others:
            for kind in ("fields", "meta_fields"):
                mine, theirs = getattr(first.metadata, kind), getattr(other.metadata, kind)
                differences = [
                    f"{name}: {mine.get(name, 'missing')} and {theirs.get(name, 'missing')}"
                    for name in {**mine, **theirs}
                    if mine.get(name) != theirs.get(name)
                ]
                if differences:
                    raise ConfigMismatchError(
                        f"{first.folder} and {other.folder} differ in their {kind}: {'; '.join(differences)}"
                    )

    def snapshots(self) -> list[Snapshot]:
        return [part for buffer in self.buffers for part in buffer.snapshots()]

    @property
    def metadata(self) -> Metadata:
        return self.buffers[0].metadata

    def refresh(self) -> None:
        """See what other processes committed since."""
        for buffer in self.buffers:
            buffer.refresh()

    def close(self) -> None:
        """Close the buffers that were opened here."""
        for buffer in self._opened:
            buffer.close()

    def __enter__(self) -> ConcatReplayBuffer:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"ConcatReplayBuffer({len(self.buffers)} buffers)"
