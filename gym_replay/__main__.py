"""``python -m gym_replay`` is the command ``gym-replay``."""

import sys

from gym_replay.cli import main

if __name__ == "__main__":
    sys.exit(main())
