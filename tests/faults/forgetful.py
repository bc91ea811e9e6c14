"""A model of a disk that forgets what was not synced: effects of system calls, recorded and then taken back.

The model grants no more than POSIX does. ``fsync`` of a file keeps its bytes and its size, not its name; ``fsync`` of a
directory keeps the names in it. Of everything since then, any part may be there after the plug was pulled: each page
of a file as it was at some moment since, its size as it was at some moment, and of the changes of names any
combination. Only a rename within one directory is whole.
"""

from __future__ import annotations

import contextlib
import itertools
import mmap
import os
import random
import shutil
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from internals import Counters, new_folder

PAGE = 4096


class Node:
    """A file or a directory, whatever its name, as it was before anything was recorded."""

    def __init__(self, content: bytes | dict[str, Node]) -> None:
        self.content = content


@dataclass(frozen=True)
class Names:
    """A change of the names in a directory, which happens whole or not at all; None where a name goes."""

    node: Node
    changes: dict[str, Node | None]


@dataclass(frozen=True)
class Bytes:
    """Bytes that were written."""

    node: Node
    position: int
    data: bytes


@dataclass(frozen=True)
class Size:
    """A file was cut, or extended by zeros."""

    node: Node
    size: int


@dataclass(frozen=True)
class Synced:
    """All that was done to a file or directory so far is on the disk."""

    node: Node


@dataclass(frozen=True)
class Done:
    """A step of what was recorded has ended."""

    number: int


Effect = Names | Bytes | Size | Synced | Done


# --- the pulled plug ---


class Choice:
    """What of the effects that were not synced is there afterwards.

    Args:
        data: the chance of each page, and of each size, of most files to be newer than what was synced.
        sizes: the chance of each size, where it is another one.
        names: the chance of each change of names to be there.
        generator: decides; None where both chances are 0 or 1.
        until: changes of names that came later than this share of them are lost, as where a journal keeps their order.
        renames: whether names that were there before may have changed.
    """

    def __init__(
        self,
        data: float,
        names: float,
        generator: random.Random | None = None,
        *,
        sizes: float | None = None,
        until: float = 1.0,
        renames: bool = True,
    ) -> None:
        self._data, self._names, self._generator = data, names, generator
        self._sizes = data if sizes is None else sizes
        self.until, self._renames = until, renames
        self._files: dict[Node, float] = {}

    def version(self, node: Node, count: int, *, is_size: bool = False) -> int:
        """Which of ``count`` versions of a page or the size of a file, the first of which was synced, is there."""
        if self._generator is None:
            return count - 1 if (self._sizes if is_size else self._data) else 0
        if node not in self._files:  # some files are as old as can be, and some as new
            self._files[node] = self._generator.choice((0.0, 1.0, self._data, self._data))
        chance = self._files[node]
        if chance in (0, 1):
            return int(chance) * (count - 1)
        return self._generator.randrange(count) if self._generator.random() < chance else 0

    def keeps(self, change: Names) -> bool:
        """Whether a change of names is there."""
        if not self._renames and len(change.changes) > 1:
            return False
        return self._names == 1 if self._generator is None else self._generator.random() < self._names


def choices(generator: random.Random) -> Iterator[tuple[str, Choice]]:
    """The extremes, and then others at random, without end."""
    yield "nothing", Choice(0, 0)
    yield "all", Choice(1, 1)
    yield "names only", Choice(0, 1)
    yield "data only", Choice(1, 0)
    yield "all but renames", Choice(1, 1, renames=False)
    yield "all but sizes", Choice(1, 1, sizes=0)
    yield "names and sizes", Choice(0, 1, sizes=1)
    chances = (0.0, 0.2, 0.5, 0.8, 1.0)
    while True:
        data, names = generator.choice(chances), generator.choice(chances)
        if generator.random() < 0.3:
            until = generator.random()
            yield f"data {data}, names until {until:.3f}", Choice(data, 1, generator, until=until)
        else:
            yield f"data {data}, names {names}", Choice(data, names, generator)


