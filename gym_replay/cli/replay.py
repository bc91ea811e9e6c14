"""``gym-replay replay``: recorded episodes executed again, and compared bit for bit."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from gym_replay.buffer.reading import Readable
from gym_replay.cli import output
from gym_replay.cli.verbs import CHOICE, FOLDER, TRUST, import_modules, importing, opened, verb
from gym_replay.errors import printable
from gym_replay.notices import bar

if TYPE_CHECKING:
    from gym_replay.replaying.replay import ReplayReport

_STATUSES = ("equal", "differs", "not replayable")
_WORDS = {"differs": "different"}


@verb(
    "replay",
    "execute episodes again and compare them with the record",
    "Makes the recorded environment, executes the episodes again, and compares what it returns with the record, bit "
    "for bit. The exit status is 1 where an episode differs, else 0. Episodes that depend on something which was not "
    "recorded are named, and count as no difference.",
    ["gym-replay replay data/cartpole", "gym-replay replay data/maze --episodes 0:10 --import my_envs"],
    FOLDER,
    importing(),
    TRUST,
    *CHOICE,
)
def replay(args: argparse.Namespace) -> int:
    """Replay the episodes."""
    import_modules(args.modules)
    with opened(args) as (buffer, episodes):
        indices = list(range(len(buffer))) if episodes is None else episodes.tolist()
        found = []
        reports = _replayed(buffer, indices, trust=args.trust)
        with bar(len(indices), "replay", "episode", progress=not args.json) as shown:
            for index, report in reports:
                found.append((index, report))
                shown.update()
                if not args.json and report.status != "equal":
                    print(printable(f"index {index}, {report}"), flush=True)
    counts = Counter[str](report.status for _, report in found)
    listed = [{"index": index, **vars(report)} for index, report in found]
    totals = {status.replace(" ", "_"): counts[status] for status in _STATUSES}
    document = {"folder": args.folder, "ok": not counts["differs"], **totals, "episodes": listed}
    in_words = ", ".join(f"{counts[status]} {_WORDS.get(status, status)}" for status in _STATUSES)
    notes = sorted({report.detail for _, report in found if report.equal and report.detail})
    output.show(args, document, [f"{len(found)} episodes: {in_words}", *notes])
    return 1 if counts["differs"] else 0


def _replayed(buffer: Readable, indices: list[int], *, trust: bool) -> Iterator[tuple[int, ReplayReport]]:
    """The report of each episode, all executed in one environment, in their order.

    So each goes on from the one before, as when they were recorded, and the environment is made once. An episode that
    does not come out equal gets a fresh one before its report counts.
    """
    from gym_replay.buffer.env_spec import make_env
    from gym_replay.replaying import replay as replaying

    made_of: Any = None
    with ExitStack() as stack:
        env: Any = None
        for index in indices:
            episode = buffer.episode(index)
            spec = (episode.snapshot.metadata.environment or {}).get("env_spec")
            if spec is not None and (env is None or spec != made_of):
                stack.close()
                env, made_of = make_env(spec, trust=trust), spec
                stack.callback(env.close)
            report = replaying.replay(buffer, episode, env=env, trust=trust)
            yield index, report if report.equal else replaying.replay(buffer, episode, trust=trust)
