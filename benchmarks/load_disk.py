"""Loading data four times larger than the memory allowed: ``python -m benchmarks.load_disk``.

Each contender is a process of its own in a control group with a memory limit, which counts the page cache too, and
begins with none of the data in it. The floor reads the files one after the other from their beginning, in large pieces.
``shuffle="block"`` loads a whole epoch, each row once; ``shuffle=True``, the random order, as many batches as there is
time for. Rates are bytes of the delivered rows by the time from opening the buffer on; torch and the loaders were
imported before.

Two kinds of rows: frames of 84x84 bytes, and rows of 102 bytes, of which gathering alone may take longer than the disk
does to read them.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.memory_limit import evict, memory_limit
from benchmarks.timing import spread
from gym_replay import Field, ReplayBuffer
from gym_replay.buffer.loading import loaders  # noqa: F401 - with torch, which is no part of what is measured

KINDS: dict[str, dict[str, Any]] = {
    "frames": {"observation": Field("uint8", (84, 84)), "action": "int", "reward": "float64"},
    "vectors": {
        "observation": Field("float32", (17,)),
        "action": Field("float32", (6,)),
        "reward": "float64",
        "terminated": "bool",
        "truncated": "bool",
    },
}
TITLES = {"frames": "frames of 84x84 bytes, action, reward", "vectors": "observation 17, action 6, reward, flags"}
CONTENDERS = ("read in order", "shuffle='block'", "shuffle=True")
LENGTH = 1000
PIECE = 8 << 20
TIMES = 4


def episode_of(kind: str) -> dict[str, npt.NDArray[Any]]:
    """What is in every episode, but for the reward, which counts the transitions of all of them."""
    generator = np.random.default_rng(0)
    drawn = {}
    for name, info in KINDS[kind].items():
        field = info if isinstance(info, Field) else Field(info)
        numbers = generator.integers(0, 256 if field.dtype == np.uint8 else 2, (LENGTH, *field.shape))
        drawn[name] = numbers.astype(field.dtype)
    return drawn


def store(folder: Path, kind: str, nbytes: int) -> None:
    """Write episodes of so many bytes in all."""
    episode = episode_of(kind)
    with ReplayBuffer(folder, fields=KINDS[kind]) as buffer:
        for number in range(max(1, nbytes // sum(array.nbytes for array in episode.values()))):
            episode["reward"] = np.arange(number * LENGTH, (number + 1) * LENGTH, dtype=np.float64)
            buffer.store_episode(**episode)


def columns(folder: Path) -> list[Path]:
    """The files of the rows."""
    return sorted((folder / "steps").rglob("*.npy"))


def read_in_order(folder: Path) -> tuple[int, float]:
    """Bytes and seconds of reading each file from its beginning to its end."""
    piece = bytearray(PIECE)
    begin, total = time.perf_counter(), 0
    for path in columns(folder):
        with path.open("rb", buffering=0) as stream:
            while count := stream.readinto(piece):
                total += count
    return total, time.perf_counter() - begin


def load(folder: Path, shuffle: bool | str, seconds: float, options: dict[str, Any]) -> tuple[int, float]:
    """Bytes and seconds of one epoch, or of as much of it as there is time for."""
    expected = episode_of(folder.name)
    begin = time.perf_counter()
    with ReplayBuffer.from_folder(folder, read_only=True) as buffer:
        loader = buffer.dataloader(256, timestep_level=True, shuffle=shuffle, seed=1, dtype="stored", **options)
        loaded = 0
        for number, batch in enumerate(loader):
            if number < 4:
                check(expected, batch)
            loaded += len(batch["reward"])
            if number % 16 == 0 and time.perf_counter() - begin > seconds:
                break
        else:
            assert loaded == buffer.num_steps
        taken = time.perf_counter() - begin
        return loaded * sum(values[0].nbytes for values in batch.values()), taken


def check(expected: dict[str, npt.NDArray[Any]], batch: dict[str, Any]) -> None:
    """Raise AssertionError unless the rows are what was stored: the reward says which they are."""
    numbers = batch["reward"].numpy().astype(np.int64)
    assert len(np.unique(numbers)) == len(numbers)
    for name, values in batch.items():
        wanted = numbers.astype(np.float64) if name == "reward" else expected[name][numbers % LENGTH]
        np.testing.assert_array_equal(values.numpy(), wanted)


def measure(folder: Path, contender: str, seconds: float, options: dict[str, Any]) -> dict[str, float]:
    """What one contender does, in a process of its own."""
    if contender == CONTENDERS[0]:
        nbytes, taken = read_in_order(folder)
    else:
        nbytes, taken = load(folder, "block" if "block" in contender else True, seconds, options)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    rate = nbytes / taken / 1e6
    return {"MB/s": rate, "MB": nbytes / 1e6, "user s": usage.ru_utime, "system s": usage.ru_stime}


def compare(folder: Path, kind: str, nbytes: int, arguments: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    """Write the data, let the contenders take turns, print a table."""
    store(folder, kind, nbytes)
    limit = sum(path.stat().st_size for path in columns(folder)) // TIMES
    measured: dict[str, list[dict[str, float]]] = {name: [] for name in CONTENDERS}
    for turn in range(arguments.repeats):
        for name in CONTENDERS[turn % 3 :] + CONTENDERS[: turn % 3]:
            evict(path for path in folder.rglob("*") if path.is_file())
            with memory_limit(limit) as limited:
                found = json.loads(limited.run(_command(folder, name, arguments)))
                measured[name].append(found | {"peak": limited.peak or 0})
                kind_of_limit = limited.kind
    floor = [one["MB/s"] for one in measured[CONTENDERS[0]]]
    print(f"\n{TITLES[kind]}; {nbytes / 1e9:.1f} GB, {limit / 1e6:.0f} MB of memory allowed ({kind_of_limit})")
    print(f"{'':<18} {'of the first':<22} {'MB/s':<22} {'user s':<8} {'system s':<9} peak, MB")
    for name, rounds in measured.items():
        rates = [one["MB/s"] for one in rounds]
        ratio = spread([mine / base for mine, base in zip(rates, floor, strict=True)])
        user, system, peak = (statistics.median(one[what] for one in rounds) for what in ("user s", "system s", "peak"))
        print(f"{name:<18} {ratio:<22} {spread(rates):<22} {user:<8.1f} {system:<9.1f} {peak / 1e6:.0f}")
    print("target: 0.7 for shuffle='block'", flush=True)
    return measured


def _command(folder: Path, contender: str, arguments: argparse.Namespace) -> list[str]:
    command = [sys.executable, "-m", "benchmarks.load_disk", "--child", str(folder), contender]
    return [*command, "--seconds", str(arguments.seconds), "--workers", str(arguments.workers)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=4.0, help="of rows of each kind (default 4)")
    parser.add_argument("--repeats", type=int, default=5, help="rounds (default 5)")
    parser.add_argument("--seconds", type=float, default=20.0, help="a run takes at most (default 20)")
    parser.add_argument("--workers", type=int, default=0, help="of the loaders (default 0)")
    parser.add_argument("--only", choices=KINDS, help="one kind of rows")
    parser.add_argument("--folder", type=Path, help="where to write, on the disk in question (default: temporary)")
    parser.add_argument("--json", type=Path, help="a file for all single measurements")
    parser.add_argument("--child", nargs=2, metavar=("FOLDER", "CONTENDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        options = {"num_workers": arguments.workers}
        print(json.dumps(measure(Path(arguments.child[0]), arguments.child[1], arguments.seconds, options)))
        return
    print(f"Python {platform.python_version()}, NumPy {np.__version__}; {arguments.repeats} rounds, cold page cache")
    print("median (lowest .. highest); ratios are between runs of one round")
    measured = {}
    for kind in [arguments.only] if arguments.only else KINDS:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
            measured[kind] = compare(Path(name) / kind, kind, int(1e9 * arguments.gigabytes), arguments)
    if arguments.json:
        arguments.json.write_text(json.dumps(measured, indent=1))


if __name__ == "__main__":
    main()
