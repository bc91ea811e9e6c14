"""``gym-replay push`` and ``gym-replay pull``: folders to an address, and from there."""

from __future__ import annotations

import argparse

from gym_replay.cli import output
from gym_replay.cli.verbs import (
    CHOICE,
    FIELDS,
    FOLDER,
    NEW_FOLDER,
    OVERWRITE,
    json_object,
    keywords,
    option,
    shows_bars,
    verb,
)
from gym_replay.files.folders import bytes_beneath

_URL = option(
    "url",
    metavar="URL",
    help="an address with a protocol of fsspec: hf://datasets/me/name, s3://bucket/name, gs://bucket/name, "
    "file:///data/name",
)
_OPTIONS = option(
    "--storage-options",
    metavar="JSON",
    type=json_object,
    help='what fsspec\'s file system is made with, such as \'{"profile": "lab"}\'',
)


@verb(
    "push",
    "put a folder at an address, such as a bucket or a repository of the hub",
    "Sends what is not there yet, part by part, and makes it a new revision at the end: who reads meanwhile sees the "
    "old one or the new one. A push that was cut goes on where it was. The folder may be recorded into meanwhile.",
    [
        "gym-replay push data/cartpole s3://lab/cartpole",
        "gym-replay push data/ant hf://datasets/me/ant --licence mit",
    ],
    FOLDER,
    _URL,
    option("--licence", "--license", metavar="NAME", help="for the card, such as mit"),
    option("--no-card", dest="card", action="store_false", help="write no README.md there"),
    option("--overwrite", action="store_true", help="push although other buffers were pushed there before"),
    option("--part-size", type=int, metavar="BYTES", help="of a part, a multiple of 262144 (8388608)"),
    _OPTIONS,
)
def push(args: argparse.Namespace) -> int:
    """Put a folder at an address."""
    from gym_replay.remote.push import push as put

    pushed = put(args.folder, args.url, **keywords(args, "folder", "url"), progress=shows_bars(args))
    held = f"revision {pushed.revision[:12]}, {pushed.num_episodes} episodes, {pushed.num_steps} steps"
    sent = f"sent {output.nbytes(pushed.sent)} of {output.nbytes(pushed.nbytes)}"
    return output.show(args, vars(pushed), [f"{pushed.url}: {held}; {sent}"])


@verb(
    "pull",
    "get what was pushed to an address into a new folder",
    "Compares everything with its checksums. The new folder appears under its name when it is complete; a pull that "
    "was cut goes on where it was. With conditions or fields, only the rows that are needed are fetched.",
    [
        "gym-replay pull s3://lab/cartpole data/cartpole",
        "gym-replay pull hf://datasets/me/ant data/good --where 'episode_return > 3000' --fields observation action",
        "gym-replay pull s3://lab/cartpole data/then --revision 0f3a55",
    ],
    _URL,
    NEW_FOLDER,
    option("--revision", metavar="ID", help="a revision, or how its id begins (the newest)"),
    *CHOICE,
    FIELDS,
    OVERWRITE,
    _OPTIONS,
)
def pull(args: argparse.Namespace) -> int:
    """Get a folder from an address."""
    from gym_replay.buffer.concat import ConcatReplayBuffer
    from gym_replay.cli.verbs import parse_indices
    from gym_replay.remote.pull import pull as get

    if args.episodes is not None:
        options = args.storage_options
        with ConcatReplayBuffer.from_url(args.url, revision=args.revision, storage_options=options) as there:
            args.episodes = parse_indices(args.episodes, len(there))
    with get(args.url, args.folder, **keywords(args, "url", "folder"), progress=shows_bars(args)) as made:
        found = {"folder": args.folder, "num_episodes": len(made), "num_steps": made.num_steps}
    size = sum(map(bytes_beneath, made.folders if isinstance(made, ConcatReplayBuffer) else [made.folder]))
    text = f"{args.folder}: {found['num_episodes']} episodes, {found['num_steps']} steps, {output.nbytes(size)}"
    return output.show(args, {**found, "bytes": size}, [text])
