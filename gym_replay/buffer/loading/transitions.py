"""Samples that are steps: single transitions and n-step transitions, with goals where these are asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from gym_replay.buffer.loading.collate import Arrays
from gym_replay.buffer.loading.datasets import ReplayDataset
from gym_replay.buffer.loading.goals import GoalSampler
from gym_replay.buffer.loading.plans import (
    Anchors,
    Bools,
    FirstRows,
    Ints,
    Samples,
    forward_rows,
    last_rows,
    n_step_anchors,
    n_step_lengths,
    scale,
    timestep_anchors,
)
from gym_replay.buffer.loading.returns import check_discount
from gym_replay.buffer.loading.source import Source
from gym_replay.errors import CorruptBufferError, EpisodeEvictedError, FieldError

_ATTEMPTS = 100
_DRAWN = {"value": slice(0, 3), "policy": slice(3, 6)}
_REWARD, _MASK = "goal_reward", "goal_mask"


class _Reached:
    """Transitions and the goals of their value function; see :class:`~gym_replay.buffer.loading.goals.Reaching`."""

    def __init__(self, source: Source, episodes: Ints, steps: Ints, goals: tuple[Ints, Ints]) -> None:
        self._source = source
        self._episodes, self._steps = episodes, steps
        self._goals = goals
        self.reached: Bools = (goals[0] == episodes) & (goals[1] == steps)

    def current(self, name: str) -> npt.NDArray[Any]:
        return self._take(name, self._episodes, self._steps, state=False)

    def following(self, name: str) -> npt.NDArray[Any]:
        last = last_rows(self._source.lengths, self._source.has_final)[self._episodes]
        if (self._steps >= last).any():
            raise FieldError(
                f"relabel: {name!r} has no row after the last step of an episode without its last observation; with "
                "n_steps=1 such steps are no samples"
            )
        return self._take(name, self._episodes, self._steps + 1, state=True)

    def goal(self, name: str) -> npt.NDArray[Any]:
        return self._take(name, *self._goals, state=True)

    def _take(self, name: str, episodes: Ints, steps: Ints, *, state: bool) -> npt.NDArray[Any]:
        field = self._source.fields.get(name)
        if field is None or field.ragged or (state and not field.state):
            fitting = [n for n, info in self._source.fields.items() if not info.ragged and (info.state or not state)]
            raise FieldError(f"relabel: {name!r} is none of the fields that can be asked for here: {fitting}")
        return self._source.take(name, self._source.starts[episodes] + steps)


class StepDataset(ReplayDataset):
    """What datasets have in common whose samples are steps.

    Args:
        goal_sampler: adds goals, see :class:`~gym_replay.GoalSampler`.
        return_indices: add ``_indices``.
    """

    def __init__(
        self,
        source: Source,
        anchors: Anchors,
        *,
        goal_sampler: GoalSampler | None = None,
        return_indices: bool = False,
        **common: Any,
    ) -> None:
        super().__init__(source, anchors, **common)
        self._rows = FirstRows(self.anchors, source.starts)
        self._return_indices = return_indices
        if goal_sampler is not None and not isinstance(goal_sampler, GoalSampler):
            raise FieldError(f"goal_sampler={goal_sampler!r}: expected a GoalSampler")
        self._goals = goal_sampler
        self._goal_fields: list[str] = []
        if goal_sampler is None:
            return
        states = [name for name, field in source.fields.items() if field.state]
        self._goal_fields = self._check_fields("GoalSampler.fields", goal_sampler.fields, states)
        if not self._goal_fields or (wrong := [name for name in self._goal_fields if name not in states]):
            which = f"{wrong[0]!r} is none" if self._goal_fields else "there is none"
            raise FieldError(f"GoalSampler: expected state fields as goals, {which}; the state fields are {states}")
        self._last = last_rows(source.lengths, source.has_final)
        self._everything = timestep_anchors(source.lengths)

    @property
    def is_divisible(self) -> bool:
        # Ragged fields are padded to the longest of their batch, and a relabelling function is given whole batches.
        return self._goals is None and not any(self.source.fields[name].ragged for name in self.read_fields)

    def _goal_entries(self) -> dict[str, str]:
        """Entry name to field name of all goals."""
        kinds = self._goals.mixtures if self._goals is not None else ()
        return {f"{kind}_goal_{name}": name for kind in kinds for name in self._goal_fields}

    def _choose_steps(self, entries: Mapping[str, str], named: Sequence[str]) -> dict[str, str]:
        """As :meth:`_choose`, with the goals."""
        chosen = self._choose({**entries, **self._goal_entries()}, named)
        self._chosen_goals = {entry: name for entry, name in self._goal_entries().items() if entry in chosen}
        return {entry: name for entry, name in chosen.items() if entry not in self._chosen_goals}

    def _step_names(self) -> list[str]:
        """The entries that :meth:`_put_steps` adds."""
        relabelled = [_REWARD, _MASK] if self._goals is not None and self._goals.value is not None else []
        return [*relabelled, *(["_indices"] if self._return_indices else [])]

    def _put_steps(self, arrays: Arrays, samples: Samples) -> None:
        """Add what belongs to each step beside its fields."""
        if self._goals is not None:
            self._put_goals(self._goals, arrays, samples.episodes, samples.steps)
        if self._return_indices and self._is_wanted("_indices"):
            arrays["_indices"] = np.stack((self.source.index[samples.episodes], samples.steps), axis=1)

    def _put_goals(self, sampler: GoalSampler, arrays: Arrays, episodes: Ints, steps: Ints) -> None:
        uniforms = self._draws(6, episodes, steps)
        for kind, mixture in sampler.mixtures.items():
            draws = uniforms[_DRAWN[kind]]
            own, is_random = mixture.rows(steps, self._last[episodes], draws[:2])
            anywhere = scale(draws[2], np.full(len(steps), len(self._everything), np.int64))
            for _ in range(_ATTEMPTS):
                others, places = self._everything.locate(self.source.replace_evicted(anywhere, self._everything))
                goals = np.where(is_random, others, episodes), np.where(is_random, places, own)
                taken = Arrays()
                try:
                    self._take_goals(sampler, kind, taken, episodes, steps, goals)
                except CorruptBufferError:
                    if not is_random.any() or self.source.are_live(others[is_random]):
                        raise
                    continue  # spans of rows that were overwritten meanwhile
                if not is_random.any() or self.source.are_live(others[is_random]):
                    break
            else:
                raise EpisodeEvictedError("episodes are evicted from the circular buffer faster than goals are copied")
            arrays |= taken

    def _take_goals(
        self, sampler: GoalSampler, kind: str, arrays: Arrays, episodes: Ints, steps: Ints, goals: tuple[Ints, Ints]
    ) -> None:
        rows = self.source.starts[goals[0]] + goals[1]
        for name in self._goal_fields:
            entry = f"{kind}_goal_{name}"
            if entry in self._chosen_goals:
                self._put_rows(arrays, entry, name, rows)
        if kind != "value" or not (self._is_wanted(_REWARD) or self._is_wanted(_MASK)):
            return
        given = sampler.relabel(_Reached(self.source, episodes, steps, goals))
        if not isinstance(given, tuple) or len(given) != 2:
            raise FieldError(f"relabel: expected a tuple of rewards and masks, got {type(given).__name__}")
        for entry, values in zip((_REWARD, _MASK), given, strict=True):
            array = np.array(values)
            if array.dtype.kind not in "buif" or array.shape[:1] != (len(steps),):
                raise FieldError(
                    f"relabel: {entry}: expected {len(steps)} numbers, got {array.dtype} of shape {array.shape}"
                )
            if self._is_wanted(entry):
                arrays[entry] = array


class TimestepDataset(StepDataset):
    """One transition a sample: the row of its step."""

    def __init__(self, source: Source, *, fields: Sequence[str] | None = None, **common: Any) -> None:
        super().__init__(source, timestep_anchors(source.lengths), **common)
        chosen = self._check_fields("fields", fields, list(source.fields))
        self._fields = self._choose_steps({name: name for name in chosen}, fields or ())

    def _extra_names(self) -> list[str]:
        return self._step_names()

    def _gather(self, samples: Samples) -> Arrays:
        rows = self._rows.of(samples)
        arrays = Arrays()
        for name in self._fields:
            self._put_rows(arrays, name, name, rows)
        self._put_steps(arrays, samples)
        return arrays


class NStepDataset(StepDataset):
    """One step t a sample, with what holds n steps later, or at the episode's end where that comes first."""

    def __init__(
        self,
        source: Source,
        *,
        n_steps: int = 1,
        current_fields: Sequence[str] | None = None,
        next_fields: Sequence[str] | None = None,
        sequence_fields: Sequence[str] | None = None,
        discount: float | None = None,
        reward_field: str = "reward",
        terminated_field: str = "terminated",
        **common: Any,
    ) -> None:
        if isinstance(n_steps, bool) or not isinstance(n_steps, (int, np.integer)) or n_steps < 1:
            raise FieldError(f"n_steps: expected a positive integer, got {n_steps!r}")
        super().__init__(source, n_step_anchors(source.lengths, source.has_final), **common)
        self._n_steps = int(n_steps)
        self._discount = None if discount is None else check_discount(discount)
        self._reward, self._terminated = reward_field, terminated_field
        if self._discount is not None:
            self._check_discounted()
        states = [name for name, field in source.fields.items() if field.state]
        current = self._check_fields("current_fields", current_fields, list(source.fields))
        following = self._check_fields("next_fields", next_fields, states or list(source.fields))
        sequence = self._check_fields("sequence_fields", sequence_fields, ())
        # In a schema without state fields the last transition is no sample, so every next row exists.
        self._may_lack_next = [name for name in following if states and name not in states]
        entries = {name: name for name in current}
        entries |= {f"next_{name}": name for name in following} | {f"seq_{name}": name for name in sequence}
        chosen = self._choose_steps(entries, (*(current_fields or ()), *(next_fields or ()), *(sequence_fields or ())))
        self._current = [name for name in current if name in chosen]
        self._next = [name for name in following if f"next_{name}" in chosen]
        self._sequence = [name for name in sequence if f"seq_{name}" in chosen]

    def _check_discounted(self) -> None:
        fields = self.source.fields
        for argument, name, fits in (
            ("reward_field", self._reward, lambda field: not field.ragged),
            ("terminated_field", self._terminated, lambda field: not field.ragged and field.shape in ((), (1,))),
        ):
            check: Callable[[Any], bool] = fits
            if name not in fields or not check(fields[name]):
                fitting = [other for other, field in fields.items() if check(field)]
                raise FieldError(f"discount needs {argument}, one of {fitting}, got {name!r}")

    def _extra_names(self) -> list[str]:
        discounted = [] if self._discount is None else ["n_step_return", "n_step_discount"]
        pads = [f"next_{name}_is_pad" for name in self._may_lack_next]
        return [*pads, "n_step_lens", *discounted, *self._step_names()]

    def _gather(self, samples: Samples) -> Arrays:
        rows, lengths = self._rows.of(samples), n_step_lengths(samples, self._n_steps)
        arrays = Arrays()
        for name in self._current:
            self._put_rows(arrays, name, name, rows)
        for name in self._next:
            self._put_rows(arrays, f"next_{name}", name, rows + lengths)
        if self._may_lack_next:
            exist = samples.steps + lengths < self.source.lengths.take(samples.episodes)
            arrays.were_padded([f"next_{name}" for name in self._may_lack_next], exist)
            for name in self._may_lack_next:
                if self._is_wanted(entry := f"next_{name}_is_pad"):
                    arrays[entry] = ~exist
        if self._sequence or self._discount is not None:
            self._put_sequences(arrays, *forward_rows(rows, lengths, self._n_steps))
        if self._is_wanted("n_step_lens"):
            arrays["n_step_lens"] = lengths
        self._put_steps(arrays, samples)
        return arrays

    def _put_sequences(self, arrays: Arrays, inside: Ints, mask: Bools) -> None:
        for name in self._sequence:
            self._put_masked(arrays, f"seq_{name}", name, inside, mask)
        if self._discount is None:
            return
        weights = self._discount ** np.arange(self._n_steps, dtype=np.float64)
        shape = self.source.fields[self._reward].shape
        shape = () if math.prod(shape) == 1 else shape  # (batch, 1) beside (batch,) would be broadcast
        if self._is_wanted("n_step_return"):
            taken = self.source.take(self._reward, inside)
            rewards = taken.astype(np.float64)
            rewards[~mask] = 0
            summed = np.tensordot(weights, rewards, axes=(0, 1))
            arrays["n_step_return"] = summed.reshape(len(summed), *shape).astype(
                taken.dtype if taken.dtype.kind == "f" else np.float64
            )
        if self._is_wanted("n_step_discount"):
            ended = self.source.take(self._terminated, inside).reshape(mask.shape).astype(np.bool_) & mask
            discounts = np.where(ended.any(axis=1), 0.0, self._discount ** mask.sum(axis=1))
            arrays["n_step_discount"] = discounts.reshape(len(discounts), *[1] * len(shape))
