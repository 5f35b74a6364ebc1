"""Reads and writes npz and safetensors files: all entries at once, and atomically."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from fastclip.cli.errors import CommandError, one_line_message

Array = npt.NDArray[Any]
Progress = Callable[[int], None]  # called with the size of each entry, in bytes, once it is read or written


@dataclass
class ArrayFile:
    """Content of an npz or safetensors file.

    Attributes
    ----------
    arrays : dict of str to ndarray
        Arrays by name, in the order of the file.
    metadata : dict of str to str, or None
        Metadata of a safetensors file; None if it has none, and for npz files.
    compressed : bool
        Whether any entry of the npz file was compressed.
    """

    arrays: dict[str, Array] = field(default_factory=dict)
    metadata: dict[str, str] | None = None
    compressed: bool = False


# Names of NumPy dtypes in the safetensors format.
_SAFETENSORS_TYPES = {
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


def file_format(path: Path) -> str:
    """Return "npz" or "safetensors", depending on the suffix of `path`.

    Raises
    ------
    CommandError
        If the suffix is neither.
    """
    name = path.suffix.lower().removeprefix(".")
    if name not in ("npz", "safetensors"):
        raise CommandError(f"{path}: the name has to end in .npz or .safetensors")
    return name


def read_arrays(path: Path, progress: Progress = lambda size: None) -> ArrayFile:
    """Read all entries of an npz or safetensors file.

    Raises
    ------
    CommandError
        If the file is missing or damaged, if its format is not the one of its suffix, or if an entry is
        not a plain array.
    """
    read = _read_npz if file_format(path) == "npz" else _read_safetensors
    if path.is_dir():
        raise CommandError(f"{path}: this is a directory, not a file")
    try:
        return read(path, progress)
    except OSError as error:
        raise CommandError(f"{path}: cannot be read: {error.strerror or error}") from None


def write_arrays(path: Path, content: ArrayFile, progress: Progress = lambda size: None) -> None:
    """Write an npz or safetensors file atomically.

    The content goes to a temporary file in the same directory, which is then renamed to `path`. An error
    therefore leaves `path` unchanged.

    Raises
    ------
    CommandError
        If the format does not support one of the entries, or if the file cannot be written.
    """
    if file_format(path) == "npz":
        _check_npz_can_hold(path, content)
        write = _write_npz
    else:
        _check_safetensors_can_hold(path, content)
        write = _write_safetensors
    try:
        with _replacing(path) as stream:
            write(stream, content, progress)
    except OSError as error:
        raise CommandError(f"{path}: cannot be written: {error.strerror or error}") from None


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file that replaces `path` if the block ends without an error."""
    path = Path(os.path.realpath(path))  # replaces the target of a symbolic link, not the link
    if path.is_dir():
        raise IsADirectoryError(None, "this is a directory")
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        if path.exists():
            os.chmod(temporary, path.stat().st_mode & 0o7777)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _read_npz(path: Path, progress: Progress) -> ArrayFile:
    content = ArrayFile()
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile:
        raise CommandError(f"{path}: this is not a npz file") from None
    with archive:
        for member in archive.infolist():
            name = member.filename.removesuffix(".npy")
            if name == member.filename:
                raise CommandError(f"{path}: entry {name!r} is not an array (its name does not end in .npy)")
            if name in content.arrays:
                raise CommandError(f"{path}: there are two entries {name!r}")
            try:
                with archive.open(member) as stream:
                    array = np.lib.format.read_array(stream, allow_pickle=False)
            except Exception as error:
                # A damaged archive can raise nearly any exception, from zipfile, zlib or NumPy.
                raise CommandError(
                    f"{path}: entry {name!r} cannot be read: {one_line_message(error)}"
                ) from None
            if array.dtype.kind == "V" and array.dtype.names is None:
                raise CommandError(
                    f"{path}: entry {name!r} has no type that NumPy knows ({array.dtype}); "
                    "a npz file does not keep bfloat16: use safetensors"
                )
            content.arrays[name] = array
            content.compressed |= member.compress_type != zipfile.ZIP_STORED
            progress(array.nbytes)
    return content


def _check_npz_can_hold(path: Path, content: ArrayFile) -> None:
    for name, array in content.arrays.items():
        if array.dtype.name == "bfloat16":
            raise CommandError(f"{path}: a npz file does not keep bfloat16 (entry {name!r}): use safetensors")


def _write_npz(stream: IO[bytes], content: ArrayFile, progress: Progress) -> None:
    # np.savez is not used: it takes the names as keyword arguments, and so rejects an entry named "file".
    compression = zipfile.ZIP_DEFLATED if content.compressed else zipfile.ZIP_STORED
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, array in content.arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, array, allow_pickle=False)
            progress(array.nbytes)


def _read_safetensors(path: Path, progress: Progress) -> ArrayFile:
    try:
        import ml_dtypes  # noqa: F401  (registers bfloat16 with NumPy)
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise CommandError(
            f"{path}: reading safetensors needs the package {error.name}: pip install 'fastclip-grad[cli]'"
        ) from None
    with open(path, "rb"):
        pass  # raises OSError for a missing or unreadable file; the errors of safe_open do not name the cause
    content = ArrayFile()
    try:
        opened = safe_open(path, framework="numpy")
    except SafetensorError as error:
        raise CommandError(f"{path}: this is not a safetensors file: {one_line_message(error)}") from None
    with opened as tensors:
        content.metadata = tensors.metadata()
        by_offset = getattr(tensors, "offset_keys", tensors.keys)
        for name in by_offset():
            try:
                array = tensors.get_tensor(name)
            except Exception as error:  # a dtype that NumPy lacks can raise nearly any exception
                kind = tensors.get_slice(name).get_dtype()
                raise CommandError(
                    f"{path}: entry {name!r} of type {kind} cannot be read: {one_line_message(error)}"
                ) from None
            content.arrays[name] = array
            progress(array.nbytes)
    return content


def _check_safetensors_can_hold(path: Path, content: ArrayFile) -> None:
    for name, array in content.arrays.items():
        if array.dtype.name not in _SAFETENSORS_TYPES:
            raise CommandError(f"{path}: a safetensors file cannot hold entry {name!r} of type {array.dtype}")


def _write_safetensors(stream: IO[bytes], content: ArrayFile, progress: Progress) -> None:
    # The safetensors package is not used: it sorts the entries and builds the complete file in memory.
    # Format: length of the header (8 bytes, little-endian), header in JSON, bytes of the arrays.
    header: dict[str, Any] = {}
    if content.metadata is not None:
        header["__metadata__"] = content.metadata
    arrays = _aligned_order(content.arrays)
    offset = 0
    for name, array in arrays.items():
        header[name] = {
            "dtype": _SAFETENSORS_TYPES[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [offset, offset + array.nbytes],
        }
        offset += array.nbytes
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    stream.write(len(text).to_bytes(8, "little"))
    stream.write(text)
    for array in arrays.values():
        little_endian = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
        stream.write(little_endian.reshape(-1).view(np.uint8).data)
        progress(array.nbytes)


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