class Disk:
    """What is on the disk, and what is still to be brought there; effects come one by one."""

    def __init__(self, root: Node) -> None:
        self._root = root
        self._synced: dict[Node, Any] = {}
        self._waiting: dict[Node, list[Effect]] = {}
        self._changes: list[Names] = []

    def apply(self, effect: Effect) -> None:
        if isinstance(effect, Done):
            return
        node = effect.node
        if isinstance(effect, Synced):
            self._synced[node] = self.latest(node)
            self._waiting.pop(node, None)
            self._changes = [change for change in self._changes if change.node is not node]
            return
        self._waiting.setdefault(node, []).append(effect)
        if isinstance(effect, Names):
            self._changes.append(effect)

    def latest(self, node: Node) -> Any:
        """What processes see: the bytes of a file, or the names in a directory."""
        content = self._synced.get(node, node.content)
        for effect in self._waiting.get(node, ()):
            content = _after(content, effect)
        return content

    def pull_the_plug(self, target: Path, choice: Choice) -> None:
        """Make what is there afterwards, in a new folder ``target``."""
        late = {id(change) for change in self._changes[int(len(self._changes) * choice.until) :]}
        self._make(self._root, target, lambda node: self._left(node, choice, late))

    def show(self, target: Path) -> None:
        """Make what processes see, in a new folder ``target``."""
        self._make(self._root, target, self.latest)

    def _make(self, node: Node, target: Path, content_of: Callable[[Node], Any]) -> None:
        content = content_of(node)
        if isinstance(content, bytes):
            target.write_bytes(content)
            return
        target.mkdir()
        for name, child in content.items():
            self._make(child, target / name, content_of)

    def _left(self, node: Node, choice: Choice, late: set[int]) -> Any:
        """What is left of a file or directory."""
        content, waiting = self._synced.get(node, node.content), self._waiting.get(node, [])
        if isinstance(content, dict):
            for effect in waiting:
                if id(effect) not in late and choice.keeps(effect):
                    content = _after(content, effect)
            return content
        versions = [content]
        for effect in waiting:
            versions.append(_after(versions[-1], effect))
        size = len(versions[choice.version(node, len(versions), is_size=True)])
        left = bytearray(size)
        for first in range(0, size, PAGE):
            pages = [versions[0][first : first + PAGE]]
            for before, after in itertools.pairwise(versions):
                if before[first : first + PAGE] != after[first : first + PAGE]:
                    pages.append(after[first : first + PAGE])
            page = pages[choice.version(node, len(pages))][: size - first]
            left[first : first + len(page)] = page
        return bytes(left)


def _after(content: Any, effect: Effect) -> Any:
    """The content of a file or a directory after an effect."""
    if isinstance(effect, Names):
        changed = {**content, **effect.changes}
        return {name: node for name, node in changed.items() if node is not None}
    if isinstance(effect, Bytes):
        begin = content[: effect.position].ljust(effect.position, b"\0")
        return begin + effect.data + content[effect.position + len(effect.data) :]
    assert isinstance(effect, Size)
    return content[: effect.size].ljust(effect.size, b"\0")


# --- the recording ---


