"""``gym-replay merge``: several folders copied into one."""

from __future__ import annotations

import argparse

from gym_replay.cli.copies import add_overwrite, show_made
from gym_replay.cli.options import SOURCE_HELP, add_verb, shows_bars


def add(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the verb."""
    parser = add_verb(
        verbs,
        "merge",
        run,
        "copy the episodes of several folders into one",
        "Copies whole episodes, with all meta fields, in the order of the sources. Each is compared with its checksums "
        "on the way. The new folder appears under its name when it is complete.",
        ["gym-replay merge data/monday data/tuesday data/both", "gym-replay merge data/shards data/one"],
    )
    parser.add_argument("sources", nargs="+", metavar="FOLDER", help=SOURCE_HELP)
    parser.add_argument("out", metavar="OUT", help="the new folder")
    parser.add_argument("--fields", nargs="+", metavar="FIELD", help="only these, or common for those that all have")
    parser.add_argument("--meta-fields", nargs="+", metavar="FIELD", help="the same for meta fields")
    add_overwrite(parser)


def run(args: argparse.Namespace) -> int:
    """Copy."""
    from gym_replay.buffer.copying import merge

    made = merge(
        args.sources,
        args.out,
        fields="common" if args.fields == ["common"] else args.fields,
        meta_fields="common" if args.meta_fields == ["common"] else args.meta_fields,
        overwrite=args.overwrite,
        progress=shows_bars(args),
    )
    show_made([made], as_json=args.json)
    return 0
