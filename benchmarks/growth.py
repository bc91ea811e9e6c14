"""How the cost of recording and loading grows: ``python -m benchmarks.growth --out FOLDER``.

Six studies, of which names choose some: ``steps`` and ``episodes`` in a buffer, bytes of its ``rows``, samples of a
batch in ``batches``, ``workers``, and what ``caches`` do to plain arrays. Each is one plot,
``FOLDER/growth_<name>.png``, with logarithmic axes: lines are medians, bands go from the lowest to the highest. All
single measurements are in ``FOLDER/growth.json``; a study that is not measured this time stays in it as it was.

All data is in the page cache. The full sizes write up to 2.6 GB at a time to a temporary folder, which is deleted, and
take seven minutes; ``--small`` has every study with little data, to see that it runs.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks import growth_caches, growth_shape, growth_size
from benchmarks.curves import Study, draw, load, require_matplotlib, save


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes:
        steps, episodes: in the buffer.
        rows: bytes of an observation.
        row_bytes: of all rows of a size.
        batches: samples of a batch.
        batch_episodes: of 1000 steps, from which such batches are.
        workers: how many worker processes.
        worker_episodes: of frames, and of vectors, that they load.
        worker_batches: of a run.
        training: seconds of a training step on an accelerator, and of a transform.
        arrays: bytes of arrays in memory.
        loaded: batches of a run, and those after which the memory is looked at.
        openings: fresh processes at each size of a buffer.
        seconds: of a run, about, where the number of batches is chosen by it.
        repeats: runs of each.
    """

    steps: tuple[int, ...] = tuple(10**k for k in range(4, 9))
    episodes: tuple[int, ...] = tuple(10**k for k in range(2, 7))
    rows: tuple[int, ...] = (4, 32, 256, 1024, 4096, 28224, 102_400)
    row_bytes: int = 1 << 28
    batches: tuple[int, ...] = tuple(4**k for k in range(9))
    batch_episodes: int = 1000
    workers: tuple[int, ...] = (0, 1, 2)
    worker_episodes: tuple[int, int] = (30, 500)
    worker_batches: int = 100
    training: float = 0.005
    arrays: tuple[int, ...] = tuple(1 << k for k in range(16, 32, 2))
    loaded: int = 1000
    openings: int = 5
    seconds: float = 0.2
    repeats: int = 7


SMALL = Sizes(
    steps=(1000, 3000),
    episodes=(30, 60),
    rows=(4, 4096),
    row_bytes=1 << 18,
    batches=(1, 64),
    batch_episodes=2,
    workers=(0, 1),
    worker_episodes=(1, 1),
    worker_batches=2,
    training=0.001,
    arrays=(1 << 16, 1 << 20),
    loaded=3,
    openings=1,
    seconds=0.005,
    repeats=1,
)


def studies(sizes: Sizes) -> dict[str, Callable[[Path], Study]]:
    """By name, what measures in a folder."""
    repeats, seconds = sizes.repeats, sizes.seconds
    how_often = growth_size.HowOften(repeats, sizes.openings, sizes.loaded)
    return {
        "steps": lambda folder: growth_size.steps(folder, sizes.steps, how_often),
        "episodes": lambda folder: growth_size.episodes(folder, sizes.episodes, how_often),
        "rows": lambda folder: growth_shape.rows(folder, sizes.rows, sizes.row_bytes, repeats, seconds),
        "batches": lambda folder: growth_shape.batches(folder, sizes.batches, sizes.batch_episodes, repeats, seconds),
        "workers": lambda folder: growth_shape.workers(
            folder, sizes.workers, sizes.worker_episodes, sizes.worker_batches, repeats, sizes.training
        ),
        "caches": lambda folder: growth_caches.caches(sizes.arrays, 2 * sizes.loaded, repeats),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"some of {', '.join(studies(SMALL))} (default: all)")
    parser.add_argument("--out", type=Path, required=True, help="a folder for growth.json and the plots")
    parser.add_argument("--small", action="store_true", help="little of everything, in seconds")
    parser.add_argument("--redraw", action="store_true", help="measure nothing: draw what FOLDER/growth.json has")
    parser.add_argument("--no-plots", action="store_true", help="only growth.json")
    parser.add_argument("--folder", type=Path, help="where to write buffers (default: the system's temporary folder)")
    options = parser.parse_args()
    if not options.no_plots:
        require_matplotlib()  # before anything is measured
    known = studies(SMALL if options.small else Sizes())
    if unknown := [name for name in options.names if name not in known]:
        parser.error(f"unknown: {unknown[0]}; there are {', '.join(known)}")
    options.out.mkdir(parents=True, exist_ok=True)
    measured = options.out / "growth.json"
    for name in options.names or known:
        if options.redraw:
            study = load(measured, name)
        else:
            with tempfile.TemporaryDirectory(dir=options.folder) as folder:
                study = known[name](Path(folder))
            save({name: study}, measured)
        print(f"\n{study.title}", *study.notes, sep="\n")
        for panel in study.panels.values():
            print(f"\n{panel.table()}", flush=True)
        if not options.no_plots:
            draw(study, options.out / f"growth_{name}.png")


if __name__ == "__main__":
    main()
