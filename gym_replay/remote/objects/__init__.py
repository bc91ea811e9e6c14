"""Objects at an address: where they are, which of them are a revision of a data set, and parts of them on this disk."""
