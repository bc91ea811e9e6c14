"""What the runs reached: one file for each, a table, and a plot.

python -m examples.offline_rl.results FOLDER     prints the table and writes offline_rl.png into the folder
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

METHODS = {"bc": "BC", "td3_bc": "TD3+BC", "iql": "IQL", "decision_transformer": "DT"}
BEHAVIOUR = "behaviour"
"""The policy that was recorded, whose returns are those of the data."""


@dataclass(frozen=True)
class Run:
    """What one training reached.

    Args:
        environment, dataset, method: what was learned from, and how.
        seed: of the training.
        steps: gradient steps.
        seconds: for these.
        mean: the mean return on fresh seeds.
        score: the same, where a random policy has 0 and an expert 100.
    """

    environment: str
    dataset: str
    method: str
    seed: int
    steps: int
    seconds: float
    mean: float
    score: float

    def save(self, folder: Path) -> None:
        """Write the file, whole or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        path = file_of(folder, self.environment, self.dataset, self.method, self.seed)
        beside = path.with_suffix(f".{os.getpid()}")
        beside.write_text(json.dumps(asdict(self)) + "\n")
        beside.replace(path)


def file_of(folder: Path, environment: str, dataset: str, method: str, seed: int) -> Path:
    """The file of a run."""
    return folder / f"{environment}-{dataset}-{method}-{seed}.json"


def load(folder: Path) -> list[Run]:
    """All runs of a folder."""
    return [Run(**json.loads(path.read_text())) for path in sorted(folder.glob("*.json"))]


def datasets(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """What was learned from, in the order of environments and then of how good the data is."""
    found = {(run.environment, run.dataset) for run in runs}
    behaviour = {(run.environment, run.dataset): run.score for run in runs if run.method == BEHAVIOUR}
    return sorted(found, key=lambda key: (key[0] != "pendulum", key[0], behaviour.get(key, 0.0)))


def scores(runs: Sequence[Run], dataset: tuple[str, str], method: str) -> list[float]:
    """The score of each seed."""
    return [run.score for run in runs if (run.environment, run.dataset, run.method) == (*dataset, method)]


def lines(runs: Sequence[Run]) -> Iterator[str]:
    """The table: mean and standard deviation of the scores over seeds, the number of seeds where it is not three."""
    yield "| data | behaviour | " + " | ".join(METHODS.values()) + " |"
    yield "|---|---:|" + "---:|" * len(METHODS)
    for dataset in datasets(runs):
        cells = []
        for method in (BEHAVIOUR, *METHODS):
            found = scores(runs, dataset, method)
            cell = f"{np.mean(found):.0f}" if found else ""
            if len(found) > 1:
                cell += f" ± {np.std(found):.0f}"
            if method != BEHAVIOUR and len(found) not in (0, 3):
                cell += f" ({len(found)})"
            cells.append(cell)
        yield f"| {' '.join(dataset)} | " + " | ".join(cells) + " |"


def plot(runs: Sequence[Run], file: Path) -> None:
    """Bars of the mean scores, each with a line from the worst seed to the best.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    shown = datasets(runs)
    figure = Figure(figsize=(max(6.0, 1.3 * len(shown)), 4.0), layout="constrained")
    axes = figure.add_subplot()
    names = {BEHAVIOUR: "behaviour policy", **METHODS}
    width = 0.8 / len(names)
    for number, (method, name) in enumerate(names.items()):
        found = [scores(runs, dataset, method) or [np.nan] for dataset in shown]
        middle = np.array([np.mean(values) for values in found])
        ends = np.array([[np.min(values), np.max(values)] for values in found]).T
        places = np.arange(len(shown)) + (number - (len(names) - 1) / 2) * width
        color = "0.7" if method == BEHAVIOUR else f"C{number - 1}"
        axes.bar(places, middle, width, label=name, color=color)
        if method != BEHAVIOUR:
            axes.errorbar(places, middle, np.abs(ends - middle), fmt="none", ecolor="0.2", elinewidth=1)
    axes.axhline(0, color="0.2", linewidth=0.8)
    axes.set_xticks(range(len(shown)), [f"{environment}\n{dataset}" for environment, dataset in shown])
    axes.set_ylabel("score (0: random, 100: expert)")
    axes.legend(ncols=len(names), loc="upper center", bbox_to_anchor=(0.5, 1.12), frameon=False)
    figure.savefig(file, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description="A table and a plot of the runs in a folder.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--plot", type=Path, help="where the plot goes (default: offline_rl.png in the folder)")
    args = parser.parse_args()
    runs = load(args.folder)
    print("\n".join(lines(runs)))
    try:
        plot(runs, args.plot or args.folder / "offline_rl.png")
    except ImportError as error:
        print(f"no plot: {error}; pip install matplotlib")


if __name__ == "__main__":
    main()
