"""The rows of episodes that are open, in the memory of the process that records them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from gym_replay.buffer.storage.staging import RowFormat, Stage, Staged
from gym_replay.schema.fields import Field

Ints = npt.NDArray[np.int64]
_FIRST_ROWS = 64


class OpenRows(Protocol):
    """The rows of the episodes that are open at one moment, under a numbering of their own."""

    @property
    def starts(self) -> Ints:
        """The number of each episode's first row, int64 ``(episodes,)``; an episode's rows follow one another."""

    @property
    def lengths(self) -> Ints:
        """How many transitions of each episode have their next state, int64 ``(episodes,)``."""

    def take(self, name: str, rows: Ints) -> npt.NDArray[Any] | None:
        """A field's values at rows of any shape, in memory of their own.

        Returns:
            ``(*rows.shape, *field.shape)``, of a ragged field ``rows.shape`` of arrays; None where all of these rows
            hold the field's default.
        """

    def meta(self) -> Mapping[str, npt.NDArray[Any]]:
        """The user's meta fields that were set so far, ``(episodes, *field.shape)`` each, strings as objects."""

    def are_valid(self, rows: Ints) -> bool:
        """Whether :meth:`take` gave values of these episodes: another thread may have ended some meanwhile."""


class StagedRows:
    """The rows of one stage as arrays, to which :meth:`follow` adds what was staged since.

    The episode is held in memory once more. Of a schema with ragged fields, transitions that went to the files before
    the first :meth:`follow` are not among them.

    Args:
        stage: the transitions of an open episode.
        meta: gives the user's meta fields, as of :class:`OpenRows`.

    Attributes:
        stage: the same.
    """

    def __init__(self, stage: Stage, meta: Callable[[], Mapping[str, npt.NDArray[Any]]]) -> None:
        self.stage, self.meta = stage, meta
        self._format: RowFormat | None = None
        self._columns: dict[str, npt.NDArray[Any]] = {}
        self._first = self._end = self._served = 0

    @property
    def starts(self) -> Ints:
        return np.array([self._first])

    @property
    def lengths(self) -> Ints:
        return np.array([self._served - self._first])

    def follow(self, most: int | None = None) -> StagedRows | None:
        """These rows, as they are now; None where there is no transition.

        Args:
            most: how many transitions of the episode are served at most.
        """
        staged = self.stage.staged
        if not staged.end:  # row 0 may come later
            return None
        if staged.format is not self._format or staged.start > self._end:
            self._begin(staged)
        if (end := staged.end) > self._end:
            self._add(staged, end)
        self._served = self._end if most is None else min(self._end, most)
        return self if self._served > self._first else None

    def _begin(self, staged: Staged) -> None:
        """Start anew: the fields have changed, or rows went to the files that were not looked at before."""
        fields, self._format = staged.format.fields, staged.format
        if staged.start and not staged.format.has_ragged:
            self._columns = {plan.name: self.stage.column(plan.name) for plan in staged.format.plan}
            self._first, self._end = 0, min(len(rows) - fields[name].state for name, rows in self._columns.items())
            return
        self._first = self._end = staged.start
        self._columns = {plan.name: _no_rows(fields[plan.name]) for plan in staged.format.plan}
        for name, _, _, is_state, _, default in staged.format.plan:
            if is_state:
                self._put(name, 0, _rows_of(fields[name], [staged.states.get(name) or default]))

    def _add(self, staged: Staged, end: int) -> None:
        """Take the transitions that were staged since."""
        width, at = staged.format.width, self._end - self._first
        items = staged.items[(self._end - staged.start) * width : (end - staged.start) * width]
        for name, item, packer, is_state, _, _ in staged.format.plan:
            own = items[item::width]
            # Of a state it is the one that the transition led to.
            rows = _rows_of(staged.format.fields[name], own if packer is None else [packer(own)])
            self._put(name, at + is_state, rows)
        self._end = end

    def _put(self, name: str, at: int, rows: npt.NDArray[Any]) -> None:
        column, end = self._columns[name], at + len(rows)
        if end > len(column):
            longer = np.empty((max(2 * len(column), end, _FIRST_ROWS), *column.shape[1:]), column.dtype)
            longer[:at] = column[:at]
            self._columns[name] = column = longer
        column[at:end] = rows

    def take(self, name: str, rows: Ints) -> npt.NDArray[Any] | None:
        column = self._columns.get(name)
        return None if column is None else column.take(rows - self._first, axis=0)

    def are_valid(self, rows: Ints) -> bool:
        return True  # they are a copy


def _no_rows(info: Field) -> npt.NDArray[Any]:
    return np.empty(0, object) if info.ragged else np.empty((0, *info.shape), info.dtype)


def _rows_of(info: Field, values: Sequence[Any]) -> npt.NDArray[Any]:
    """The rows that the bytes of values stand for, of a field that is not ragged as one array or several."""
    if info.ragged:
        rows = np.empty(len(values), object)
        for index, value in enumerate(values):
            rows[index] = np.frombuffer(value, info.dtype).reshape(-1, *info.shape)
        return rows
    if info.nbytes == 0:
        return np.empty((len(values), *info.shape), info.dtype)
    if info.codec is not None:  # no bytes stand for the default
        plain = info.default_value().tobytes()
        values = [value or plain for value in values]
    return np.frombuffer(b"".join(values), info.dtype).reshape(-1, *info.shape)
