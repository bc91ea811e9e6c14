"""``gym-replay view``: a folder on a page of the browser."""

from __future__ import annotations

import argparse

from gym_replay.cli import output
from gym_replay.cli.verbs import FOLDER, import_modules, importing, option, verb
from gym_replay.errors import printable


@verb(
    "view",
    "look at episodes in the browser",
    "Serves a page on 127.0.0.1 with the episodes, their frames and curves, outliers and labels, and opens it in the "
    "browser. It needs no internet, shows what is recorded meanwhile, and ends with Ctrl-C. The folder is read only; "
    "labels are written to labels.json in it. Needs the extra: pip install 'gym-replay[view]'.",
    ["gym-replay view data/cartpole", "gym-replay view data/cartpole --port 8080 --no-browser"],
    FOLDER,
    option("--port", type=int, default=0, help="where the page is served (any free port)"),
    option("--no-browser", dest="browser", action="store_false", help="only print the address"),
    importing(" that renders frames anew"),
)
def view(args: argparse.Namespace) -> int:
    """Serve the page until it is interrupted."""
    from gym_replay.viewing.opening import view as open_view

    import_modules(args.modules)
    with open_view(args.folder, port=args.port, browser=args.browser) as shown:
        if args.json:
            output.write_json({"folder": args.folder, "address": shown.address})
        else:
            print(f"{printable(args.folder)}: {shown.address}\nEnd it with Ctrl-C.", flush=True)
        try:
            shown.wait()
        except KeyboardInterrupt:
            return 0
    return 0
