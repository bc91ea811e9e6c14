"""All benchmarks, or those named, next to the public peers that are installed: ``python -m benchmarks --out FOLDER``.

What they print goes to ``benchmarks.json`` in the folder, with all single measurements, the machine and the versions.
Each is a module with options of its own:
``python -m benchmarks.record --help``.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

from benchmarks import disk, learning, load, record, record_vector
from benchmarks import open as opening
from benchmarks.suite import Measure, add_common, run_all, show

MODULES: dict[str, Any] = {
    "record": record,
    "record_vector": record_vector,
    "load": load,
    "learning": learning,
    "open": opening,
    "disk": disk,
}
ELSEWHERE = """\
Not in this run, because they take longer or need more rights:
  python -m benchmarks.load_disk      data four times larger than memory; needs a control group
  python -m benchmarks.scale          ten million episodes of a billion steps, in files without bytes
  python -m benchmarks.sample         random batches while recording goes on, next to peers
  python -m benchmarks.frames         frames stored encoded, next to peers; needs games and a renderer
  python -m benchmarks.frames_memory  the same, raw four times larger than memory; needs a control group"""


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of: {', '.join(MODULES)} (default: all)")
    add_common(parser)
    options = parser.parse_args()
    if unknown := [name for name in options.names if name not in MODULES]:
        parser.error(f"no benchmark is called {', '.join(unknown)}; there are {', '.join(MODULES)}")
    chosen: dict[str, tuple[Measure, Any]] = {}
    for name in options.names or MODULES:
        module = MODULES[name]
        chosen[name] = module.measure, module.SMOKE if options.smoke else module.Size()
    begin = time.perf_counter()
    report = run_all(chosen, folder=options.folder, out=options.out, write=show)
    judged = [pair for _, table in report.tables for pair in table.judged()]
    met = sum(target.reached(value) for target, value in judged)
    show(f"\n{time.perf_counter() - begin:.0f} s; {met} of {len(judged)} targets met\n{ELSEWHERE}")


if __name__ == "__main__":
    main()