@dataclass
class Recording:
    """Every effect of this process on what is below a folder.

    Attributes:
        root: the folder, all of which is taken to be on the disk in the beginning.
        effects: in their order.
    """

    folder: Path
    effects: list[Effect] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._nodes: dict[int, Node] = {}
        self._maps: list[tuple[Node, int, bytes]] = []
        self.root = self._known(self.folder)

    def _known(self, path: Path) -> Node:
        content = {each.name: self._known(each) for each in path.iterdir()} if path.is_dir() else path.read_bytes()
        node = self._nodes[path.stat().st_ino] = Node(content)
        return node

    def done(self, number: int) -> None:
        """A step has ended."""
        self._note(Done(number))

    def _note(self, effect: Effect | None) -> None:
        """Add an effect; what was stored into maps before it comes first."""
        for place, (node, descriptor, before) in enumerate(self._maps):
            now = os.pread(descriptor, len(before), 0)
            if now != before:
                self.effects.append(Bytes(node, 0, now))
                self._maps[place] = node, descriptor, now
        if effect is not None:
            self.effects.append(effect)

    def _place(self, path: Any, directory: int | None) -> tuple[Node | None, str]:
        """The directory that a path leads to, where it is known, and the name in it."""
        parent, name = os.path.split(os.fspath(path))
        number = os.stat(parent or ".", dir_fd=directory).st_ino
        return self._nodes.get(number), name

    def _opened(self, descriptor: int, kind: Callable[[Node], Effect]) -> None:
        """Something was done to an open file."""
        if (node := self._nodes.get(os.fstat(descriptor).st_ino)) is not None:
            self._note(kind(node))

    def _made(self, node: Node | None, name: str, directory: int | None, path: Any, content: Any) -> None:
        if node is not None:
            number = os.stat(path, dir_fd=directory, follow_symlinks=False).st_ino
            self._nodes[number] = new = Node(content)
            self._note(Names(node, {name: new}))

    @contextlib.contextmanager
    def running(self) -> Iterator[Recording]:
        """Record what happens inside of the context. Nothing waits for the real disk."""
        replaced: list[tuple[Any, str, Any]] = []

        def put(owner: Any, name: str, wrap: Callable[[Any], Any]) -> None:
            replaced.append((owner, name, getattr(owner, name)))
            setattr(owner, name, wrap(getattr(owner, name)))

        try:
            for name in ("open", "mkdir", "pwrite", "write", "ftruncate", "rename", "replace", "unlink", "rmdir"):
                put(os, name, getattr(self, f"_{name}"))
            for name in ("fsync", "fdatasync"):
                put(os, name, lambda _: lambda descriptor: self._opened(descriptor, Synced))
            put(shutil, "copyfile", self._copyfile)
            put(new_folder, "_swap", self._swap)
            put(mmap, "mmap", self._map_class)
            put(Counters, "put", self._store)
            yield self
            self._note(None)
        finally:
            for owner, name, real in reversed(replaced):
                setattr(owner, name, real)
            for _, descriptor, _ in self._maps:
                os.close(descriptor)
            self._maps.clear()

    # What stands in for the calls of the system.

    def _open(self, real: Any) -> Any:
        def opened(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
            creates = flags & os.O_CREAT and not _exists(path, dir_fd)
            descriptor: int = real(path, flags, mode, dir_fd=dir_fd)
            if creates:
                self._made(*self._place(path, dir_fd), dir_fd, path, b"")
            elif flags & os.O_TRUNC:
                self._opened(descriptor, lambda node: Size(node, 0))
            return descriptor

        return opened

    def _mkdir(self, real: Any) -> Any:
        def made(path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
            real(path, mode, dir_fd=dir_fd)
            self._made(*self._place(path, dir_fd), dir_fd, path, {})

        return made

    def _pwrite(self, real: Any) -> Any:
        def wrote(descriptor: int, data: Any, position: int) -> int:
            count: int = real(descriptor, data, position)
            content = memoryview(data).cast("B")[:count].tobytes()
            self._opened(descriptor, lambda node: Bytes(node, position, content))
            return count

        return wrote

    def _write(self, real: Any) -> Any:
        def wrote(descriptor: int, data: Any) -> int:
            is_file = stat.S_ISREG(os.fstat(descriptor).st_mode)
            position = os.lseek(descriptor, 0, os.SEEK_CUR) if is_file else 0
            count: int = real(descriptor, data)
            content = memoryview(data).cast("B")[:count].tobytes()
            if is_file:
                self._opened(descriptor, lambda node: Bytes(node, position, content))
            return count

        return wrote

    def _ftruncate(self, real: Any) -> Any:
        def cut(descriptor: int, size: int) -> None:
            real(descriptor, size)
            self._opened(descriptor, lambda node: Size(node, size))

        return cut

    def _rename(self, real: Any) -> Any:
        def renamed(old: Any, new: Any, *, src_dir_fd: int | None = None, dst_dir_fd: int | None = None) -> None:
            moved = self._nodes.get(os.stat(old, dir_fd=src_dir_fd, follow_symlinks=False).st_ino)
            one, other = self._place(old, src_dir_fd), self._place(new, dst_dir_fd)
            real(old, new, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)
            if moved is None:
                return
            assert one[0] is not None
            assert other[0] is not None
            if one[0] is other[0]:
                self._note(Names(one[0], {one[1]: None, other[1]: moved}))
            else:  # of two directories, either may be as it was
                self._note(Names(other[0], {other[1]: moved}))
                self._note(Names(one[0], {one[1]: None}))

        return renamed

    _replace = _rename

    def _unlink(self, real: Any) -> Any:
        def removed(path: Any, *, dir_fd: int | None = None) -> None:
            node, name = self._place(path, dir_fd)
            real(path, dir_fd=dir_fd)
            if node is not None:
                self._note(Names(node, {name: None}))

        return removed

    _rmdir = _unlink

    def _copyfile(self, real: Any) -> Any:
        def copied(source: Any, target: Any, **options: Any) -> Any:
            is_new = not _exists(target, None)
            found = real(source, target, **options)
            if is_new:
                self._made(*self._place(target, None), None, target, b"")
            descriptor = os.open(target, os.O_RDONLY)
            self._opened(descriptor, lambda node: Bytes(node, 0, Path(source).read_bytes()))
            os.close(descriptor)
            return found

        return copied

    def _swap(self, real: Any) -> Any:
        def swapped(one: Path, other: Path) -> bool:
            first, second = (self._nodes[path.stat().st_ino] for path in (one, other))
            done: bool = real(one, other)
            if done:
                self._note(Names(self._nodes[other.parent.stat().st_ino], {other.name: first}))
                self._note(Names(self._nodes[one.parent.stat().st_ino], {one.name: second}))
            return done

        return swapped

    def _store(self, real: Any) -> Any:
        def stored(*arguments: Any) -> None:
            real(*arguments)
            self._note(None)

        return stored

    def _map_class(self, real: Any) -> Any:
        recording = self

        class Map(real):  # type: ignore[misc]
            def __new__(cls, descriptor: int, size: int, **options: Any) -> Map:
                new: Map = super().__new__(cls, descriptor, size, **options)
                new.node = recording._nodes.get(os.fstat(descriptor).st_ino) if descriptor >= 0 else None
                if new.node is not None:
                    recording._maps.append((new.node, os.dup(descriptor), os.pread(descriptor, size, 0)))
                return new

            def flush(self, *arguments: Any) -> None:
                if self.node is not None:
                    recording._note(Synced(self.node))

        return Map


def _exists(path: Any, directory: int | None) -> bool:
    try:
        os.stat(path, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True
