"""Offline reinforcement learning from recorded folders: four methods, each in a file of its own, and what they reach.

| module | what it is |
|---|---|
| `record` | the data: an agent while it learns, a medium policy, a mixture, and pieces of random play |
| `networks` | what the methods share: networks, and the policy that acts in an environment |
| `bc` | behaviour cloning |
| `td3_bc` | TD3+BC |
| `iql` | implicit Q-learning |
| `decision_transformer` | the Decision Transformer |
| `results` | what the runs reached, as a table and a plot |
| `__main__` | trains, evaluates, and says whether that was good enough |

From the root of the repository:

    pip install stable-baselines3 "gymnasium[classic-control,mujoco]" matplotlib
    python -m examples.offline_rl.record      # an hour for all three environments; --short for Pendulum alone
    python -m examples.offline_rl             # hours; --short for Pendulum alone, in minutes
"""
