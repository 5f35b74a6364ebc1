"""Reads and writes the npz format of NumPy: a zip archive of npy files."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import IO

import numpy as np

from fastclip.cli.array_formats.content import ArrayFile, Progress
from fastclip.cli.errors import CommandError, one_line_message

_SUFFIX = ".npy"
_LONGEST_NAME = 0xFFFF  # of an entry in a zip archive, in bytes


def read(path: Path, progress: Progress) -> ArrayFile:
    """Read all entries of a npz file. OSError and MemoryError are left to the caller."""
    content = ArrayFile()
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, MemoryError):
        raise
    except Exception:  # zipfile raises several kinds for a damaged directory of the archive
        raise CommandError(f"{path}: this is not a npz file") from None
    with archive:
        for member in archive.infolist():
            name = member.filename.removesuffix(_SUFFIX)
            if name == member.filename:
                raise CommandError(f"{path}: entry {name!r} is not an array (its name does not end in .npy)")
            if name in content.arrays:
                raise CommandError(f"{path}: there are two entries {name!r}")
            try:
                with archive.open(member) as stream:
                    array = np.lib.format.read_array(stream, allow_pickle=False)
            except MemoryError as error:
                raise MemoryError(f"{path}: entry {name!r}: {one_line_message(error)}") from None
            except Exception as error:
                # A damaged archive can raise nearly any exception, from zipfile, zlib or NumPy.
                raise CommandError(
                    f"{path}: entry {name!r} cannot be read: {one_line_message(error)}"
                ) from None
            if array.dtype.kind == "V" and array.dtype.names is None:
                raise CommandError(
                    f"{path}: entry {name!r} has no type that NumPy knows ({array.dtype}); "
                    "a npz file keeps neither bfloat16 nor float8: use safetensors with bfloat16"
                )
            content.arrays[name] = array
            content.compressed |= member.compress_type != zipfile.ZIP_STORED
            progress(array.nbytes)
    return content


def check_can_hold(path: Path, content: ArrayFile) -> None:
    """Raise CommandError unless `numpy.load` would return all entries by their names, with their dtypes."""
    for name, array in content.arrays.items():
        if array.dtype.name == "bfloat16":
            raise CommandError(f"{path}: a npz file does not keep bfloat16 (entry {name!r}): use safetensors")
        if problem := _problem_of_name(name):
            raise CommandError(f"{path}: a npz file cannot hold entry {_shortened(name)}, {problem}")
        if name.endswith(_SUFFIX) and name.removesuffix(_SUFFIX) in content.arrays:
            # Both names stand for the file of the second one: numpy.load takes names with and without .npy.
            raise CommandError(
                f"{path}: a npz file cannot hold both entry {name!r} and entry {name.removesuffix(_SUFFIX)!r}"
            )


def _problem_of_name(name: str) -> str | None:
    """Return why an entry of this name would be lost or come back under another one, or None."""
    member = name + _SUFFIX
    try:
        encoded = member.encode()
    except UnicodeEncodeError:
        return "whose name is not valid Unicode"
    if len(encoded) > _LONGEST_NAME:
        return f"whose name is longer than {_LONGEST_NAME - len(_SUFFIX):,} bytes"
    if "\0" in name:
        return "whose name contains a NUL character"
    if zipfile.ZipInfo(member).filename != member:  # on Windows, a name with a backslash
        return "whose name contains a path separator"
    return None


def _shortened(name: str) -> str:
    return repr(name) if len(name) <= 200 else f"{name[:200]!r}…"


def write(stream: IO[bytes], content: ArrayFile, progress: Progress) -> None:
    """Write a npz file, whose content `check_can_hold` has accepted."""
    # np.savez is not used: it takes the names as keyword arguments, and so rejects an entry named "file".
    compression = zipfile.ZIP_DEFLATED if content.compressed else zipfile.ZIP_STORED
    archive = zipfile.ZipFile(stream, "w", compression)
    try:
        for name, array in content.arrays.items():
            with archive.open(name + _SUFFIX, "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, array, allow_pickle=False)
            progress(array.nbytes)
        archive.close()
    except BaseException:
        archive.fp = None  # the archive is left as it is: closing it would write more, or raise another error
        raise
