"""Episodes of a vector environment that have ended: extracted from the rows of open ones, and then committed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from gym_replay.buffer.door import COMPLETE, HAS_FINAL, Block, Encoders, MetaColumn, Metadata
from gym_replay.buffer.replay_buffer import ReplayBuffer
from gym_replay.schema.fields import Field, widened
from gym_replay.wrappers.recorded_schema import FLAGS
from gym_replay.wrappers.session import FinishedEpisode
from gym_replay.wrappers.vector.autoreset import EnvIndices, Mask
from gym_replay.wrappers.vector.batches import Column, default_of
from gym_replay.wrappers.vector.episode_meta import EpisodeMeta
from gym_replay.wrappers.vector.staging import Staging

_TRUE = np.array(True)


class Finals(NamedTuple):
    """The last rows of episodes whose sub-environments are in the next episode already.

    Attributes:
        columns: the last observations and infos by field.
        has_final: for which of them there is a last observation.
    """

    columns: Mapping[str, Column]
    has_final: npt.NDArray[np.bool_]

    def only(self, part: slice) -> Finals:
        """Those of some of the episodes."""
        return Finals({name: column[part] for name, column in self.columns.items()}, self.has_final[part])


@dataclass
class EndedEpisodes:
    """Episodes of several sub-environments that have ended and are committed together, as arrays over all of them.

    Attributes:
        env_indices: the sub-environment of each.
        lengths: T of each.
        ends: one past the last row of each.
        is_complete: whether they were not cut.
        flags: those of their records, of all or of each.
        rows: by field, the rows of all of them, one episode after another.
        meta: by meta field, the values of each, or the bytes of that of all.
        noted: by meta field of the user's, whether each has been given a value before its end.
        verdicts: whether each is kept, of those that ``on_episode`` has seen.
        first_id: the id of the first, once a commit was begun.
    """

    env_indices: EnvIndices
    lengths: Sequence[int]
    ends: npt.NDArray[np.int64]
    is_complete: bool
    flags: int | npt.NDArray[np.uint8]
    rows: dict[str, Column]
    meta: dict[str, MetaColumn]
    noted: Mapping[str, Mask] = field(default_factory=dict)
    verdicts: list[bool] = field(default_factory=list)
    first_id: int | None = None

    def __len__(self) -> int:
        return len(self.env_indices)

    def finished(self, index: int, metadata: Metadata) -> FinishedEpisode:
        """One of the episodes, as ``on_episode`` sees it."""
        begin, length = int(self.ends[index - 1]) if index else 0, self.lengths[index]
        flags = self.flags if isinstance(self.flags, int) else self.flags[index]

        def column(name: str) -> npt.NDArray[Any]:
            info = metadata.fields[name]
            count = length + (info.state and bool(flags & HAS_FINAL))
            if (rows := self.rows.get(name)) is None:
                rows = np.broadcast_to(info.default_value(), (begin + count, *info.shape))
            return np.array(rows[begin : begin + count])

        total = self.meta["episode_return"][index]
        return FinishedEpisode(
            length,
            metadata.fields,
            column,
            meta={
                name: _shown(metadata.meta_fields[name], self.meta[name][index])
                for name, are_noted in self.noted.items()
                if are_noted[index]
            },
            episode_return=total if isinstance(total, np.ndarray) else float(total),
            complete=self.is_complete,
            env_index=int(self.env_indices[index]),
        )

    def set_meta(self, index: int, meta: Mapping[str, Any], encoders: Encoders) -> None:
        """Set meta fields of the user's in one of the episodes."""
        for name, encoded in encoders.meta(meta).items():
            info = encoders.metadata.meta_fields[name]
            values = self.meta.get(name, encoders.metadata.record.defaults[name])
            if isinstance(values, bytes):  # one for all so far
                values = [values] * len(self)
                self.meta[name] = values if info.is_text else np.array([_decoded(info, each) for each in values])
            column: Any = self.meta[name]
            column[index] = encoded if info.is_text else _decoded(info, encoded)

    def block(self, buffer: ReplayBuffer) -> Block:
        """What is committed to the buffer."""
        # A call for the checksum of each field of each of them would take longer than to record them.
        return Block(self.rows, self.lengths, self.flags, self.meta, sums_may_wait=True)

    def widen(self, fields: Mapping[str, Field], *, is_trial: bool = False) -> None:
        """Have the rows in the dtypes of these fields; a trial changes nothing.

        Raises:
            FieldError: a value would change.
        """
        columns = {name: (self.rows[name], info) for name, info in fields.items() if name in self.rows}
        wider = {
            name: widened(name, column, info.dtype)
            for name, (column, info) in columns.items()
            if not info.ragged and info.dtype != column.dtype
        }
        if not is_trial:
            self.rows |= wider

    def drop_last_observations(self, fields: Mapping[str, Field]) -> None:
        """Have no last observations: they may be those of other episodes."""
        self.flags = COMPLETE * self.is_complete
        for name, column in self.rows.items():
            if fields[name].state:
                column[self.ends - 1] = default_of(fields[name])

    def only(self, kept: Sequence[bool]) -> EndedEpisodes:
        """The episodes that are kept, of which there are some."""
        is_kept = np.array(kept, bool)
        counts = np.diff(self.ends, prepend=0)
        rows = np.repeat(is_kept, counts)
        return replace(
            self,
            env_indices=self.env_indices[is_kept],
            lengths=np.array(self.lengths)[is_kept].tolist(),
            ends=counts[is_kept].cumsum(),
            flags=self.flags if isinstance(self.flags, int) else self.flags[is_kept],
            rows={name: column[rows] for name, column in self.rows.items()},
            meta={name: _of_kept(values, is_kept) for name, values in self.meta.items()},
            noted={name: values[is_kept] for name, values in self.noted.items()},
            verdicts=[True] * int(is_kept.sum()),
        )


