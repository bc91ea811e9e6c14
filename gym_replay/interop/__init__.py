"""Data to and from the formats of other packages: one module or folder for each, imported at its first use."""
