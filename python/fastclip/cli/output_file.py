"""Opens OUT for writing: a file is replaced as a whole, and a pipe or a device is written to."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import secrets
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from fastclip.cli import interruption

# The file that the last call of `open_output` replaced, or was about to replace, and its replacement.
_last: tuple[Path, os.stat_result] | None = None


class _Sequential(io.FileIO):
    """A pipe or a device. Some devices report a position that means nothing."""

    def seekable(self) -> bool:
        return False

    def tell(self) -> int:
        raise io.UnsupportedOperation("a pipe or a device has no position")

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        raise io.UnsupportedOperation("a pipe or a device has no position")


@contextlib.contextmanager
def open_output(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for writing that takes the place of `path` when the block ends, and not if it raises.

    The content goes to a temporary file in the same directory, which is then renamed. Owner, group and mode
    are those of the file that is replaced. If `path` is a symbolic link, what it points to is replaced. A
    pipe or a device is not replaced: the block writes to it.

    Once the file is in its place, Ctrl-C has no effect any more.

    Raises
    ------
    OSError
        If the file cannot be written, or its owner, group and mode cannot be kept.
    """
    existing = _existing(path)
    target = Path(os.path.realpath(path))
    if existing is None or _is_at(existing, target):
        with _replacement(target, existing) as stream:
            yield stream
    else:
        if stat.S_ISDIR(existing.st_mode):
            raise IsADirectoryError(errno.EISDIR, "this is a directory")
        with io.BufferedWriter(_Sequential(path, "w")) as direct:
            yield direct
        interruption.ignore()


def forget() -> None:
    """Let `is_written` return False until a file is replaced."""
    global _last
    _last = None


def is_written() -> bool:
    """Whether the last call of `open_output` has replaced its file.

    The file system is asked, because an exception can be raised between any two lines.
    """
    if _last is None:
        return False
    target, replacement = _last
    try:
        return os.path.samestat(os.stat(target), replacement)
    except OSError:
        return False


def is_stdout(path: Path) -> bool:
    """Whether `path` is the file or pipe that stdout is connected to."""
    try:
        status = os.stat(path)
        is_same = os.path.samestat(status, os.fstat(sys.stdout.fileno()))
    except (AttributeError, OSError, ValueError):  # there is no such file, or stdout is closed or no file
        return False
    return is_same and (stat.S_ISREG(status.st_mode) or stat.S_ISFIFO(status.st_mode))


def _existing(path: Path) -> os.stat_result | None:
    """Return the status of what `path` names or points to, or None if that does not exist."""
    try:
        return os.stat(path)
    except FileNotFoundError:
        return None


def _is_at(existing: os.stat_result, target: Path) -> bool:
    """Whether `target` is the name of a regular file.

    A file that is open but has been deleted has a name in /proc, which leads to no other.
    """
    if not stat.S_ISREG(existing.st_mode):
        return False
    at_target = _existing(target)
    return at_target is not None and os.path.samestat(existing, at_target)


@contextlib.contextmanager
def _replacement(target: Path, existing: os.stat_result | None) -> Iterator[IO[bytes]]:
    global _last
    if existing is not None:
        os.close(os.open(target, os.O_WRONLY))  # raises if the file is read-only
    temporary = target.with_name(f".fastclip-{secrets.token_hex(8)}.tmp")
    with interruption.temporary_file(temporary):
        # The content of a file that only its owner may read is at no moment readable by others.
        permissions = 0o666 if existing is None else 0o600
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        with open(os.open(temporary, flags, permissions), "wb") as stream:
            if existing is not None:
                _keep_owner(stream.fileno(), existing)
            yield stream
            stream.flush()
            if existing is not None:
                _keep_mode(temporary, existing)
            os.fsync(stream.fileno())
            written = os.fstat(stream.fileno())
        _last = (target, written)
        interruption.ignore()
        try:
            os.replace(temporary, target)
        except OSError:
            interruption.heed()
            raise


def _keep_owner(descriptor: int, existing: os.stat_result) -> None:
    created = os.fstat(descriptor)
    if (created.st_uid, created.st_gid) == (existing.st_uid, existing.st_gid):
        return
    user = -1 if created.st_uid == existing.st_uid else existing.st_uid
    try:
        os.fchown(descriptor, user, existing.st_gid)
    except OSError as error:
        owner = f"user {existing.st_uid} and group {existing.st_gid}"
        reason = f"it belongs to {owner}, and a file in its place would not (delete it, or name another)"
        raise OSError(error.errno, reason) from None


def _keep_mode(temporary: Path, existing: os.stat_result) -> None:
    mode = stat.S_IMODE(existing.st_mode)
    os.chmod(temporary, mode)
    if stat.S_IMODE(os.stat(temporary).st_mode) != mode:
        raise OSError(errno.EPERM, f"its mode {mode:o} cannot be kept")
