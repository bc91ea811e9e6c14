"""The folder on disk: fields, columns, the episode table, the one writer. Imports neither torch nor gymnasium."""
