"""Reads and writes the safetensors format.

A file consists of the length of the header (8 bytes, little-endian), the header in JSON, and the bytes of the
arrays without gaps. The safetensors package is not used: it panics where memory runs out, and when it writes
a file, it sorts the entries and builds the complete file in memory.
"""

from __future__ import annotations

import json
import math
import os
import stat
from pathlib import Path
from typing import IO, Any

import numpy as np

from fastclip.cli.array_formats.content import Array, ArrayFile, Progress, dtype_name
from fastclip.cli.errors import CommandError, one_line_message

# Names of NumPy dtypes in the format, in the order in which messages list them.
_TYPES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "complex64": "C64",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint64": "U64",
    "uint32": "U32",
    "uint16": "U16",
    "uint8": "U8",
    "bool": "BOOL",
}
_DTYPES = {kind: name for name, kind in _TYPES.items()}

_METADATA = "__metadata__"  # the entry of the header that is no array
_LONGEST_HEADER = 100_000_000  # readers refuse longer ones
_READ_AT_ONCE = 1 << 24  # bytes, so that the progress is shown while an array is read


class _FormatError(Exception):
    """The file does not have the format."""


def read(path: Path, progress: Progress) -> ArrayFile:
    """Read all entries of a safetensors file. OSError and MemoryError are left to the caller."""
    try:
        with open(path, "rb") as stream:
            return _read(path, stream, progress)
    except _FormatError as error:
        raise CommandError(f"{path}: this is not a safetensors file: {error}") from None


def _read(path: Path, stream: IO[bytes], progress: Progress) -> ArrayFile:
    length = int.from_bytes(_read_exactly(stream, 8, "the length of the header"), "little")
    if length > _LONGEST_HEADER:
        raise _FormatError(f"the header would have {length:,} bytes")
    header = _parsed(_read_exactly(stream, length, "the header"))
    content = ArrayFile(metadata=_metadata(header.pop(_METADATA, None)))
    entries = sorted(
        ((name, *_layout(name, entry)) for name, entry in header.items()), key=lambda entry: entry[3:]
    )
    _check_offsets(path, entries)
    end = entries[-1][4] if entries else 0
    status = os.fstat(stream.fileno())
    if stat.S_ISREG(status.st_mode) and status.st_size != 8 + length + end:
        # Found out before memory is allocated for what the header promises.
        raise _FormatError(f"it has {status.st_size:,} bytes, and by its header {8 + length + end:,}")
    for name, kind, shape, _, _ in entries:
        content.arrays[name] = _read_array(path, stream, name, _dtype(path, name, kind), shape, progress)
    if stream.read(1):
        raise _FormatError("there are bytes after the last entry")
    return content


def _read_exactly(stream: IO[bytes], size: int, what: str) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise _FormatError(f"it ends within {what}")
    return data


def _parsed(text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text.decode(), object_pairs_hook=_without_duplicates)
    except RecursionError:
        raise _FormatError("the header is nested too deeply") from None
    except ValueError as error:  # of UTF-8 or JSON
        raise _FormatError(f"the header is invalid: {one_line_message(error)}") from None
    if not isinstance(header, dict):
        raise _FormatError("the header is not a JSON object")
    return header


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        raise ValueError("a name occurs twice")
    for name in result:
        name.encode()  # raises UnicodeEncodeError, a ValueError, for half of a surrogate pair
    return result


def _metadata(value: Any) -> dict[str, str] | None:
    if value is None:
        return None
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise _FormatError("the metadata are not a JSON object of strings")
    for text in value.values():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise _FormatError("the metadata are not valid Unicode") from None
    return value


def _layout(name: str, entry: Any) -> tuple[str, tuple[int, ...], int, int]:
    """Return the type, the shape, the begin and the end of an entry of the header."""
    if not isinstance(entry, dict) or not entry.keys() >= {"dtype", "shape", "data_offsets"}:
        raise _FormatError(f"entry {name!r} lacks its type, shape or offsets")
    kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(kind, str) or not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2:
        raise _FormatError(f"entry {name!r} has an invalid type, shape or offsets")
    return kind, tuple(shape), *offsets


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 1 << 64 for value in values)


