"""What is noted of the episode that each sub-environment is in, beside its steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from gym_replay.buffer.door import MetaColumn
from gym_replay.buffer.open_episode import encode_texts
from gym_replay.schema.fields import Field, fit, to_array
from gym_replay.wrappers.episode_facts import FLAG_BYTES
from gym_replay.wrappers.generator_state import NO_GENERATOR, NUMBERS
from gym_replay.wrappers.recorded_schema import RECORDER_META
from gym_replay.wrappers.vector.autoreset import Mask
from gym_replay.wrappers.vector.ring import Numbers

_NO_SEED = np.int64(-1).tobytes()


class EpisodeFacts:
    """The facts of each sub-environment's episode; those of one without an episode mean nothing.

    Args:
        num_envs: how many sub-environments there are.
        run: the meta field ``episode_run``.
        meta_fields: tells the buffer's present ones.

    Attributes:
        start: of each the time of the first observation.
    """

    def __init__(self, num_envs: int, run: bytes, meta_fields: Callable[[], Mapping[str, Field]]) -> None:
        self._num_envs, self._run, self._meta_fields = num_envs, run, meta_fields
        self.start: Numbers = np.zeros(num_envs, np.int64)
        self._began = np.zeros(num_envs)
        self._seeds = np.full(num_envs, -1)
        self._states = np.zeros((num_envs, NUMBERS), np.uint64)
        # Where none of them has a seed, or the state of a generator, these are not looked at.
        self._are_seeded = self._have_states = False
        self._options: list[bytes] = [b""]
        self._option = np.zeros(num_envs, np.int64)  # of each sub-environment the place in these
        self._known: Mapping[str, Field] | None = None
        self._others: list[tuple[str, Field, bytes]] = []
        self._notes: dict[str, Any] = {}
        self._are_noted: dict[str, Mask] = {}

    def noted(self, numbers: Numbers) -> dict[str, Mask]:
        """By meta field of the user's, whether it was set in the episodes of some sub-environments."""
        if not self._are_noted:
            return {}
        return {name: are_noted[numbers] for name, are_noted in self._are_noted.items()}

    # --- episodes begin; none of theirs is running while this is written ---

    def begin(
        self, opened: Numbers | Mask, now: int, began: float, generators: npt.NDArray[np.uint64] | None = None
    ) -> None:
        """Episodes that the environment opens by itself.

        Args:
            opened: of these sub-environments.
            now: the time of their first observations.
            began: when the step began that reset them.
            generators: of all sub-environments, where they are known.
        """
        self.start[opened] = now
        self._began[opened] = began
        if self._are_seeded:
            self._seeds[opened] = -1
        if generators is not None:
            self._have_states = True
            self._states[opened] = generators[opened]
        elif self._have_states:
            self._states[opened] = 0
        if len(self._options) > 1:
            self._option[opened] = 0
        if self._notes:
            known = self._meta_fields()
            for name, values in self._notes.items():
                values[opened] = _default_of(known[name])
                self._are_noted[name][opened] = False

    def begin_reset(
        self,
        mask: Mask,
        now: int,
        began: float,
        seeds: Numbers,
        generators: npt.NDArray[np.uint64] | None,
        options: bytes,
    ) -> None:
        """Episodes that an explicit reset opens."""
        self.begin(mask, now, began, generators)
        self._are_seeded = True
        self._seeds[mask] = seeds[mask]
        known = [b"", *{self._options[place] for place in np.unique(self._option[~mask]).tolist()} - {b"", options}]
        known += [options] if options else []
        places = [known.index(text) if text in known else 0 for text in self._options]
        of_all = np.array(places)[self._option]
        of_all[mask] = known.index(options)
        # In one call: an interrupt in between would give the episodes that go on other options.
        self.__dict__.update(_options=known, _option=of_all)

    # --- what the user adds ---

    def checked_note(self, name: str, value: Any) -> npt.NDArray[Any]:
        """The values of a meta field for all sub-environments, from what the user gave.

        Raises:
            FieldError: they do not fit.
        """
        info, count = self._meta_fields()[name], self._num_envs
        if info.is_text:
            texts = np.empty(count, object)
            texts[:] = encode_texts(name, value, count)
            return texts
        array = to_array(value, name)
        if array.shape in (info.shape, ()) and array.shape != (count, *info.shape):
            array = np.broadcast_to(array, (count, *array.shape))
        return fit(name, array, info, lead=(count,))

    def annotate(self, name: str, values: npt.NDArray[Any], running: Mask) -> None:
        """Set a meta field of the episodes that are running."""
        if name not in self._notes:
            info = self._meta_fields()[name]
            notes = np.empty((self._num_envs, *info.shape), object if info.is_text else info.dtype)
            notes[:] = _default_of(info)
            self._are_noted[name] = np.zeros(self._num_envs, bool)
            self._notes[name] = notes
        self._notes[name][running] = values[running]
        self._are_noted[name] |= running

    # --- episodes end ---

    def columns(self, numbers: Numbers, returns: npt.NDArray[Any], *, complete: bool) -> dict[str, MetaColumn]:
        """The meta fields of the episodes of some sub-environments; what is the same in all of them as one value."""
        texts = self._options
        if self._are_seeded:
            self._look_for_seeds()
        took = time.monotonic() - self._began[numbers]  # no clock that somebody may set back
        meta: dict[str, MetaColumn] = {
            "episode_seed": self._seeds[numbers] if self._are_seeded else _NO_SEED,
            "episode_return": returns,
            "episode_complete": FLAG_BYTES[complete],
            "episode_options": texts[0] if len(texts) == 1 else [texts[at] for at in self._option[numbers].tolist()],
            "episode_rng": self._states[numbers] if self._have_states else NO_GENERATOR,
            "episode_start": time.time() - took,
            "episode_duration": took,
            "episode_run": self._run,
            "env_index": numbers,
        }
        for name, info, default in self._of_user():
            if name in self._notes:
                values = self._notes[name][numbers]
                meta[name] = values.tolist() if info.is_text else values
            else:
                meta[name] = default
        return meta

    def _look_for_seeds(self) -> None:
        self._are_seeded = bool(np.count_nonzero(self._seeds != -1))

    def _of_user(self) -> list[tuple[str, Field, bytes]]:
        """The meta fields that are not the recorder's own, with their defaults."""
        known = self._meta_fields()
        if known is not self._known:
            defaults = {name: info.default_value().tobytes() for name, info in known.items() if not info.is_text}
            self._others = [
                (name, info, defaults.get(name, b"")) for name, info in known.items() if name not in RECORDER_META
            ]
            self._known = known
        return self._others


def _default_of(info: Field) -> Any:
    return b"" if info.is_text else info.default_value()
