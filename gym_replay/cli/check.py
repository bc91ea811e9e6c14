"""``gym-replay check``: a folder compared with every rule of its format, and with its checksums."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from gym_replay.cli import output
from gym_replay.cli.options import SOURCE_HELP, add_verb, shows_bars
from gym_replay.errors import printable


def add(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    parser = add_verb(
        verbs,
        "check",
        run,
        "compare a folder with the format's rules and its checksums",
        "Reads all rows and names each fault with its file, episode and field. The exit status is 0 where there is "
        "none, else 1. Meant for folders that nobody writes at the time.",
        ["gym-replay check data/cartpole", "gym-replay check data/cartpole --repair"],
    )
    parser.add_argument("folder", help=SOURCE_HELP)
    parser.add_argument(
        "--repair", action="store_true", help="then keep what is sound, and delete damaged episodes for good"
    )


def run(args: argparse.Namespace) -> int:
    """Check every buffer at the place."""
    from gym_replay.buffer.check import check_buffer
    from gym_replay.buffer.finding import find_buffers

    reports = []
    for folder in find_buffers(args.folder):
        report = check_buffer(folder, repair=args.repair, progress=shows_bars(args))
        reports.append(report)
        if not args.json:
            print("\n".join(map(printable, str(report).splitlines())), flush=True)
    sound = all(report.ok for report in reports)
    if args.json:
        output.write_json(
            {
                "folder": args.folder,
                "ok": sound,
                "verified": all(report.verified for report in reports),
                "num_episodes": sum(report.num_episodes for report in reports),
                "num_checked": sum(report.num_checked for report in reports),
                "buffers": [{**asdict(report), "ok": report.ok, "verified": report.verified} for report in reports],
            }
        )
    return 0 if sound else 1
