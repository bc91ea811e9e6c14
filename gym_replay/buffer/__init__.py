"""The replay buffer: storage below, loading beside it, and the class that people hold."""
