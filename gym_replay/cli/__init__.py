"""The command ``gym-replay``: one module for each verb."""
