"""Random sequences of everything that a writer can do, against the model, with readers that watch."""

from __future__ import annotations

import os
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from format_helpers import read_counters
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from internals import small_sizes
from model import ModelBuffer, assert_equal, assert_folder_holds, random_values

from gym_replay import Field, ReplayBuffer

SCHEMAS: dict[str, tuple[dict[str, Field], dict[str, Field]]] = {
    "recorded": (
        {
            "observation.image": Field("uint8", (2, 3), 7, state=True),
            "observation.joints": Field("float32", (3,), state=True),
            "action": Field("int64"),
            "reward": Field("float64", default=float("nan")),
            "terminated": Field("bool"),
        },
        {"seed": Field("int64", default=-1), "task": Field("float32", (2,))},
    ),
    "no state": (
        {"x": Field("float32", (1,), 0.5), "done": Field("bool", (), True), "count": Field("uint8", (2, 2))},
        {},
    ),
    "zero size": (
        {"nothing": Field("float64", (0, 2), state=True), "x": Field("int64", state=True), "y": Field("uint8")},
        {"none": Field("uint8", (0,)), "flag": Field("bool", default=True)},
    ),
    "encoded": (
        {
            "image": Field("uint8", (2, 3), 7, state=True, codec="zstd"),
            "depth": Field("float32", (2, 2), codec={"id": "lz4", "acceleration": 3}),
            "x": Field("int64", state=True),
        },
        {},
    ),
    "one scalar": ({"x": Field("float64")}, {"label": Field("uint8", (1,), 3)}),
}

ADDED = [
    Field("float32", (2,), 1.25),
    Field("bool", (), True),
    Field("int64", (1,)),
    Field("float64", (0,)),
    Field("uint8", (3, 1), 9, state=True),
    Field("int16", (2,), -3, codec="zstd"),
]

lengths = st.integers(1, 7)
seeds = st.integers(0, 2**32 - 1)


class _Stop(Exception):
    """What the environment's owner raises in the middle of an episode."""


