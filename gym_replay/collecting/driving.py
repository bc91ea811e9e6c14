"""A collection driven to its end, in this process or by workers: the loop, its bar, and Ctrl-C."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from gym_replay.buffer.replay_buffer import ReplayBuffer
from gym_replay.collecting.folder import Journal, delete_unneeded, episodes_in, open_journal
from gym_replay.collecting.plan import Goal, Plan
from gym_replay.collecting.players import open_player
from gym_replay.collecting.request import Request
from gym_replay.files.folders import bytes_beneath
from gym_replay.notices import bar, tell

_SECONDS_BETWEEN_LOOKS = 0.1
"""How often the bar is brought up to date, and how long Ctrl-C may wait."""

_SECONDS_BETWEEN_NOTES = 10.0
_SECONDS_BETWEEN_SIZES = 5.0
_SECONDS_BETWEEN_BARS = 0.2
_BAR = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{unit} {remaining}{postfix}"
"""What is shown whole on 80 columns; the bar takes what is left."""


class Stoppable(Protocol):
    """What a signal handler can stop."""

    stopped: bool
    """Set by a signal handler: it returns after the step that it is in."""


class Plays(Stoppable, Protocol):
    """Who plays the episodes of a plan: one player here, or a crew of workers."""

    steps: int
    """How many transitions were played, those of running and discarded episodes included."""

    def play(self, until: float) -> bool:
        """Go on until ``time.monotonic()`` is past a time; whether there is something left to play."""

    def close(self) -> None:
        """Commit what has ended, and forget what has not."""


def collect_here(request: Request, folder: Path, goal: Goal, *, overwrite: bool, progress: bool) -> ReplayBuffer:
    """Collect into a folder, in this process; nothing is writing to the buffer that is returned.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed; the step that was under way is done, and what has ended is committed.
    """
    with ExitStack() as cleanup:
        player = open_player(request, folder, overwrite=overwrite)
        buffer = player.buffer
        cleanup.callback(buffer.close)
        with closing(player):
            journal = journal_of(buffer, request)
            plan = Plan(goal, episodes_in([buffer]), journal.discarded, may_discard=request.may_discard)
            player.feed = plan
            journal.ask(goal)  # before there is anything that it is about
            tell_of_nothing(request, plan, folder)
            drive(player, plan, journal, folder, progress=progress)
        delete_unneeded([buffer], journal.goals)
        cleanup.pop_all()
    buffer.release()
    return buffer


def journal_of(buffer: ReplayBuffer, request: Request) -> Journal:
    """The journal of a buffer, for what is requested; raises as :func:`~gym_replay.collecting.folder.open_journal`."""
    holds = f"{len(buffer)} episodes" if len(buffer) else ""
    return open_journal(buffer.folder, request.identity(), buffer.put_file, uuid=buffer.metadata.uuid, holds=holds)


def tell_of_nothing(request: Request, plan: Plan, folder: Path) -> None:
    """Where all that is asked for is there, say that nothing is played, and how the policy was compared."""
    if plan.is_complete:
        told_by = f"; {request.policy_told_by}" if request.policy_told_by else ""
        tell(f"{folder}: 0 new episodes: it holds the {len(plan.kept)} that are asked for already{told_by}")


def drive(player: Plays, plan: Plan, journal: Journal, folder: Path, *, progress: bool) -> None:
    """Have a plan played until it is complete.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed.
    """
    if plan.is_complete:
        return
    shown = _Bar(plan, folder, is_shown=progress)
    with stopped_by_interrupt(player):
        try:
            with closing(player):
                while not plan.is_complete and player.play(time.monotonic() + _SECONDS_BETWEEN_LOOKS):
                    if player.stopped:
                        break
                    shown.show(player.steps)
                    journal.note(plan.discarded, seconds=_SECONDS_BETWEEN_NOTES)
        finally:
            shown.show(player.steps, is_last=True)
            journal.note(plan.discarded)


class _Bar:
    """A bar on stderr: episodes, steps, steps a second, mean return, disk.

    Args:
        plan: the episodes that it counts.
        folder: whose size is shown.
        is_shown: whether there is a bar at all.
    """

    def __init__(self, plan: Plan, folder: Path, *, is_shown: bool) -> None:
        self._plan, self._folder = plan, folder
        self._began, self._size, self._sized = time.monotonic(), "", 0.0
        self._counts_steps = plan.goal.episodes is None
        self._total = (plan.goal.steps if self._counts_steps else plan.goal.episodes) or 0
        self._bar: Any = bar(
            self._total,
            "",
            " steps" if self._counts_steps else " episodes",
            progress=is_shown,
            delay=0,
            initial=self._count(),
            unit_scale=self._counts_steps,
            mininterval=_SECONDS_BETWEEN_BARS,
            maxinterval=_SECONDS_BETWEEN_BARS,
            bar_format=_BAR,
            dynamic_ncols=True,
        )

    def _count(self) -> int:
        return min(self._plan.steps if self._counts_steps else len(self._plan.kept), self._total)

    def show(self, played: int, *, is_last: bool = False) -> None:
        """Bring the bar up to date.

        Args:
            played: transitions played in this run.
            is_last: the bar then stays as it is.
        """
        if self._bar.disable:
            return
        now, size = time.monotonic(), self._bar.format_sizeof
        if is_last or now - self._sized > _SECONDS_BETWEEN_SIZES:
            self._size, self._sized = size(bytes_beneath(self._folder, on_disk=True), "B", 1024), now
        rate = size(played / max(now - self._began, 1e-9))
        episodes = len(self._plan.kept)
        mean = self._plan.returns / episodes if episodes else float("nan")
        self._bar.set_postfix_str(f"{rate} steps/s, return {mean:.4g}, {self._size}", refresh=False)
        self._bar.update(self._count() - self._bar.n)
        if is_last:
            self._bar.refresh()
            self._bar.close()


@contextmanager
def stopped_by_interrupt(player: Stoppable) -> Iterator[None]:
    """A context in which the first Ctrl-C only stops a player, and is raised at the end; the second one is as ever.

    Only in the main thread, where Python lets signals be handled, and where Ctrl-C is not ignored.
    """
    is_main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGINT) if is_main else None
    if before is None or before is signal.SIG_IGN:
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, before)
        player.stopped = True

    signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        if not player.stopped:
            signal.signal(signal.SIGINT, before)
    if player.stopped:
        raise KeyboardInterrupt
