"""The bar of a collection, and Ctrl-C."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from tqdm import tqdm

from gym_replay.collecting.feed import Played
from gym_replay.collecting.plan import Goal
from gym_replay.files.folders import bytes_beneath

_SECONDS_BETWEEN_SIZES = 5.0
_SECONDS_BETWEEN_LINES = 30.0


class Progress:
    """A bar on stderr: episodes, steps, steps a second, mean return, disk.

    Args:
        goal: what is asked for.
        folder: whose size is shown.
        lengths, returns: of the episodes that there are.
        is_shown: whether there is a bar at all.
    """

    def __init__(
        self, goal: Goal, folder: Path, lengths: Iterable[int], returns: Iterable[float], *, is_shown: bool
    ) -> None:
        lengths, returns = list(lengths), list(returns)
        self.episodes, self.steps, self._return = len(lengths), sum(lengths), sum(returns)
        self._goal, self._folder = goal, folder
        self._began, self._size, self._sized = time.monotonic(), "", 0.0
        self._counts_steps = goal.episodes is None
        # Where nobody watches, a line now and then is enough.
        interval = 0.2 if sys.stderr.isatty() else _SECONDS_BETWEEN_LINES
        hidden: dict[str, Any] = {} if is_shown else {"disable": True}  # not given, it is as TQDM_DISABLE says
        self._bar: Any = tqdm(
            total=goal.steps if self._counts_steps else goal.episodes,
            initial=min(self.steps if self._counts_steps else self.episodes, self._total),
            unit=" steps" if self._counts_steps else " episodes",
            unit_scale=self._counts_steps,
            mininterval=interval,
            maxinterval=interval,
            dynamic_ncols=True,
            **hidden,
        )

    @property
    def _total(self) -> int:
        return self._goal.steps or 0 if self._counts_steps else self._goal.episodes or 0

    def played(self, episode: Played) -> None:
        """Count an episode that has ended."""
        if episode.is_kept:
            self.episodes += 1
            self.steps += episode.length
            self._return += episode.episode_return

    def show(self, steps: int, *, is_last: bool = False) -> None:
        """Bring the bar up to date.

        Args:
            steps: transitions played in this run, those of running and discarded episodes included.
            is_last: the bar then stays as it is.
        """
        if self._bar.disable:
            return
        now = time.monotonic()
        if is_last or now - self._sized > _SECONDS_BETWEEN_SIZES:
            self._size, self._sized = tqdm.format_sizeof(bytes_beneath(self._folder, on_disk=True), "B", 1024), now
        rate = tqdm.format_sizeof(steps / max(now - self._began, 1e-9))
        mean = self._return / self.episodes if self.episodes else float("nan")
        other = f"{self.episodes} episodes" if self._counts_steps else f"{tqdm.format_sizeof(self.steps)} steps"
        self._bar.set_postfix_str(f"{other}, {rate} steps/s, return {mean:.4g}, {self._size}", refresh=False)
        done = min(self.steps if self._counts_steps else self.episodes, self._total)
        self._bar.update(done - self._bar.n)
        if is_last:
            self._bar.refresh()
            self._bar.close()


class OnInterrupt:
    """A context in which the first Ctrl-C calls a function instead of raising; the second one is as ever.

    Only in the main thread, where Python lets signals be handled, and where Ctrl-C is not ignored.

    Attributes:
        came: whether there was one.
    """

    def __init__(self, call: Callable[[], None]) -> None:
        self._call = call
        self._previous: Any = None
        self.came = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.came = True
        signal.signal(signal.SIGINT, self._previous)
        self._call()

    def __enter__(self) -> OnInterrupt:
        if threading.current_thread() is threading.main_thread():
            previous = signal.getsignal(signal.SIGINT)
            if previous is not None and previous is not signal.SIG_IGN:
                self._previous = previous
                signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._previous is not None and not self.came:
            signal.signal(signal.SIGINT, self._previous)
