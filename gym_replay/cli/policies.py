"""What verbs share that play a policy in an environment: their options, and what is imported for them."""

from __future__ import annotations

import argparse

from gym_replay.cli.verbs import import_from_here, json_object, option

POLICIES = (
    "'random', 'module:name' (a function from observations to actions, an object with predict, or a class of either), "
    "or 'sb3:ALGO:PATH'; the last two run the code in the module or the model's file"
)
"""What an option that takes a policy says of it."""

ENV = option("env", metavar="ENV", help="environment id; 'module:id' imports the module that registers it")
POLICY = option("--policy", default="random", help=f"{POLICIES} (default: random)")
ENV_KWARGS = option("--env-kwargs", type=json_object, metavar="JSON", help="arguments of the environment")
STOCHASTIC = option(
    "--stochastic", dest="deterministic", action="store_false", help="let predict draw its actions at random"
)
MAX_EPISODE_STEPS = option("--max-episode-steps", type=int, metavar="N", help="truncate episodes there")
RESET_OPTIONS = option("--options", type=json_object, metavar="JSON", help="options of each reset")
QUIET = option("--quiet", dest="progress", action="store_false", help="show no bar")

CALLING = (
    option("--num-envs", type=int, default=1, metavar="K", help="environments at once (default: 1)"),
    option("--seed", type=int, default=0, metavar="S", help="of environment and policy (default: 0)"),
    STOCHASTIC,
    option(
        "--batched",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="call the policy with a batch of the observations of all environments, or of each by itself "
        "(default: a batch where there are several)",
    ),
)
"""How many environments there are, and how a policy is called."""

EPISODE = (
    MAX_EPISODE_STEPS,
    option("--fresh-envs", action="store_true", help="make the environment anew for each episode"),
    RESET_OPTIONS,
)
"""What an episode is."""


def import_for(*names: str | None) -> None:
    """Where one of these names is in a module (``module:name``), let modules of the folder that one is in be found."""
    if any(name is not None and ":" in name for name in names):  # a model may need its module, too
        import_from_here()
