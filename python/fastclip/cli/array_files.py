"""Reads and writes npz and safetensors files, all entries at once."""

from __future__ import annotations

import stat
from pathlib import Path
from types import ModuleType

from fastclip.cli.array_formats import npz, safetensors
from fastclip.cli.array_formats.content import Array, ArrayFile, Progress
from fastclip.cli.errors import CommandError
from fastclip.cli.output_file import open_output

__all__ = [
    "Array",
    "ArrayFile",
    "check_can_hold",
    "file_format",
    "output_format",
    "read_arrays",
    "write_arrays",
]

_FORMATS: dict[str, ModuleType] = {"npz": npz, "safetensors": safetensors}


def file_format(path: Path) -> str:
    """Return "npz" or "safetensors", depending on the suffix of `path`.

    Raises
    ------
    CommandError
        If the suffix is neither.
    """
    name = path.suffix.lower().removeprefix(".")
    if name not in _FORMATS:
        raise CommandError(f"{path}: the name has to end in .npz or .safetensors")
    return name


def output_format(path: Path, input_path: Path) -> str:
    """Return the format of an output: that of its suffix or, for a pipe or a device, that of the input.

    Raises
    ------
    CommandError
        If the suffix is neither that of npz nor that of safetensors, and `path` is no pipe or device.
    """
    if path.suffix.lower().removeprefix(".") not in _FORMATS:
        try:
            mode = path.stat().st_mode
        except OSError:
            mode = stat.S_IFREG
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            return file_format(input_path)
    return file_format(path)


def read_arrays(path: Path, progress: Progress = lambda size: None) -> ArrayFile:
    """Read all entries of an npz or safetensors file.

    Raises
    ------
    CommandError
        If the file is missing or damaged, if its format is not the one of its suffix, or if an entry is
        not a plain array.
    MemoryError
        If there is too little memory for an entry.
    """
    read = _FORMATS[file_format(path)].read
    if path.is_dir():
        raise CommandError(f"{path}: this is a directory, not a file")
    try:
        content: ArrayFile = read(path, progress)
    except OSError as error:
        raise CommandError(f"{path}: cannot be read: {error.strerror or error}") from None
    return content


def check_can_hold(path: Path, content: ArrayFile, name: str) -> None:
    """Raise CommandError if a format does not support one of the entries or its name."""
    _FORMATS[name].check_can_hold(path, content)


def write_arrays(
    path: Path,
    content: ArrayFile,
    progress: Progress = lambda size: None,
    *,
    format_name: str | None = None,
) -> None:
    """Write an npz or safetensors file, which takes the place of `path` as a whole.

    Without `format_name`, the suffix of `path` selects the format.

    See `output_file.open_output`, also for pipes and devices. An error leaves a file at `path` unchanged.

    Raises
    ------
    CommandError
        If the format does not support one of the entries, or if the file cannot be written.
    """
    name = file_format(path) if format_name is None else format_name
    check_can_hold(path, content, name)
    try:
        with open_output(path) as stream:
            _FORMATS[name].write(stream, content, progress)
    except OSError as error:
        raise CommandError(f"{path}: cannot be written: {error.strerror or error}") from None
