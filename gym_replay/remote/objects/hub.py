"""The hub of Hugging Face: a repository, whose objects come in commits."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from gym_replay.errors import StorageError
from gym_replay.extras import require
from gym_replay.remote.objects.store import EXTRA, Store

_COMMITTED_AT_ONCE = 500
"""Objects of one commit, at most: the hub refuses or slows down much larger ones."""


def place_at(url: str, options: Mapping[str, Any] | None) -> Store:
    """The store at an address, for writing; raises as :class:`Store` does."""
    store = Store(url, options)
    return HubStore(url, options) if store.protocol == "hf" else store


class HubStore(Store):
    """A repository of the hub. The bytes of objects are sent when they are added, and commits name them.

    fsspec's file system of the hub makes a commit of each file that is written; of a data set there would be thousands.
    """

    def __init__(self, url: str, options: Mapping[str, Any] | None = None) -> None:
        super().__init__(url, options)
        self._hub = require("huggingface_hub", EXTRA, "hf://")
        found = self.file_system.resolve_path(self.root)
        self._where = {"repo_id": found.repo_id, "repo_type": found.repo_type, "revision": found.revision}
        self._within = found.path_in_repo.strip("/")
        fs = self.file_system
        self._api = self._hub.HfApi(endpoint=fs.endpoint, token=fs.token)
        self._added: list[Any] = []
        self._adding = threading.Lock()

    def _addition(self, name: str, content: bytes) -> Any:
        path = f"{self._within}/{name}" if self._within else name
        return self._hub.CommitOperationAdd(path_in_repo=path, path_or_fileobj=content)

    def add(self, name: str, content: bytes) -> None:
        addition = self._addition(name, content)
        self.asked(name, lambda: self._api.preupload_lfs_files(additions=[addition], **self._where))
        with self._adding:
            self._added.append(addition)
            whole = self._added if len(self._added) >= _COMMITTED_AT_ONCE else []
            if whole:
                self._added = []
        if whole:
            self._commit(whole, "Objects")

    def publish(self, name: str, content: bytes, message: str) -> None:
        with self._adding:
            added, self._added = self._added, []
        self._commit([*added, self._addition(name, content)], message)

    def _commit(self, additions: list[Any], message: str) -> None:
        try:
            self._api.create_commit(operations=additions, commit_message=message, **self._where)
        except Exception as error:  # once only: one that was made after all would be made again
            raise StorageError(5, f"the hub refused the commit ({error!s:.500})", self.url) from error

    def forget(self) -> None:
        self._added = []