def _check_offsets(path: Path, entries: list[tuple[str, str, tuple[int, ...], int, int]]) -> None:
    """Check that the entries follow one another without gaps, and have the sizes of their shapes."""
    position = 0
    for name, kind, shape, begin, end in entries:
        if begin != position or end < begin:
            raise _FormatError(f"entry {name!r} does not begin where the one before ends")
        dtype = _DTYPES.get(kind)
        if dtype is None:
            raise CommandError(
                f"{path}: entry {name!r} is of type {kind}, which fastclip does not read; "
                f"it reads {', '.join(_DTYPES)}"
            )
        itemsize = 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize
        if math.prod(shape) * itemsize != end - begin:
            raise _FormatError(
                f"entry {name!r} has {end - begin:,} bytes, which is not the size of its shape"
            )
        position = end


def _dtype(path: Path, name: str, kind: str) -> np.dtype[Any]:
    if kind == "BF16":
        try:
            import ml_dtypes
        except ImportError:
            raise CommandError(
                f"{path}: entry {name!r} is bfloat16, which needs the package ml_dtypes: "
                "pip install 'fastclip-grad[cli]'"
            ) from None
        bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return bfloat16
    return np.dtype(_DTYPES[kind]).newbyteorder("<")


def _read_array(
    path: Path, stream: IO[bytes], name: str, dtype: np.dtype[Any], shape: tuple[int, ...], progress: Progress
) -> Array:
    try:
        array = np.empty(shape, dtype)
    except MemoryError as error:
        raise MemoryError(f"{path}: entry {name!r}: {one_line_message(error)}") from None
    except (ValueError, OverflowError) as error:  # too many dimensions, or one that is too long
        raise _FormatError(f"entry {name!r} has an invalid shape: {one_line_message(error)}") from None
    if array.size == 0:
        return array
    data = array.reshape(-1).view(np.uint8).data
    for begin in range(0, len(data), _READ_AT_ONCE):
        part = data[begin : begin + _READ_AT_ONCE]
        if stream.readinto(part) < len(part):  # type: ignore[attr-defined]
            raise _FormatError(f"it ends within entry {name!r}")
        progress(len(part))
    return array


def check_can_hold(path: Path, content: ArrayFile) -> None:
    """Raise CommandError unless readers of the format would return all entries by their names."""
    for name, array in content.arrays.items():
        if array.dtype.name not in _TYPES:
            raise CommandError(
                f"{path}: a safetensors file cannot hold entry {name!r} of type {dtype_name(array.dtype)}"
            )
        if name == _METADATA:
            raise CommandError(f"{path}: a safetensors file cannot hold entry {name!r}: the name is reserved")
        try:
            name.encode()
        except UnicodeEncodeError:
            raise CommandError(
                f"{path}: a safetensors file cannot hold entry {name!r}, whose name is not valid Unicode"
            ) from None
    if len(_header(content)) > _LONGEST_HEADER:
        raise CommandError(
            f"{path}: a safetensors file cannot hold these entries: their names need a header of more than "
            f"{_LONGEST_HEADER:,} bytes"
        )


def write(stream: IO[bytes], content: ArrayFile, progress: Progress) -> None:
    """Write a safetensors file, whose content `check_can_hold` has accepted."""
    header = _header(content)
    stream.write(len(header).to_bytes(8, "little"))
    stream.write(header)
    for array in _aligned_order(content.arrays).values():
        little_endian = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
        stream.write(little_endian.reshape(-1).view(np.uint8).data)
        progress(array.nbytes)


def _header(content: ArrayFile) -> bytes:
    header: dict[str, Any] = {}
    if content.metadata is not None:
        header[_METADATA] = content.metadata
    offset = 0
    for name, array in _aligned_order(content.arrays).items():
        header[name] = {
            "dtype": _TYPES[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [offset, offset + array.nbytes],
        }
        offset += array.nbytes
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    return text + b" " * (-len(text) % 8)


def _aligned_order(arrays: dict[str, Array]) -> dict[str, Array]:
    """Return `arrays` in an order that aligns the offset of each one to its item size.

    If the order of `arrays` does so, it is kept. Otherwise, arrays with larger item sizes come first.
    """
    offset = 0
    for array in arrays.values():
        if offset % array.dtype.itemsize:
            return dict(sorted(arrays.items(), key=lambda entry: -entry[1].dtype.itemsize))
        offset += array.nbytes
    return arrays