class BufferMachine(RuleBasedStateMachine):
    """One writer, one reader that lags behind, and one that opens the folder anew after every rule.

    Chunks are a few rows, files grow by a few bytes and checksums are filled in often, so that a handful of short
    episodes meets what otherwise takes gigabytes.
    """

    limits: dict[str, Any] = {}  # noqa: RUF012
    durability = "process"

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        self.folder = Path(self.stack.enter_context(tempfile.TemporaryDirectory()))
        patch = self.stack.enter_context(pytest.MonkeyPatch.context())
        small_sizes(patch, chunk_rows=2, growth=24, piece=16, checksum_run=200)
        self.context: Any = None
        self.views: list[tuple[int, Any, bytes]] = []

    def teardown(self) -> None:
        with self.stack:
            if hasattr(self, "buffer"):
                self.buffer.close()
                self.reader.close()
                self.views.clear()
                assert_folder_holds(self.folder, self.model)

    @initialize(schema=st.sampled_from(sorted(SCHEMAS)))
    def create(self, schema: str) -> None:
        fields, meta_fields = SCHEMAS[schema]
        self.model = ModelBuffer(dict(fields), dict(meta_fields), **self.limits)
        self.buffer = ReplayBuffer(
            self.folder, fields=fields, meta_fields=meta_fields, durability=self.durability, **self.limits
        )
        self.reader = ReplayBuffer.from_folder(self.folder, read_only=True)

    # --- recording ---

    def values_for(self, rng: np.random.Generator, length: int, *, final: bool) -> dict[str, Any]:
        """Values for some of the fields; for all state fields where the last observation is among them."""
        return {
            name: random_values(rng, info, (length + (info.state and final),))
            for name, info in self.model.fields.items()
            if (info.state and final) or rng.random() < 0.8
        }

    def meta_for(self, rng: np.random.Generator) -> dict[str, Any]:
        return {name: random_values(rng, info) for name, info in self.model.meta_fields.items() if rng.random() < 0.7}

    def follow(self, newest: int) -> None:
        self.model.follow(read_counters(self.folder)["first"], newest)

    @precondition(lambda self: self.context is None)
    @rule(seed=seeds)
    def begin(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.meta = self.meta_for(rng)
        self.steps: list[dict[str, Any]] = []
        self.final: dict[str, Any] | None = None
        context = self.buffer.one_episode(**self.meta)
        if (error := self.model.refusal(1, 1)) is not None:
            with pytest.raises(error):
                context.__enter__()
            return
        self.context, self.final_meta = context, context.__enter__()

    @precondition(lambda self: self.context is not None and self.final is None)
    @rule(seed=seeds, count=lengths)
    def store(self, seed: int, count: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(count):
            step = {name: random_values(rng, info) for name, info in self.model.fields.items() if rng.random() < 0.8}
            if (error := self.model.refusal(1, len(self.steps) + 1)) is not None:
                with pytest.raises(error):
                    self.buffer.store(**step)
                return
            self.buffer.store(**step)
            self.steps.append(step)

    @precondition(lambda self: self.context is not None and self.final is None and self.model.has_state)
    @rule(seed=seeds)
    def store_final(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.final = {name: random_values(rng, info) for name, info in self.model.fields.items() if info.state}
        self.buffer.store_final(**self.final)

    @precondition(lambda self: self.context is not None)
    @rule(seed=seeds)
    def end(self, seed: int) -> None:
        late = self.meta_for(np.random.default_rng(seed))
        self.final_meta.update(late)
        context, self.context = self.context, None
        context.__exit__(None, None, None)
        if not self.steps:
            return
        rows: dict[str, Any] = {}
        for name, info in self.model.fields.items():
            default = np.zeros(info.shape, info.dtype) if info.default is None else info.default
            given = [step.get(name, default) for step in self.steps]
            if info.state and self.final is not None:
                given.append(self.final[name])
            rows[name] = np.stack(given)
        meta = {**self.meta, **late}
        self.model.commit(len(self.steps), [rows], [meta], has_final=self.final is not None)
        self.follow(1)

    @precondition(lambda self: self.context is not None)
    @rule()
    def fail(self) -> None:
        context, self.context = self.context, None
        assert not context.__exit__(_Stop, _Stop(), None)

    @precondition(lambda self: self.context is None)
    @rule(seed=seeds, length=lengths, final=st.booleans())
    def store_episode(self, seed: int, length: int, final: bool) -> None:
        rng = np.random.default_rng(seed)
        final = final and self.model.has_state
        arrays = self.values_for(rng, length, final=final)
        if all(self.model.fields[name].state for name in arrays):  # they would not tell T
            name, info = next((name, info) for name, info in self.model.fields.items() if not info.state)
            arrays[name] = random_values(rng, info, (length,))
        meta = self.meta_for(rng)
        if (error := self.model.refusal(1, length)) is not None:
            with pytest.raises(error):
                self.buffer.store_episode(**arrays, **meta)
            return
        self.buffer.store_episode(**arrays, **meta)
        self.model.commit(length, [arrays], [meta], has_final=final)
        self.follow(1)

    @precondition(lambda self: self.context is None)
    @rule(seed=seeds, size=st.integers(1, 4), length=st.integers(0, 5), final=st.booleans(), fails=st.booleans())
    def batched_episode(self, seed: int, size: int, length: int, final: bool, fails: bool) -> None:
        rng = np.random.default_rng(seed)
        final = final and self.model.has_state
        arrays = {name: random_values(rng, info, (size, length)) for name, info in self.model.fields.items()}
        meta = {name: random_values(rng, info, (size,)) for name, info in self.model.meta_fields.items()}
        if (error := self.model.refusal(size, max(length, 1))) is not None:
            with pytest.raises(error):
                self.batch(size, max(length, 1))
            return
        with ExitStack() as stack:
            if fails:
                stack.enter_context(pytest.raises(_Stop))
            stack.enter_context(self.buffer.batched_episode(size, **meta))
            for t in range(length):
                self.buffer.store_batch(**{name: array[:, t] for name, array in arrays.items()})
            if final:
                last = {n: random_values(rng, info, (size,)) for n, info in self.model.fields.items() if info.state}
                self.buffer.store_final(**last)
                for name, value in last.items():
                    arrays[name] = np.concatenate((arrays[name], value[:, None]), axis=1)
            if fails:
                raise _Stop
        if length and not fails:
            blocks = [{name: array[k] for name, array in arrays.items()} for k in range(size)]
            metas = [{name: array[k] for name, array in meta.items()} for k in range(size)]
            self.model.commit(length, blocks, metas, has_final=final)
            self.follow(size)

    def batch(self, size: int, length: int) -> None:
        """Episodes of default values."""
        with self.buffer.batched_episode(size):
            for _ in range(length):
                self.buffer.store_batch()

    # --- changes ---

    def places(self, rng: np.random.Generator) -> tuple[Any, list[int]]:
        """Some live episodes as a caller may name them, and as plain indices in the order in which values are given."""
        count = len(self.model.live)
        chosen = rng.permutation(count)[: rng.integers(0, count + 1)]
        kind = rng.integers(0, 4)
        if kind == 0:
            return (chosen - count).tolist(), chosen.tolist()
        if kind == 1:
            mask = np.zeros(count, bool)
            mask[chosen] = True
            return mask, np.flatnonzero(mask).tolist()
        if kind == 2:
            low = int(rng.integers(0, count + 1))
            return slice(low, None, 2), list(range(low, count, 2))
        return chosen.astype(np.int32), chosen.tolist()

    # An open episode counts on the room that it found; deletions give a linear buffer more, which it does not use.
    @precondition(lambda self: self.context is None or self.model.circular or self.model.max_steps is None)
    @rule(seed=seeds)
    def delete(self, seed: int) -> None:
        argument, places = self.places(np.random.default_rng(seed))
        self.buffer.delete(argument)
        self.model.delete(places)

    @precondition(lambda self: self.model.live)
    @rule(seed=seeds, padded=st.booleans(), final=st.booleans())
    def update(self, seed: int, padded: bool, final: bool) -> None:
        rng = np.random.default_rng(seed)
        argument, places = self.places(rng)
        if not places:
            return
        chosen = [self.model.live[place] for place in places]
        arrays, columns = {}, {}
        for name, info in self.model.fields.items():
            if rng.random() < 0.5 or (info.codec and self.context is not None):
                continue
            counts = [episode.rows(info) if final else episode.length for episode in chosen]
            pieces = [random_values(rng, info, (count,)) for count in counts]
            columns[name] = pieces
            arrays[name] = pieces
            if padded and (final or not info.state):
                width, longest = max(counts) + int(rng.integers(0, 3)), self.buffer.metadata.max_timesteps
                if longest is not None:  # more rows than any episode may have are refused
                    width = min(width, longest + info.state)
                array = random_values(rng, info, (len(places), width))
                for row, piece in zip(array, pieces, strict=True):
                    row[: len(piece)] = piece
                arrays[name] = array
        meta = {
            name: random_values(rng, info, (len(places),))
            for name, info in self.model.meta_fields.items()
            if rng.random() < 0.5
        }
        if not arrays and not meta:
            return
        if len(places) == 1 and rng.random() < 0.5:
            argument = places[0]
            arrays, given = {n: pieces[0] for n, pieces in columns.items()}, {n: v[0] for n, v in meta.items()}
        else:
            given = meta
        self.buffer.update(argument, **arrays, **given)
        self.model.update(places, columns, meta)

    @precondition(lambda self: self.context is None and len(self.model.fields) < 8)
    @rule(seed=seeds, info=st.sampled_from(ADDED), given=st.booleans(), final=st.booleans())
    def add_field(self, seed: int, info: Field, given: bool, final: bool) -> None:
        if info.state and not self.model.has_state:
            info = replace(info, state=False)
        rng = np.random.default_rng(seed)
        name = f"added.{len(self.model.fields)}"
        live = self.model.live
        values = None
        if given and live:
            values = [random_values(rng, info, (e.rows(info) if final else e.length,)) for e in live]
        self.buffer.add_field(name, info, values, derived=False)
        self.model.add_field(name, info, values)

    @precondition(lambda self: self.context is None)
    @rule()
    def clear(self) -> None:
        self.buffer.clear()
        self.model.clear()

    # --- opening, closing, looking ---

    @rule()
    def flush(self) -> None:
        self.buffer.flush()
        if self.buffer._writer is not None:
            counters = read_counters(self.folder)
            assert counters["summed"] == counters["next"]

    @rule(closing=st.booleans())
    def release(self, closing: bool) -> None:
        """Letting go of the lock discards an open episode; closing and opening anew does too."""
        self.context = None
        if not closing:
            self.buffer.release()
        else:
            self.buffer.close()
            self.buffer.close()
            self.buffer = ReplayBuffer.from_folder(self.folder)

    @precondition(lambda self: self.context is None)
    @rule(passed=st.booleans())
    def reopen(self, passed: bool) -> None:
        config = self.limits | {"fields": self.model.fields, "meta_fields": self.model.meta_fields} if passed else {}
        self.buffer.close()
        self.buffer = ReplayBuffer(self.folder, durability=self.durability, **config)

    @rule()
    def refresh(self) -> None:
        """The lagging reader catches up, and keeps views that nothing later may change."""
        self.reader.refresh()
        assert_equal(self.reader, self.model)
        self.views = [
            (episode.id, view, view.tobytes()) for episode in self.reader for view in dict(episode.items()).values()
        ]

    @invariant()
    def all_agree(self) -> None:
        if not hasattr(self, "buffer"):
            return
        assert_equal(self.buffer, self.model)
        with ReplayBuffer(self.folder, read_only=True) as fresh:
            assert_equal(fresh, self.model)
        assert_folder_holds(self.folder, self.model)
        # A ring overwrites the rows of evicted episodes; everything else that was handed out stays as it was.
        oldest = read_counters(self.folder)["first"] if self.model.circular else 0
        for episode_id, view, content in self.views:
            if episode_id >= oldest:
                assert view.tobytes() == content


_SETTINGS = settings(
    max_examples=int(os.environ.get("MACHINE_EXAMPLES", "12")),
    stateful_step_count=int(os.environ.get("MACHINE_STEPS", "20")),
    report_multiple_bugs=False,
)


def _test_case(name: str, *, durability: str = "process", **limits: Any) -> Any:
    machine = type(name, (BufferMachine,), {"limits": limits, "durability": durability})
    case = machine.TestCase
    case.settings = _SETTINGS
    return case


TestUnlimited = _test_case("Unlimited")
TestDurable = _test_case("Durable", durability="power")
TestLimited = _test_case("Limited", max_episodes=5, max_timesteps=6)
TestLimitedSteps = _test_case("LimitedSteps", max_steps=20)
TestRingOfEpisodes = _test_case("RingOfEpisodes", circular=True, max_episodes=3)
TestRingOfSteps = _test_case("RingOfSteps", circular=True, max_steps=12)
TestRingOfBoth = _test_case("RingOfBoth", circular=True, max_episodes=4, max_timesteps=6, max_steps=15)
