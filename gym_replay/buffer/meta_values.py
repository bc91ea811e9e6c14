"""What each episode has once, over all episodes: by name, and as a table of pandas."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gym_replay.buffer.storage.reader import Snapshot
from gym_replay.errors import FieldError, MissingExtraError
from gym_replay.notices import did_you_mean

if TYPE_CHECKING:
    import pandas

_FACTS = ("id", "length")


class MetaValues(Mapping[str, Any]):
    """The meta fields of all episodes of some snapshots, read when they are asked for.

    ``values[name]`` is an array ``(episodes, *field.shape)`` in the field's dtype, of a string field a list of strings.

    Args:
        parts: the snapshots.
    """

    def __init__(self, parts: Sequence[Snapshot]) -> None:
        self._parts = parts
        self._fields = parts[0].metadata.meta_fields

    def __getitem__(self, name: str) -> Any:
        if name not in self._fields:
            hint = did_you_mean(name, self._fields)
            if name in self._parts[0].metadata.fields:
                hint = "; it is a field of the steps: buffer.episode(index)[name] has its rows"
            raise FieldError(f"unknown meta field {name!r}{hint}")
        return self._read(name)

    def _read(self, name: str) -> Any:
        values: npt.NDArray[Any] = np.concatenate([part.meta(name) for part in self._parts])
        return values.tolist() if self._fields[name].is_text else values

    def __contains__(self, name: object) -> bool:
        return name in self._fields

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def _ipython_key_completions_(self) -> list[str]:
        return list(self)

    def __repr__(self) -> str:
        return f"MetaValues({list(self)} of {sum(map(len, self._parts))} episodes)"

    def get(self, name: str, default: Any = None) -> Any:
        """The values of a meta field, or something else where there is no such field."""
        return self._read(name) if name in self._fields else default

    def as_columns(self) -> dict[str, Any]:
        """Id and length of each episode, and all meta fields of one number or string; those have ``meta/`` before
        their name where an id or a length has it."""
        facts = {"id": [part.ids for part in self._parts], "length": [part.lengths for part in self._parts]}
        columns: dict[str, Any] = {name: np.concatenate(values) for name, values in facts.items()}
        for name, info in self._fields.items():
            if info.is_text or info.shape == ():
                columns[f"meta/{name}" if name in _FACTS else name] = self[name]
        return columns

    def to_pandas(self) -> pandas.DataFrame:
        """:meth:`as_columns` as a table, whose index is that of the episodes.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        try:
            import pandas
        except ModuleNotFoundError as error:
            if error.name != "pandas":
                raise
            raise MissingExtraError(
                "to_pandas needs pandas, which is not installed: pip install 'gym-replay[pandas]'"
            ) from error
        return pandas.DataFrame(self.as_columns())
