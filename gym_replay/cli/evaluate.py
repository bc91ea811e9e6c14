"""``gym-replay evaluate`` and ``reference``: what policies return, and what a random one and an expert do."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from gym_replay.cli import output
from gym_replay.cli.policies import CALLING, ENV, ENV_KWARGS, EPISODE, POLICIES, POLICY, QUIET, import_for
from gym_replay.cli.verbs import FOLDER, TRUST, import_modules, importing, keywords, option, verb
from gym_replay.errors import FieldError
from gym_replay.viewing.text import number

if TYPE_CHECKING:
    from gym_replay.buffer.door import ReferenceReturns
    from gym_replay.collecting.evaluation import Evaluation


@verb(
    "evaluate",
    "play episodes of a policy, and say what they return",
    "Plays episodes of a policy in an environment, and shows the mean of their returns, a bootstrap interval of it, "
    "and how returns and lengths are distributed. The episodes depend on --seed, and not on --num-envs. They are "
    "recorded where --record names a folder.",
    [
        "gym-replay evaluate CartPole-v1 --episodes 100",
        "gym-replay evaluate Hopper-v5 --policy sb3:SAC:model.zip --episodes 20 --reference data/hopper",
        "gym-replay evaluate my_envs:Maze-v0 --policy my_policies:expert --num-envs 8 --record data/maze",
    ],
    ENV,
    POLICY,
    option("--episodes", type=int, default=10, metavar="N", help="how many episodes (default: 10)"),
    *CALLING,
    option("--vectorization", choices=("sync", "async"), default="sync", help="how several environments are run"),
    ENV_KWARGS,
    *EPISODE,
    option("--reference", metavar="FOLDER", help="show the normalised score too, by this folder's reference returns"),
    option("--record", dest="folder", metavar="FOLDER", help="record the episodes in this folder"),
    option("--overwrite", action="store_true", help="replace the buffer that is in the folder of --record"),
    QUIET,
)
def evaluate(args: argparse.Namespace) -> int:
    """Evaluate a policy."""
    # What this needs takes a while to import: the other verbs, and --help, do without.
    from gym_replay.collecting import evaluate as evaluating

    reference = None if args.reference is None else _known_reference(args.reference)
    import_for(args.env, args.policy)
    found = evaluating.evaluate(args.policy, args.env, **keywords(args, "policy", "env", "reference"))
    score = None if reference is None else found.normalized_score(reference)
    return output.show(args, _as_json(found, score), _lines(found, score))


def _known_reference(folder: str) -> ReferenceReturns:
    """The reference returns of a folder; looked for before anything is played."""
    from gym_replay.buffer.concat import open_source
    from gym_replay.buffer.door import ReferenceReturns, normalized_score

    with open_source(folder) as buffer:
        reference = buffer.reference_returns or ReferenceReturns()
    normalized_score(0.0, reference)  # which says what is missing
    return reference


def _as_json(found: Evaluation, score: float | None) -> dict[str, Any]:
    lower, upper = found.interval()
    facts = {"mean": found.mean, "std": found.std, "median": found.median, "interval": [lower, upper]}
    return {"num_episodes": len(found), **facts, "score": score, "returns": found.returns, "lengths": found.lengths}


def _lines(found: Evaluation, score: float | None) -> list[str]:
    lines = output.wrapped(str(found))
    if score is not None:
        lines.append(f"normalised score {number(score)}")
    if found.returns.ndim == 1:
        lines += output.histogram("return", output.distribution(found.returns))
    return lines + output.histogram("length", output.distribution(found.lengths))


@verb(
    "reference",
    "measure what a random policy and an expert return, and save it",
    "Plays a policy that draws its actions uniformly in the environment that was recorded, and an expert where "
    "--expert names a policy, and saves both mean returns in the folder. They are the scores 0 and 100 of normalised "
    "scores, and Minari's ref_min_score and ref_max_score.",
    [
        "gym-replay reference data/hopper --expert 3234.3",
        "gym-replay reference data/hopper --expert sb3:SAC:expert.zip --episodes 100 --num-envs 8",
        "gym-replay reference data/hopper --random -20.3 --expert 3234.3",
    ],
    FOLDER,
    option("--random", type=float, metavar="RETURN", help="the random policy's return, which is not measured then"),
    option("--expert", metavar="RETURN", help=f"the expert's return, or a policy: {POLICIES} (default: what is saved)"),
    option("--episodes", type=int, default=100, metavar="N", help="how many episodes of each policy (default: 100)"),
    *CALLING,
    ENV_KWARGS,
    importing(),
    TRUST,
    QUIET,
)
def reference(args: argparse.Namespace) -> int:
    """Measure and save reference returns."""
    from gym_replay.buffer.concat import open_source
    from gym_replay.buffer.finding import find_buffers
    from gym_replay.buffer.replay_buffer import ReplayBuffer
    from gym_replay.collecting.reference import measure_reference

    expert = _return_or_policy(args.expert)
    import_for(args.expert)
    import_modules(args.modules)
    folders = find_buffers(args.folder)
    with open_source(args.folder) as source:
        found = measure_reference(source, expert=expert, **keywords(args, "folder", "expert", "modules"))
    for folder in folders:
        with ReplayBuffer.from_folder(folder) as buffer:
            buffer.set_reference_returns(found)
    known = "not known" if found.expert is None else number(found.expert)
    line = f"{args.folder}: random {number(found.random or 0.0)}, expert {known}"
    return output.show(args, {"folder": args.folder, **vars(found)}, [line])


def _return_or_policy(text: str | None) -> Any:
    """The value of ``--expert``."""
    try:
        return None if text is None else float(text)
    except ValueError:
        if text is not None and ":" not in text and text != "random":
            raise FieldError(f"--expert {text!r}: expected a number, 'module:name' or 'sb3:ALGO:PATH'") from None
        return text
