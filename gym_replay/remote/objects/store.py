"""An address, such as `s3://bucket/name`, where objects are read and written, each whole or not at all."""

from __future__ import annotations

import errno
import os
import random
import secrets
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any, TypeVar

from gym_replay.errors import FieldError, MissingExtraError, StorageError
from gym_replay.extras import require

EXTRA = "remote"

REQUESTS = 32
"""Requests that are under way at once, at most. While one waits for its answer, others use the link."""

_ATTEMPTS = 5
_FIRST_WAIT = 0.1
_PACKAGES = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "hf": "huggingface_hub",
    "az": "adlfs",
    "abfs": "adlfs",
    "abfss": "adlfs",
}
_FINAL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.ENOTDIR, errno.EISDIR)
"""What does not get better by asking again."""

_T = TypeVar("_T")


def is_url(address: object) -> bool:
    """Whether this is the address of a store, and not the path of a folder of this machine."""
    return isinstance(address, str) and "://" in address


@lru_cache(maxsize=1)
def requests(process: int) -> ThreadPoolExecutor:
    """The threads of this process that wait for answers; a forked one has none and starts its own."""
    return ThreadPoolExecutor(REQUESTS, thread_name_prefix="gym_replay-remote")


class Store:
    """Objects by name below one address.

    What a store refuses for a while is asked for again, five times within four seconds.

    Args:
        url: the address, with a protocol that fsspec knows.
        options: what fsspec's file system of that protocol is made with, such as credentials.

    Attributes:
        url: the address, without a slash at the end.
        file_system: fsspec's.
        root: the address as that has it.

    Raises:
        FieldError: it is no address, or of an unknown protocol.
        MissingExtraError: the package of the protocol is not installed.
        StorageError: the store cannot be reached with these options.
    """

    def __init__(self, url: str, options: Mapping[str, Any] | None = None) -> None:
        if not is_url(url):
            raise FieldError(
                f"url {url!r:.200}: expected an address with a protocol, such as s3://bucket/name, "
                "hf://datasets/me/name or file:///data/name"
            )
        self.url = url.rstrip("/")
        self._options = dict(options or {})
        self._process = -1
        self._connect()

    def __reduce__(self) -> tuple[Any, ...]:
        return Store, (self.url, self._options)

    @property
    def protocol(self) -> str:
        """What the address begins with."""
        return self.url.partition("://")[0].lower()

    def _connect(self) -> None:
        fsspec = require("fsspec", EXTRA, f"{self.protocol}://")
        options = dict(self._options)
        if self.protocol in ("file", "local"):
            options.setdefault("auto_mkdir", True)
        if self.protocol in ("s3", "s3a"):  # whose package asks again too, five times for each time that is asked here
            config = {"max_pool_connections": REQUESTS, "retries": {"max_attempts": 1}}
            options["config_kwargs"] = {**config, **options.get("config_kwargs", {})}
        try:
            self.file_system, root = fsspec.core.url_to_fs(self.url, **options)
        except ImportError as error:
            package = _PACKAGES.get(self.protocol, "a package")
            raise MissingExtraError(
                f"{self.protocol}:// needs {package}, which cannot be imported ({error}): pip install "
                f"{package if package in _PACKAGES.values() else repr(f'gym-replay[{EXTRA}]')}"
            ) from None
        except ValueError as error:
            raise FieldError(f"url {self.url!r:.200}: {error}") from None
        except Exception as error:
            raise self._refusal(error, "") from error
        self.root = root.rstrip("/")
        self._process = os.getpid()

    def _path(self, name: str) -> str:
        if self._process != os.getpid():
            self._connect()
        return f"{self.root}/{name}"

    def read(self, name: str, begin: int | None = None, end: int | None = None) -> bytes:
        """The bytes of an object, or a range of them; fewer where the object ends before.

        Raises:
            FileNotFoundError: there is no such object.
            StorageError: the store refused.
        """
        path = self._path(name)
        found: bytes = self.asked(name, lambda: self.file_system.cat_file(path, start=begin, end=end))
        return found

    def read_anew(self, name: str, most: int) -> bytes:
        """The first bytes of an object that may have been replaced since it was read; raises as :meth:`read` does.

        File systems may remember the size that an object had, and read no more than that.
        """
        path = self._path(name)

        def ask() -> bytes:
            self.file_system.invalidate_cache()
            found: bytes = self.file_system.cat_file(path, start=0, end=most)
            return found

        return self.asked(name, ask)

    def write(self, name: str, content: bytes) -> None:
        """Put an object in place, whole or not at all, instead of one that has the name.

        Raises:
            StorageError: the store refused.
        """
        path = self._path(name)
        try:
            self.asked(name, lambda: self._put(path, content))
        except FileNotFoundError as error:
            raise StorageError(errno.ENOENT, f"there is no such place ({error})", f"{self.url}/{name}") from error

    def _put(self, path: str, content: bytes) -> None:
        if self.protocol not in ("file", "local"):
            self.file_system.pipe_file(path, content)
            return
        # An object store takes an object whole. A file is seen while it is written, so it is renamed when it is there.
        made = f"{path}.{secrets.token_hex(4)}.new"
        try:
            self.file_system.pipe_file(made, content)
            os.replace(made, path)
        except BaseException:
            if os.path.exists(made):
                os.unlink(made)
            raise

    def add(self, name: str, content: bytes) -> None:
        """Put an object in place that nothing tells of yet; raises as :meth:`write` does."""
        self.write(name, content)

    def publish(self, name: str, content: bytes, message: str) -> None:
        """Put an object in place that tells of those that were added, after all of them; raises as :meth:`write` does.

        Args:
            name, content: of the object.
            message: what is new, for a store that keeps a history.
        """
        self.write(name, content)

    def forget(self) -> None:
        """Let go of what was added and is told of by nothing."""

    def sizes(self, folder: str) -> dict[str, int]:
        """The objects whose names begin with ``folder/``, and how many bytes each has.

        Raises:
            StorageError: the store refused.
        """
        path = self._path(folder)

        def listed() -> Mapping[str, Any]:
            self.file_system.invalidate_cache()
            found: Mapping[str, Any] = self.file_system.find(path, detail=True)
            return found

        try:
            entries = self.asked(folder, listed)
        except FileNotFoundError:
            return {}
        begin = len(self.root.strip("/"))
        return {key.strip("/")[begin:].strip("/"): int(info.get("size") or 0) for key, info in entries.items()}

    def asked(self, name: str, ask: Callable[[], _T]) -> _T:
        """What the store answers to a question about an object, which is asked again where it may help.

        Raises:
            FileNotFoundError: there is no such object.
            StorageError: the store refused.
        """
        for attempt in range(_ATTEMPTS):
            try:
                return ask()
            except (FileNotFoundError, PermissionError, TypeError) as error:
                if isinstance(error, FileNotFoundError):
                    raise
                raise self._refusal(error, name) from error
            except Exception as error:  # each package has errors of its own
                if attempt + 1 == _ATTEMPTS or getattr(error, "errno", None) in _FINAL:
                    raise self._refusal(error, name) from error
            time.sleep(_FIRST_WAIT * 2**attempt * (1 + random.random()))
        raise AssertionError

    def _refusal(self, error: Exception, name: str) -> StorageError:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        remedy = ""
        if isinstance(error, PermissionError):
            remedy = "; check the address, and the credentials that storage_options and the environment give"
        number = getattr(error, "errno", None)
        number = number if isinstance(number, int) else errno.EIO
        return StorageError(number, f"the store refused ({reason:.500}){remedy}", f"{self.url}/{name}".rstrip("/"))
