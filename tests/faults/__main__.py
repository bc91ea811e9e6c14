"""The long rounds: ``python -m tests.faults --rounds 300``."""

from __future__ import annotations

import argparse
import sys

from tqdm.auto import tqdm

from .kill import SCENARIOS, rounds


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--rounds", type=int, default=300, help="kills of each kind (default 300)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=SCENARIOS, help="one scenario")
    options = parser.parse_args()
    names = [options.only] if options.only else list(SCENARIOS)
    lost = []
    lines = [f"{'killed while':<16} {'at':<14} {'tried':>6} {'survived':>9} {'lost':>5}"]
    for name in tqdm(names, desc="scenarios", file=sys.stderr):
        for calls in (False, True):
            survived, failures = rounds(name, options.rounds, options.seed, calls=calls)
            kind = "a random call" if calls else "a random time"
            lines.append(f"{name:<16} {kind:<14} {options.rounds:>6} {survived:>9} {len(failures):>5}")
            lost += failures
    print("\n".join(lines + lost))
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
