"""``gym-replay label``: what was said of episodes, on the page or here, and labels as a meta field."""

from __future__ import annotations

import argparse
from collections import Counter

from gym_replay.cli import output
from gym_replay.cli.verbs import CHOICE, FOLDER, opened, option, verb
from gym_replay.errors import FieldError


@verb(
    "label",
    "list the labels of episodes, set them, or make a meta field of them",
    "A label is a short text that an episode was given here, or on the page of gym-replay view. Labels are stored in "
    "labels.json in the buffer's folder, and conditions know them as label. Without further options the command lists "
    "how many episodes have each label. --set gives the chosen episodes a label, changes nothing else, and lists how "
    "many of all episodes have which label then. --apply writes all labels into the meta field label, which copies "
    "keep, and empties labels.json.",
    [
        "gym-replay label data/cartpole",
        "gym-replay label data/cartpole --set bad --where 'length < 10'",
        "gym-replay label data/cartpole --apply",
    ],
    FOLDER,
    option("--set", dest="text", metavar="TEXT", help="the label of the chosen episodes; '' removes theirs"),
    option("--apply", action="store_true", help="make the meta field label of all labels"),
    *CHOICE,
)
def label(args: argparse.Namespace) -> int:
    """List, set or apply labels."""
    from gym_replay.buffer.loading.selection import EpisodeValues
    from gym_replay.viewing.episodes import EpisodeTable
    from gym_replay.viewing.labelling import apply_labels

    if args.apply and (args.text is not None or args.where or args.episodes):
        raise FieldError("--apply takes all labels, and goes with no other option")
    with opened(args) as (buffer, chosen):
        parts = buffer.snapshots()
        indices = range(len(buffer)) if chosen is None else chosen.tolist()
        if args.text is not None:
            EpisodeTable(buffer).set_labels(indices, args.text)
            indices = range(len(buffer))  # what there is now, of all episodes
        counts = Counter(EpisodeValues(parts)["label"][list(indices)].tolist())
    applied = sum(apply_labels(part.reader.folder) for part in parts) if args.apply else None
    named = {text: count for text, count in counts.most_common() if text}
    rows = [[text, str(count)] for text, count in named.items()] + [["(none)", str(counts[""])]]
    lines = output.table(["label", "episodes"], rows, right=["episodes"])
    if applied is not None:
        lines.append(f"{applied} labels are in the meta field 'label' now.")
    document = {"folder": args.folder, "labels": named, "unlabelled": counts[""], "applied": applied}
    return output.show(args, document, lines)
