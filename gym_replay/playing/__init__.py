"""play(): a person plays an environment, alone or in turns with a policy, and every episode is recorded."""
