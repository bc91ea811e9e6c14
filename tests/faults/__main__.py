"""The long rounds: ``python -m tests.faults --rounds 300``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tqdm.auto import tqdm

sys.path.append(str(Path(__file__).parents[1]))  # what helps several tests lies there

from . import ext4, full_disk, hostile, live, power
from .kill import SCENARIOS, rounds

HOSTILE = "hostile folders"
TABLES = {
    "full disk": lambda rounds, seed: full_disk.table(max(rounds // 3, 1), seed),
    "live readers": live.table,
    "pulled plugs": power.table,
    "ext4": ext4.table,
}
CASES_A_ROUND = 20


def kills(names: list[str], options: argparse.Namespace) -> bool:
    """Kill the writer in each scenario; prints a table, and returns whether every episode survived."""
    lost = []
    lines = [f"{'killed while':<16} {'at':<14} {'tried':>6} {'survived':>9} {'lost':>5}"]
    for name in tqdm(names, desc="scenarios", file=sys.stderr):
        for calls in (False, True):
            survived, failures = rounds(name, options.rounds, options.seed, calls=calls)
            kind = "a random call" if calls else "a random time"
            lines.append(f"{name:<16} {kind:<14} {options.rounds:>6} {survived:>9} {len(failures):>5}")
            lost += failures
    print("\n".join(lines + lost))
    return not lost


def hostile_folders(options: argparse.Namespace) -> bool:
    """Open damaged and hostile folders; prints a table and the causes, and returns whether nothing was wrong."""
    count = options.rounds * CASES_A_ROUND
    with tqdm(total=count, desc=HOSTILE, file=sys.stderr) as bar:
        results = hostile.trials(count, options.seed, only=options.case, progress=lambda result: bar.update())
    print(hostile.table(results))
    if wrong := hostile.causes(results):
        print(f"\n{wrong}")
    return not wrong


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--rounds", type=int, default=300, help="kills of each kind, 20 hostile folders each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=[*SCENARIOS, *TABLES, HOSTILE], help="one scenario")
    parser.add_argument("--case", default="", help="hostile folders whose name contains this")
    options = parser.parse_args()
    if options.case:
        options.only = HOSTILE
    names = [name for name in SCENARIOS if options.only in (None, name)]
    sound = kills(names, options) if names else True
    for name, table in TABLES.items():
        if options.only in (None, name):
            lines, wrong = table(options.rounds, options.seed)
            print("\n".join(["", *lines, *wrong]))
            sound = sound and not wrong
    if options.only in (None, HOSTILE):
        sound = hostile_folders(options) and sound
    return 0 if sound else 1


if __name__ == "__main__":
    sys.exit(main())
