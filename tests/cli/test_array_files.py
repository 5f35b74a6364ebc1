"""The npz and safetensors formats of ``fastclip clip``: names they cannot hold, and damaged files."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from fastclip.cli import main
from fastclip.cli.array_files import ArrayFile, read_arrays, write_arrays
from fastclip.cli.errors import CommandError

Array = npt.NDArray[Any]


def with_names(*names: str) -> ArrayFile:
    return ArrayFile({name: np.full(3, float(value), np.float32) for value, name in enumerate(names)})


def load(path: Path) -> dict[str, Array]:
    if path.suffix == ".npz":
        with np.load(path) as content:
            return {name: content[name] for name in content.files}
    return dict(safetensors.numpy.load_file(path))


# Names -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("suffix", "names"),
    [
        (".npz", ["a\0b"]),
        (".npz", ["\0"]),
        (".npz", ["half \ud800 a pair"]),
        (".npz", ["x" * 65532]),
        (".npz", ["∂" * 21844]),
        (".npz", ["a", "a.npy"]),
        (".npz", ["a.npy.npy", "a.npy"]),
        (".safetensors", ["__metadata__"]),
        (".safetensors", ["half \ud800 a pair"]),
    ],
    ids=lambda value: ascii(value)[:30],
)
def test_names_that_the_format_cannot_hold_are_refused(suffix: str, names: list[str], tmp_path: Path) -> None:
    path = tmp_path / f"out{suffix}"
    path.write_bytes(b"old")
    with pytest.raises(CommandError, match="cannot hold") as raised:
        write_arrays(path, with_names("fine", *names))
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 1000
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
@pytest.mark.parametrize(
    "names",
    [
        ["file", "a b", "∂/grad", "block.0/weight"],
        ["", "/", "/absolute", "../above", "folder/", "."],
        ["a.npy", "b.npz", ".npy.", "C:windows"],
        pytest.param(["a\\b"], marks=pytest.mark.skipif(os.name == "nt", reason="zipfile makes it a slash")),
        ["a", "A", "arr_0", "allow_pickle", "__metadata", "\x01\x1f\x7f", "line\nbreak", "😀"],
        ["x" * 65531],
    ],
    ids=lambda value: ascii(value)[:30],
)
def test_all_other_names_come_back(suffix: str, names: list[str], tmp_path: Path) -> None:
    path = tmp_path / f"out{suffix}"
    content = with_names(*names)
    write_arrays(path, content)
    loaded = load(path)
    assert loaded.keys() == content.arrays.keys()
    for name, array in content.arrays.items():
        np.testing.assert_array_equal(loaded[name], array)
    again = read_arrays(path).arrays
    assert list(again) == names


@given(st.lists(st.text(max_size=6), max_size=5, unique=True), st.sampled_from([".npz", ".safetensors"]))
@settings(max_examples=150, deadline=None)
def test_what_is_written_is_read_by_numpy_and_safetensors(names: list[str], suffix: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"out{suffix}")
        content = with_names(*names)
        try:
            write_arrays(path, content)
        except CommandError:
            assert not path.exists()
            return
        loaded = load(path)
    assert loaded.keys() == set(names)
    for name, array in content.arrays.items():
        np.testing.assert_array_equal(loaded[name], array)


def test_command_refuses_a_name_before_it_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = tmp_path / "in.npz", tmp_path / "out.safetensors"
    with zipfile.ZipFile(source, "w") as archive, archive.open("__metadata__.npy", "w") as entry:
        np.lib.format.write_array(entry, np.ones(2))
    assert main(["clip", str(source), str(target), "--norm", "1"]) == 2
    message = capsys.readouterr().err
    assert "'__metadata__'" in message
    assert message.count("\n") == 1
    assert not target.exists()


def test_header_that_readers_refuse_for_its_length_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastclip.cli.array_formats.safetensors._LONGEST_HEADER", 200)
    with pytest.raises(CommandError, match="header of more than 200 bytes"):
        write_arrays(tmp_path / "out.safetensors", with_names("x" * 100, "y" * 100))
    assert not (tmp_path / "out.safetensors").exists()


# Damaged files ---------------------------------------------------------------------------------


def safetensors_file(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def entry(dtype: Any = "F32", shape: Any = (1,), offsets: Any = (0, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


DAMAGED: dict[str, tuple[Any, bytes]] = {
    "no JSON": (b"{", b""),
    "no UTF-8": (b'{"\xff": 1}', b""),
    "not an object": ([], b""),
    "deep": (b'{"a":' * 100_000, b""),
    "an entry that is no object": ({"a": 1}, b""),
    "no dtype": ({"a": {"shape": [1], "data_offsets": [0, 4]}}, bytes(4)),
    "a dtype that is no string": ({"a": entry(dtype=32)}, bytes(4)),
    "a negative dimension": ({"a": entry(shape=[-1])}, bytes(4)),
    "a dimension that is no integer": ({"a": entry(shape=[1.0])}, bytes(4)),
    "a dimension of true": ({"a": entry(shape=[True])}, bytes(4)),
    "a dimension beyond 64 bits": ({"a": entry(shape=[0, 1 << 64], offsets=[0, 0])}, b""),
    "a dimension beyond memory": ({"a": entry(shape=[1 << 62])}, bytes(4)),
    "three offsets": ({"a": entry(offsets=[0, 4, 4])}, bytes(4)),
    "offsets in the wrong order": ({"a": entry(offsets=[4, 0])}, bytes(4)),
    "a size that does not fit the shape": ({"a": entry(shape=[2])}, bytes(4)),
    "a gap": ({"a": entry(), "b": entry(offsets=[8, 12])}, bytes(12)),
    "an overlap": ({"a": entry(), "b": entry(offsets=[0, 4])}, bytes(4)),
    "too little data": ({"a": entry()}, bytes(3)),
    "too much data": ({"a": entry()}, bytes(5)),
    "metadata that are no object": ({"__metadata__": 1}, b""),
    "metadata that are no strings": ({"__metadata__": {"a": 1}}, b""),
    "a name twice": (b'{"a":%b,"a":%b}' % (2 * (json.dumps(entry()).encode(),)), bytes(4)),
    "half a surrogate pair": (b'{"\\ud800":%b}' % json.dumps(entry()).encode(), bytes(4)),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_damaged_safetensors_files_are_refused(what: str, tmp_path: Path) -> None:
    path = safetensors_file(tmp_path / "in.safetensors", *DAMAGED[what])
    with pytest.raises(CommandError, match="not a safetensors file") as raised:
        read_arrays(path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("length", [0, 5, 1 << 20, 1 << 63, (1 << 64) - 1])
def test_length_of_the_header_that_does_not_fit_is_refused(length: int, tmp_path: Path) -> None:
    path = safetensors_file(tmp_path / "in.safetensors", {"a": entry()}, bytes(4), length)
    with pytest.raises(CommandError, match="not a safetensors file"):
        read_arrays(path)


@pytest.mark.parametrize("size", [0, 7, 8])
def test_files_shorter_than_a_header_are_refused(size: int, tmp_path: Path) -> None:
    path = tmp_path / "in.safetensors"
    path.write_bytes(bytes(size)[:7] + b"\x09" * (size > 7))
    with pytest.raises(CommandError, match="not a safetensors file"):
        read_arrays(path)


_WRONG_SIZES = st.one_of(st.integers(0, 3), st.integers(-1, 1 << 65), st.booleans(), st.floats(), st.none())
_ENTRIES = st.one_of(
    st.fixed_dictionaries(
        {
            "dtype": st.sampled_from(["F32", "F16", "U8", "BOOL", "C64", "f32", 1]),
            "shape": st.lists(st.integers(0, 3), max_size=3) | st.lists(_WRONG_SIZES, max_size=2),
            "data_offsets": st.lists(st.integers(0, 16), min_size=2, max_size=2)
            | st.lists(_WRONG_SIZES, max_size=3),
        }
    ),
    st.integers(),
)


@given(
    st.dictionaries(st.sampled_from(["a", "b", "c", "__metadata__"]), _ENTRIES, max_size=3),
    st.integers(0, 24),
    st.booleans(),
)
@settings(max_examples=500, deadline=None)
def test_headers_are_accepted_as_by_safetensors(header: dict[str, Any], size: int, consistent: bool) -> None:
    """In half of the cases, offsets and data are made to fit the shapes."""
    if consistent:
        position = 0
        for value in header.values():
            if isinstance(value, dict) and all(type(n) is int and 0 <= n < 4 for n in value["shape"]):
                item = {"F32": 4, "F16": 2, "C64": 8}.get(value["dtype"], 1)
                end = position + item * int(np.prod(value["shape"], dtype=int))
                value["data_offsets"] = [position, end]
                position = end
        size = position
    with tempfile.TemporaryDirectory() as folder:
        path = safetensors_file(Path(folder, "in.safetensors"), header, bytes(range(size)))
        try:
            theirs = safetensors.numpy.load_file(path)
        except Exception:
            theirs = None
        try:
            ours = read_arrays(path).arrays
        except CommandError:
            ours = None
    assert (ours is None) is (theirs is None)
    if ours is not None and theirs is not None:
        assert ours.keys() == theirs.keys()
        for name, array in ours.items():
            assert array.dtype == theirs[name].dtype
            assert array.shape == theirs[name].shape
            assert array.tobytes() == theirs[name].tobytes()


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_npz_files_with_changed_bytes_are_read_or_refused(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "in.npz")
        np.savez(path, a=np.arange(4.0), b=np.ones((2, 2), np.float32))
        content = bytearray(path.read_bytes())
        for _ in range(data.draw(st.integers(1, 4))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        path.write_bytes(content)
        with contextlib.suppress(CommandError, MemoryError):
            read_arrays(path)
