"""All that is done to one hostile folder, and what may come of it."""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import functools
import random
import re
import signal
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from format_helpers import spans_path, step_path, values_path

import gym_replay
from gym_replay import GymReplayError, Ragged, ReplayBuffer, check_buffer

from .attacks import Case
from .guard import PACKAGE, difference, digest
from .victims import Original, Site, bytes_of, original

TIME_LIMIT = 10.0
"""Seconds that each thing done with the folder may take."""

LARGE = 1 << 24
"""Elements of an episode that are too many to be compared here."""


def _place(error: BaseException) -> str:
    """Where in the package an exception came from."""
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if str(PACKAGE) in frame.filename]
    return f"{Path(own[-1].filename).name}:{own[-1].name}" if own else "the test itself"


class Trial:
    """All that is done to one folder; ``report`` takes the kind of message and its values."""

    def __init__(self, case: Case, site: Site, repaired: Site, report: Callable[..., None], crash: Any) -> None:
        self._crash = crash
        self.case, self.site, self.report = case, site, report
        self.folder, self.copy = site.folder, repaired.folder
        self.victim = site.victim
        self.served: dict[int, Original] = {}
        self.differing: list[tuple[int, str]] = []
        self.unreadable: set[int] = set()  # episodes of which a row or a string is refused
        self.misplaced: set[int] = set()  # whose elements or strings are not where they say: others may take the place
        self.refused = self.warned = self.circular = False
        self.is_too_large = False  # a sound file, but not for the address space that a case may take

    def problem(self, cause: str, detail: str = "") -> None:
        self.report("problem", cause, detail)

    def attempt(self, phase: str, work: Callable[[], None]) -> bool:
        """Do something; False where the package refused."""
        self.report("phase", phase)
        self._limit_time()
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                work()
            self.warned = self.warned or (phase == "read" and any("left out" in str(w.message) for w in caught))
        except GymReplayError as error:
            self._note(error)
            return False
        except BaseException as error:
            text = "".join(traceback.format_exception(type(error), error, error.__traceback__, limit=-6))
            self.problem(f"{type(error).__name__} in {_place(error)}", text[-1500:])
            return False
        return True

    def _note(self, error: GymReplayError) -> None:
        """Look at an error of the package's own."""
        self._check_message(error)
        self.is_too_large = self.is_too_large or getattr(error, "errno", None) == errno.ENOMEM

    def _limit_time(self) -> None:
        """Have the stack written down, and the process killed, unless this is called again in time."""
        # Not dump_traceback_later: in a fork it waits for a thread that the parent may have had, and that is not here.
        faulthandler.unregister(signal.SIGALRM)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        faulthandler.register(signal.SIGALRM, file=self._crash, chain=True)
        signal.setitimer(signal.ITIMER_REAL, TIME_LIMIT)

    def _check_message(self, error: GymReplayError) -> None:
        text = str(error)
        about_files = (
            gym_replay.CorruptBufferError,
            gym_replay.UnsupportedFormatError,
            gym_replay.NotABufferError,
            gym_replay.BufferNotFoundError,
        )
        if isinstance(error, about_files) and not any(str(f) in text for f in (self.folder, self.copy)):
            module = _place(error).partition(":")[0]
            self.problem(f"{type(error).__name__} does not name the file, in {module}", text[:300])
        if isinstance(error, gym_replay.BufferLockedError):
            self.problem(f"BufferLockedError in {_place(error)}, though nobody writes", text[:300])
        if len(text) > 3000:
            self.problem(f"a message of over 3000 characters, in {_place(error)}", text[:300])

    # --- the phases ---

    def run(self) -> None:
        before = digest(self.folder)
        self.refused = not self.attempt("read", self._read)
        if not self.refused:
            self.attempt("load", self._load)
            self.attempt("environment", self._environment)
        self.report("outcome", "refused" if self.refused else "opened")
        if self.site.endless:
            return
        self.attempt("check", self._check)
        if changes := difference(before, digest(self.folder)):
            self.problem("reading and checking changed the folder", changes)
        if self.case.kind == "nothing" and self.refused:
            self.problem("a sound buffer was refused")
        self.attempt("repair", self._repair)
        if random.Random(self.case.name).random() < 0.7:
            wrote = self.attempt("write", self._write)
            if self.refused and wrote:
                self.problem("a buffer that readers refuse was written to")
            self.attempt("read after the write", functools.partial(self._read_again, self.folder))
        self.attempt("overwrite", self._overwrite)

    def _read(self) -> None:
        with ReplayBuffer.from_folder(self.folder, read_only=True) as buffer:
            for episode in buffer:
                self._serve(episode)
            repr(buffer)
            buffer.refresh()
            self.circular = buffer.circular
        if self.case.kind == "nothing" and sorted(self.served) != sorted(self.victim.live):
            self.problem(f"a sound buffer shows episodes {sorted(self.served)}")
        if not self.site.forged:
            self.differing = self._compare("read", self.served)

    def _serve(self, episode: gym_replay.Episode) -> None:
        try:
            episode.copy()
            if sum(values.lengths.sum() for values in dict(episode).values() if isinstance(values, Ragged)) > LARGE:
                self.is_too_large = True
            else:
                self.served[episode.id] = original(episode)
        except GymReplayError as error:
            self._note(error)
            self.unreadable.add(episode.id)

    def _compare(self, phase: str, served: dict[int, Original]) -> list[tuple[int, str]]:
        """Episodes and fields whose rows are not the original ones."""
        differing = []
        for episode, found in served.items():
            expected = self.victim.episodes.get(episode)
            if expected is None:
                self.problem("an episode that never was", f"episode {episode}")
                continue
            for name, value in found.meta.items():
                if name in expected.meta and value != expected.meta[name]:
                    self.problem("meta values are not the original ones", f"episode {episode}, {name}")
            for name, value in found.fields.items():
                rows = expected.fields.get(name, value)
                shared = min(len(rows), len(value))  # one row less where another schema says so
                if rows[:shared] != value[:shared]:
                    differing.append((episode, name))
        return differing

    def _load(self) -> None:
        with ReplayBuffer.from_folder(self.folder, read_only=True) as buffer:
            for options in ({"timestep_level": True}, {"n_steps": 2}, {}):
                with contextlib.suppress(gym_replay.EmptyBufferError):
                    next(iter(buffer.dataloader(4, **options)), None)

    def _environment(self) -> None:
        buffer = ReplayBuffer.from_folder(self.folder, read_only=True)
        for name in ("observation_space", "action_space", "env_spec"):
            self.attempt(f"environment ({name})", lambda name=name: repr(getattr(buffer, name)))
        if self.case.kind == "environment":
            self.report("phase", "environment (make_env)")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    buffer.make_env()
                except MemoryError:
                    raise
                except Exception:  # an environment says in its own words what arguments it does not take
                    return

    def _check(self) -> None:
        report = check_buffer(self.folder, progress=False)
        str(report)
        if self.refused and report.ok and not self.is_too_large:
            self.problem("finds nothing in a buffer that readers refuse", str(report))
        self.misplaced = {
            fault.episode
            for fault in report.faults
            if fault.episode is not None and (fault.rule in (12, 13) or fault.file.endswith(".spans.npy"))
        }
        for episode in [] if self.is_too_large else self.unreadable:
            if not any(fault.episode == episode for fault in report.faults):
                self.problem("rows or strings that a reader refuses are not named", f"{episode}: {report}")
        if self.warned and report.ok:
            self.problem("finds nothing where a reader warns of a damaged record", str(report))
        if self.case.kind == "nothing" and not report.ok:
            self.problem("faults in a sound buffer", str(report))
        for episode, name in self.differing:
            files = (step_path(name), spans_path(name), values_path(name), "checksums.npy")
            named = any(f.episode == episode or (f.file in files and f.episode is None) for f in report.faults)
            if not named and episode not in report.without_checksum:
                self.problem("damaged rows that a reader serves are not named", f"{episode}, {name}: {report}")

    def _repair(self) -> None:
        check_buffer(self.copy, repair=True, progress=False)
        self.attempt("check after the repair", self._check_repaired)
        self.attempt("read after the repair", functools.partial(self._read_again, self.copy, repaired=True))

    def _check_repaired(self) -> None:
        report = check_buffer(self.copy, progress=False)
        if not report.ok:
            files = sorted({re.sub(r"\d+", "N", re.sub(r"^.*?: ", "", fault.message))[:80] for fault in report.faults})
            self.problem(f"faults remain ({'; '.join(files)[:160]})", str(report)[:1000])

    def _read_again(self, folder: Path, *, repaired: bool = False) -> None:
        phase = "read after the repair" if repaired else "read after the write"
        found: dict[int, Original] = {}
        excused = self.unreadable | self.misplaced
        try:
            with ReplayBuffer.from_folder(folder, read_only=True) as buffer:
                found = {e.id: original(e) for e in buffer if repaired or e.id not in excused}
        except GymReplayError as error:
            if repaired and not self.is_too_large:
                self.problem(f"{type(error).__name__} in {_place(error)}", str(error)[:500])
            elif not self.refused:
                self.problem(f"{type(error).__name__}, before it was served", str(error)[:500])
            raise
        if repaired:
            if not self.site.forged:
                for episode, name in self._compare(phase, found):
                    if episode not in check_buffer(folder, progress=False).without_checksum:
                        self.problem("damaged rows are served", f"episode {episode}, {name}")
            return
        if self.refused:
            return
        oldest = min(found, default=0)
        for episode, content in self.served.items():
            if episode in excused:
                continue
            if (episode >= oldest or not self.circular) and found.get(episode) != content:
                lost = "lost" if episode not in found else "changed"
                self.problem(f"an episode that was served before is {lost}", f"episode {episode}")

    def _store(self, buffer: ReplayBuffer) -> None:
        fields = buffer.metadata.fields
        if sum(info.nbytes for info in fields.values()) > 1 << 24:
            return
        arrays = {name: np.ones((2 + info.state, *info.shape), info.dtype) for name, info in fields.items()}
        ragged = {name: [values[:1], *values[1:, None]] for name, values in arrays.items() if fields[name].ragged}
        texts = {name: f"new \u2603 {name}" for name, info in buffer.metadata.meta_fields.items() if info.is_text}
        buffer.store_episode(**arrays | ragged, **texts)
        newest = buffer.episode(-1)
        for name, values in arrays.items():
            sizes = np.array(1).tobytes() if fields[name].ragged else b""
            if bytes_of(newest[name]) != b"".join(sizes + row.tobytes() for row in values):
                self.problem("the episode just stored differs", name)
        if any(newest.meta[name] != text for name, text in texts.items()):
            self.problem("the episode just stored has other strings", f"{newest.meta}")

    def _write(self) -> None:
        with ReplayBuffer.from_folder(self.folder) as buffer:
            self._store(buffer)

    def _overwrite(self) -> None:
        fields = {
            "deep.reward": "float64",
            "observation": gym_replay.Field("float32", (2,), state=True),
            "deep.words": gym_replay.Field("uint16", ragged=True),
        }
        with ReplayBuffer(self.folder, fields=fields, meta_fields={"task": "str"}, overwrite=True) as buffer:
            self._store(buffer)
        report = check_buffer(self.folder, progress=False)
        if not report.ok:
            self.problem("the new buffer has faults", str(report)[:1000])
