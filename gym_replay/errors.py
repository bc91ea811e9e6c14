"""Every error that gym_replay raises, and :func:`printable`, through which each message goes.

GymReplayError
 |- FieldError (ValueError)              a declaration or a value that does not fit a field
 |- UnsupportedSpaceError (TypeError)    a Gymnasium space that cannot be stored
 |- ConfigMismatchError (ValueError)     an existing buffer was created with a different config
 |- EpisodeStateError (ValueError)       a call that the running episode does not allow
 |- BufferFullError (ValueError)         no room for one more episode
 |- EpisodeTooLongError (ValueError)     one step past max_timesteps
 |- EpisodeEvictedError (IndexError)     the episode left the ring while it was being read
 |   `- BufferChangedError               what a buffer held was cleared or edited, and its files are gone
 |- StaleFieldError (ValueError)         a derived field has no values for an episode yet
 |- EmptyBufferError (ValueError)        nothing to load from
 |- BufferClosedError (ValueError)       the buffer was closed
 |- MakeEnvError (ValueError)            the recorded environment cannot be made anew
 |- ReadOnlyError (OSError, ValueError, NotImplementedError)  a write through a read-only buffer
 |- BufferLockedError (OSError)          another writer holds the folder
 |- BufferNotFoundError (FileNotFoundError)  the folder holds no buffer
 |- NotABufferError (FileExistsError)    the folder holds something else
 |- StorageError (OSError)               the operating system refused to write
 |- CorruptBufferError (ValueError)      a file of the buffer is damaged
 |- UnsupportedFormatError (ValueError)  written by a newer version
 `- MissingExtraError (ImportError)      an optional package is not installed
"""

from __future__ import annotations


def printable(text: str) -> str:
    """A text on one line, in which what moves a terminal's cursor or hides characters is written as an escape.

    Names and strings in a folder may come from a stranger. All of them that are shown to somebody go through here.

    Example:
        >>> printable("fine, \x1b[31mred")
        'fine, \\x1b[31mred'
    """
    return text if text.isprintable() else "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


class GymReplayError(Exception):
    """Base of every error of this package. Its text is printable."""

    def __str__(self) -> str:
        text = super().__str__()
        if isinstance(self, OSError) and self.strerror:  # without the number: the text says what it means
            text = self.strerror if self.filename is None else f"{self.filename}: {self.strerror}"
        return "\n".join(map(printable, text.split("\n")))


class FieldError(GymReplayError, ValueError):
    """A field declaration is wrong, or a value does not fit its field."""


class UnsupportedSpaceError(GymReplayError, TypeError):
    """A Gymnasium space that cannot be stored."""


class ConfigMismatchError(GymReplayError, ValueError):
    """An existing buffer was created with a different config."""


class EpisodeStateError(GymReplayError, ValueError):
    """A call that the running episode, or its absence, does not allow."""


class BufferFullError(GymReplayError, ValueError):
    """A buffer that is not circular has no room for one more episode."""


class EpisodeTooLongError(GymReplayError, ValueError):
    """An episode would grow past ``max_timesteps`` (or past ``max_steps`` on its own)."""


class EpisodeEvictedError(GymReplayError, IndexError):
    """The episode was evicted from a circular buffer while it was being read."""


class BufferChangedError(EpisodeEvictedError):
    """A buffer was cleared or edited since it was opened, and what was not mapped of it by then cannot be read."""


class StaleFieldError(GymReplayError, ValueError):
    """A field whose values are computed later than its episodes are stored has none for one of them yet."""


class EmptyBufferError(GymReplayError, ValueError):
    """There is no episode, or no sample, to load."""


class BufferClosedError(GymReplayError, ValueError):
    """The buffer was closed."""


class MakeEnvError(GymReplayError, ValueError):
    """The recorded environment cannot be made anew from what is stored and registered."""


class ReadOnlyError(GymReplayError, OSError, ValueError, NotImplementedError):
    """A write was asked of a buffer that is read-only, or of a concatenation of buffers."""


class BufferLockedError(GymReplayError, OSError):
    """Another writer holds the folder."""


class BufferNotFoundError(GymReplayError, FileNotFoundError):
    """The folder holds no buffer."""


class NotABufferError(GymReplayError, FileExistsError):
    """The folder is not empty and holds something other than a buffer."""


class StorageError(GymReplayError, OSError):
    """The operating system refused to write; committed episodes are intact."""


class CorruptBufferError(GymReplayError, ValueError):
    """A file of the buffer is damaged; the message names the file and the fault."""


class UnsupportedFormatError(GymReplayError, ValueError):
    """The buffer was written in a format, or with a feature, that this version cannot read."""


class MissingExtraError(GymReplayError, ImportError):
    """An optional package is needed; the message names the pip command."""
