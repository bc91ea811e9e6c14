"""collect(): episodes of an environment and a policy, as many as asked for, the same ones whoever plays them.

The package is not a module ``gym_replay/collect.py``: importing a module of that name would hide the
function ``gym_replay.collect``.
"""