def extract_ended(
    staging: Staging,
    meta: EpisodeMeta,
    env_indices: EnvIndices,
    lengths: npt.NDArray[np.int64],
    until: int,
    returns: npt.NDArray[Any],
    flags: tuple[Mask, Mask],
    finals: Finals | None,
    *,
    complete: bool,
    has_state: bool,
) -> EndedEpisodes:
    """The episodes of some sub-environments, which have ended.

    Args:
        staging: has their rows.
        meta: has their meta fields.
        env_indices, lengths: of each the sub-environment, and T.
        until: the time of their last observations.
        returns: of all sub-environments.
        flags: ``terminated`` and ``truncated`` of all sub-environments in the last step, the only one in which they are
            true.
        finals: their last rows, where the staging has those of the next episodes.
        complete: whether they are not cut.
        has_state: whether they have row T.
    """
    counts = lengths + 1 if has_state else lengths
    ends = np.add.accumulate(counts)
    rows, last = staging.extract(env_indices, until - lengths, counts, ends), ends - (1 + has_state)
    bits: int | npt.NDArray[np.uint8] = COMPLETE * complete + HAS_FINAL * has_state
    if finals is not None:
        for name, column in finals.columns.items():
            if name in rows:
                rows[name][ends - 1] = column
        bits = np.where(finals.has_final, bits, COMPLETE * complete).astype(np.uint8)
    for name, mask in zip(FLAGS, flags, strict=True):
        if mask.tobytes() != bytes(len(mask)):  # mostly one of the flags is nowhere
            rows[name] = flag = np.zeros(ends.item(-1), bool)
            flag[last] = mask[env_indices] & _TRUE  # environments of others may have any number for True
    values, noted = meta.columns(env_indices, returns[env_indices], complete=complete), meta.noted(env_indices)
    return EndedEpisodes(env_indices, lengths.tolist(), ends, complete, bits, rows, values, noted)


def parts_of(lengths: Sequence[int], most_episodes: int, most_steps: int) -> list[slice]:
    """Which episodes to commit at once: so few that not many others have to leave a ring."""
    firsts, steps = [0], 0
    for i, length in enumerate(lengths):
        if i > firsts[-1] and (i - firsts[-1] >= most_episodes or steps + length > most_steps):
            firsts.append(i)
            steps = 0
        steps += length
    return [slice(first, end) for first, end in zip(firsts, [*firsts[1:], len(lengths)], strict=True)]


def _of_kept(values: MetaColumn, kept: Mask) -> MetaColumn:
    if isinstance(values, (np.ndarray, bytes)):
        return values if isinstance(values, bytes) else values[kept]
    return [value for value, is_kept in zip(values, kept.tolist(), strict=True) if is_kept]


def _shown(info: Field, value: Any) -> Any:
    """The value of a meta field, as the user gave it."""
    if info.is_text:
        return value.decode("utf-8", "surrogatepass")
    return np.array(value) if info.shape else value.item()


def _decoded(info: Field, encoded: bytes) -> npt.NDArray[Any]:
    value: npt.NDArray[Any] = np.frombuffer(encoded, info.dtype).reshape(info.shape)
    return value
