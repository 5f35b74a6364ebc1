"""The commands ``info`` and ``clip``: output, files and exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
import safetensors.numpy

import fastclip
from fastclip.cli import array_files, main

Array = npt.NDArray[Any]

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


@pytest.fixture
def gradients() -> dict[str, Array]:
    """Returns arrays of several dtypes and shapes, whose names are not in alphabetical order."""
    random = np.random.default_rng(7)
    return {
        "weight": random.standard_normal((5, 4)).astype(np.float32),
        "bias": random.standard_normal(4),
        "half": random.standard_normal(6).astype(np.float16),
        "fortran": np.asfortranarray(random.standard_normal((3, 4))),
        "scalar": np.array(2.5, np.float32),
        "empty": np.zeros((0, 3), np.float32),
        "complex": random.standard_normal(2).astype(np.complex64) * np.complex64(1 + 2j),
    }


def exact_norm(gradients: dict[str, Array]) -> float:
    return float(
        np.sqrt(sum(float(np.sum(np.abs(g.astype(np.complex128)) ** 2)) for g in gradients.values()))
    )


def save(path: Path, gradients: dict[str, Array], metadata: dict[str, str] | None = None) -> Path:
    if path.suffix == ".npz":
        np.savez(path, **gradients)  # type: ignore[arg-type]
    else:
        contiguous = {name: np.array(g, order="C") for name, g in gradients.items()}
        safetensors.numpy.save_file(contiguous, path, metadata)
    return path


def load(path: Path) -> dict[str, Array]:
    if path.suffix == ".npz":
        with np.load(path) as content:
            return {name: content[name] for name in content.files}
    return dict(safetensors.numpy.load_file(path))


def one_line(text: str) -> str:
    """Checks that a text is a single line of fastclip's and no traceback, and returns it."""
    assert text.count("\n") == 1, text
    assert text.startswith("fastclip"), text
    return text


def test_info_prints_the_config(capsys: pytest.CaptureFixture[str]) -> None:
    config = fastclip.config()
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    for fact in (config["version"], config["isa"], config["isa_detected"], config["threads"]):
        assert str(fact) in text


def test_info_as_json_has_every_key_of_config(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert {key: facts[key] for key in fastclip.config()} == fastclip.config()
    assert facts["numpy"] == np.__version__


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"fastclip {fastclip.config()['version']}\n"


def test_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fastclip", "info", "--json"], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout)["version"] == fastclip.config()["version"]


def test_help_is_printed_without_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    text = capsys.readouterr().err
    for command in ("info", "clip", "bench", "demo"):
        assert command in text


@pytest.mark.parametrize("command", ["clip", "bench"])
def test_help_documents_the_exit_codes(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert "exit codes:" in text
    for code in ("  0 ", "  1 ", "  2 "):
        assert code in text


def test_unknown_command_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["clop"])
    assert ended.value.code == 2
    assert "clop" in one_line(capsys.readouterr().err)


def test_interrupted_command_exits_with_130_and_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(fastclip, "config", interrupt)
    assert main(["info"]) == 130
    assert "interrupted" in one_line(capsys.readouterr().err)


@pytest.mark.skipif(os.name == "nt", reason="there are no such pipes on Windows")
def test_closed_output_pipe_causes_no_error_message() -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as pipe:
        done = subprocess.run(
            [sys.executable, "-m", "fastclip", "info"], stdout=pipe, stderr=subprocess.PIPE, check=False
        )
    assert done.returncode == 141
    assert done.stderr == b""


@pytest.mark.parametrize("source", [".npz", ".safetensors"])
@pytest.mark.parametrize("target", [".npz", ".safetensors"])
def test_clip_by_global_norm_converts_between_formats(
    source: str, target: str, gradients: dict[str, Array], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = save(tmp_path / f"in{source}", gradients)
    after = tmp_path / f"out{target}"
    assert main(["clip", str(before), str(after), "--global-norm", "0.5", "--json"]) == 0

    norm = exact_norm(gradients)
    report = json.loads(capsys.readouterr().out)
    assert report["norm"] == pytest.approx(norm, rel=1e-6)
    assert report["scale"] == pytest.approx(0.5 / norm, rel=1e-6)
    assert report["clipped"] is True
    assert report["tensors"] == len(gradients)
    assert report["elements"] == sum(g.size for g in gradients.values())

    clipped = load(after)
    assert clipped.keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert clipped[name].dtype == gradient.dtype
        assert clipped[name].shape == gradient.shape
        rtol = 1e-3 if gradient.dtype == np.float16 else 1e-6
        np.testing.assert_allclose(clipped[name], gradient.astype(np.complex128) * (0.5 / norm), rtol=rtol)


def test_npz_keeps_order_memory_order_and_compression(gradients: dict[str, Array], tmp_path: Path) -> None:
    path = tmp_path / "in.npz"
    np.savez_compressed(path, **gradients)  # type: ignore[arg-type]
    assert main(["clip", str(path), str(tmp_path / "out.npz"), "--global-norm", "1"]) == 0
    clipped = load(tmp_path / "out.npz")
    assert list(clipped) == list(gradients)
    assert clipped["fortran"].flags.f_contiguous
    with zipfile.ZipFile(tmp_path / "out.npz") as archive:
        assert {member.compress_type for member in archive.infolist()} == {zipfile.ZIP_DEFLATED}


def test_npz_entries_may_have_any_name(tmp_path: Path) -> None:
    path = tmp_path / "in.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("file", "block.0/weight", "grad ∂"):
            with archive.open(f"{name}.npy", "w") as entry:
                np.lib.format.write_array(entry, np.ones(3))
    assert main(["clip", str(path), str(path), "--norm", "1"]) == 0
    assert list(load(path)) == ["file", "block.0/weight", "grad ∂"]


def test_npz_keeps_foreign_byte_order(tmp_path: Path) -> None:
    swapped = np.array([3.0, 4.0], np.dtype(np.float32).newbyteorder())
    path = save(tmp_path / "in.npz", {"g": swapped})
    assert main(["clip", str(path), str(path), "--global-norm", "1"]) == 0
    clipped = load(path)["g"]
    assert clipped.dtype == swapped.dtype
    np.testing.assert_allclose(clipped, [0.6, 0.8], rtol=1e-6)


def test_safetensors_keeps_types_metadata_and_order(tmp_path: Path) -> None:
    random = np.random.default_rng(7)
    gradients: dict[str, Array] = {
        "z": random.standard_normal((4, 4)).astype(BFLOAT16),
        "a": random.standard_normal(6).astype(np.float16),
        "m": random.standard_normal(3).astype(np.float32),
    }
    metadata = {"format": "np", "note": 'with "quotes" and ∂'}
    before = save(tmp_path / "in.safetensors", gradients, metadata)
    after = tmp_path / "out.safetensors"
    assert main(["clip", str(before), str(after), "--global-norm", "1e9"]) == 0
    with (
        safetensors.safe_open(before, framework="numpy") as one,
        safetensors.safe_open(after, framework="numpy") as other,
    ):
        assert other.metadata() == metadata
        assert other.offset_keys() == one.offset_keys()
    for name, clipped in load(after).items():  # the norm is below the bound
        assert clipped.dtype == gradients[name].dtype
        assert clipped.tobytes() == gradients[name].tobytes()


def test_safetensors_keeps_the_order_of_another_writer(tmp_path: Path) -> None:
    path = tmp_path / "in.safetensors"
    content = array_files.ArrayFile({"b": np.ones(2, np.float32), "a": np.full(2, 3.0, np.float32)})
    array_files.write_arrays(path, content)
    assert main(["clip", str(path), str(path), "--norm", "0.5"]) == 0
    with safetensors.safe_open(path, framework="numpy") as tensors:
        assert tensors.offset_keys() == ["b", "a"]


def test_safetensors_entries_are_aligned_to_their_dtypes(tmp_path: Path) -> None:
    narrow_first: dict[str, Array] = {"h": np.ones(3, np.float16), "d": np.ones(2)}
    path = save(tmp_path / "in.npz", narrow_first)
    assert main(["clip", str(path), str(tmp_path / "out.safetensors"), "--global-norm", "1"]) == 0
    with safetensors.safe_open(tmp_path / "out.safetensors", framework="numpy") as tensors:
        assert tensors.offset_keys() == ["d", "h"]


def test_loss_of_metadata_in_npz_is_reported(
    gradients: dict[str, Array], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save(tmp_path / "in.safetensors", gradients, {"format": "np"})
    assert main(["clip", str(path), str(tmp_path / "out.npz"), "--global-norm", "1"]) == 0
    assert "metadata" in one_line(capsys.readouterr().err)


def test_bfloat16_cannot_be_written_to_npz(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(tmp_path / "in.safetensors", {"g": np.ones(3, BFLOAT16)})
    assert main(["clip", str(path), str(tmp_path / "out.npz"), "--global-norm", "1"]) == 2
    assert "'g'" in one_line(capsys.readouterr().err)
    assert not (tmp_path / "out.npz").exists()


def test_npz_with_bfloat16_stored_as_raw_bytes_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save(tmp_path / "in.npz", {"g": np.ones(3, BFLOAT16)})
    assert main(["clip", str(path), str(tmp_path / "out.npz"), "--global-norm", "1"]) == 2
    assert "bfloat16" in one_line(capsys.readouterr().err)


def test_arrays_below_the_bound_keep_their_bits(gradients: dict[str, Array], tmp_path: Path) -> None:
    path = save(tmp_path / "in.npz", gradients)
    assert main(["clip", str(path), str(tmp_path / "out.npz"), "--global-norm", "inf"]) == 0
    for name, clipped in load(tmp_path / "out.npz").items():
        assert clipped.tobytes() == gradients[name].tobytes()


def test_norm_option_clips_each_tensor_by_its_norm(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save(tmp_path / "in.npz", {"long": np.array([3.0, 4.0]), "short": np.array([0.3, 0.4])})
    assert main(["clip", str(path), str(path), "--norm", "1", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["norm"] == pytest.approx({"long": 5.0, "short": 0.5})
    assert report["clipped"] == 1
    np.testing.assert_allclose(load(path)["long"], [0.6, 0.8])
    np.testing.assert_array_equal(load(path)["short"], [0.3, 0.4])


def test_value_option_accepts_negative_bounds_in_any_notation(tmp_path: Path) -> None:
    path = save(tmp_path / "in.npz", {"g": np.array([-2.0, -0.5, 0.5, 2.0])})
    assert main(["clip", str(path), str(path), "--value", "-1e-1", "+1"]) == 0
    np.testing.assert_array_equal(load(path)["g"], [-0.1, -0.1, 0.5, 1.0])
    assert main(["clip", str(path), str(path), "--value", "-inf", "0.25"]) == 0
    np.testing.assert_array_equal(load(path)["g"], [-0.1, -0.1, 0.25, 0.25])


@pytest.mark.parametrize(("order", "norm"), [("1", 7.0), ("inf", 4.0), ("2", 5.0)])
def test_ord_option_is_the_order_of_the_norm(
    order: str, norm: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save(tmp_path / "in.npz", {"a": np.array([3.0]), "b": np.array([-4.0])})
    command = ["clip", str(path), str(tmp_path / "out.npz"), "--global-norm", "1", "--ord", order, "--json"]
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["norm"] == pytest.approx(norm)


def test_nonfinite_raise_exits_with_1_and_does_not_write_the_output(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save(tmp_path / "in.npz", {"fine": np.ones(2), "broken": np.array([np.nan, 1.0])})
    after = tmp_path / "out.npz"
    after.write_bytes(b"what was there before")
    command = ["clip", str(path), str(after), "--global-norm", "1", "--on-nonfinite", "raise"]
    assert main(command) == 1
    assert "broken" in one_line(capsys.readouterr().err)
    assert after.read_bytes() == b"what was there before"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.npz", "out.npz"]


@pytest.mark.parametrize(("policy", "expected"), [("zero", 0.0), ("propagate", np.nan)])
def test_nonfinite_policies_that_write(
    policy: str, expected: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save(tmp_path / "in.npz", {"fine": np.ones(2), "broken": np.array([np.inf, 1.0])})
    command = ["clip", str(path), str(path), "--global-norm", "1", "--on-nonfinite", policy, "--json"]
    assert main(command) == 0
    for clipped in load(path).values():
        np.testing.assert_array_equal(clipped, [expected, expected])
    report = json.loads(capsys.readouterr().out)  # valid JSON, which has no NaN and no Infinity
    assert report["norm"] == "inf"
    assert report["scale"] == ("nan" if policy == "propagate" else 0.0)


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.bool_])
def test_integers_are_refused_by_name_or_copied(
    dtype: type, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save(tmp_path / "in.npz", {"g": np.array([3.0, 4.0]), "step": np.array([1, 0]).astype(dtype)})
    after = tmp_path / "out.npz"
    command = ["clip", str(path), str(after), "--global-norm", "1"]
    assert main(command) == 2
    message = one_line(capsys.readouterr().err)
    assert "'step'" in message
    assert np.dtype(dtype).name in message
    assert not after.exists()

    assert main([*command, "--skip-integers", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["tensors"], report["copied"]) == (1, ["step"])
    clipped = load(after)
    assert list(clipped) == ["g", "step"]
    np.testing.assert_array_equal(clipped["step"], np.array([1, 0]).astype(dtype))
    np.testing.assert_allclose(clipped["g"], [0.6, 0.8])


@pytest.mark.parametrize("option", [["--global-norm", "1"], ["--norm", "1"], ["--value", "0", "1"]])
def test_file_without_tensors(option: list[str], tmp_path: Path) -> None:
    path = save(tmp_path / "in.npz", {})
    assert main(["clip", str(path), str(tmp_path / "out.npz"), *option]) == 0
    assert load(tmp_path / "out.npz") == {}


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--global-norm", "-1"], "--global-norm"),
        (["--global-norm", "nan"], "--global-norm"),
        (["--norm", "-1"], "--norm"),
        (["--global-norm", "1", "--ord", "0"], "--ord"),
        (["--value", "1", "0"], "--value"),
        (["--value", "0", "1", "--ord", "1"], "--ord"),
        (["--norm", "1", "--on-nonfinite", "zero"], "--on-nonfinite"),
    ],
)
def test_invalid_options_exit_with_2_and_one_line(
    options: list[str],
    named: str,
    gradients: dict[str, Array],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = save(tmp_path / "in.npz", gradients)
    assert main(["clip", str(path), str(tmp_path / "out.npz"), *options]) == 2
    assert named in one_line(capsys.readouterr().err)
    assert not (tmp_path / "out.npz").exists()


def test_kind_of_clipping_is_required(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["clip", "in.npz", "out.npz"])
    assert ended.value.code == 2
    assert "--global-norm" in one_line(capsys.readouterr().err)


def damaged(path: Path) -> Path:
    save(path, {"g": np.arange(10_000.0)})
    content = bytearray(path.read_bytes())
    content[5_000:5_010] = b"0123456789"
    path.write_bytes(content)
    return path


def cut_off(path: Path) -> Path:
    save(path, {"g": np.arange(1000.0)})
    path.write_bytes(path.read_bytes()[:-200])
    return path


def with_objects(path: Path) -> Path:
    np.savez(path, g=np.array([{}, None], dtype=object))
    return path


def with_a_stranger(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "not an array")
    return path


def with_strings(path: Path) -> Path:
    return save(path, {"g": np.array(["a", "b"])})


def with_eight_bits(path: Path) -> Path:
    header = b'{"g":{"dtype":"F8_E4M3","shape":[1],"data_offsets":[0,1]}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0")
    return path


def garbage(path: Path) -> Path:
    path.write_bytes(b"this is no file of arrays at all")
    return path


def a_directory(path: Path) -> Path:
    path.mkdir()
    return path


def nothing(path: Path) -> Path:
    return path


@pytest.mark.parametrize(
    ("name", "make", "entry"),
    [
        ("in.npz", damaged, "'g'"),
        ("in.npz", cut_off, ""),
        ("in.npz", garbage, ""),
        ("in.npz", a_directory, ""),
        ("in.npz", nothing, ""),
        ("in.npz", with_objects, "'g'"),
        ("in.npz", with_a_stranger, "'readme.txt'"),
        ("in.npz", with_strings, ""),
        ("in.safetensors", cut_off, ""),
        ("in.safetensors", garbage, ""),
        ("in.safetensors", a_directory, ""),
        ("in.safetensors", nothing, ""),
        ("in.safetensors", with_eight_bits, "'g'"),
        ("in.txt", garbage, ".npz"),
    ],
)
def test_invalid_input_files_exit_with_2_and_one_line(
    name: str, make: Any, entry: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = make(tmp_path / name)
    after = tmp_path / "out.npz"
    assert main(["clip", str(path), str(after), "--global-norm", "1"]) == 2
    message = one_line(capsys.readouterr().err)
    assert str(path) in message
    assert entry in message
    assert not after.exists()


@pytest.mark.parametrize("name", ["out.txt", "nowhere/out.npz"])
def test_invalid_output_paths_exit_with_2_and_one_line(
    name: str, gradients: dict[str, Array], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save(tmp_path / "in.npz", gradients)
    assert main(["clip", str(path), str(tmp_path / name), "--global-norm", "1"]) == 2
    assert name in one_line(capsys.readouterr().err).replace(os.sep, "/")


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_full_disk_leaves_the_output_unchanged(
    suffix: str,
    gradients: dict[str, Array],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    path = save(tmp_path / f"in{suffix}", gradients)
    before = path.read_bytes()
    monkeypatch.setattr(os, "fsync", fail)
    assert main(["clip", str(path), str(path), "--global-norm", "1"]) == 2
    assert "No space left" in one_line(capsys.readouterr().err)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.skipif(os.name == "nt", reason="Windows has neither these modes nor free symbolic links")
def test_output_keeps_its_mode_and_its_symbolic_link(gradients: dict[str, Array], tmp_path: Path) -> None:
    path = save(tmp_path / "real.npz", gradients)
    path.chmod(0o640)
    link = tmp_path / "link.npz"
    link.symlink_to(path)
    assert main(["clip", str(link), str(link), "--global-norm", "1"]) == 0
    assert link.is_symlink()
    assert path.stat().st_mode & 0o777 == 0o640
    assert exact_norm(load(path)) == pytest.approx(1.0, rel=1e-3)


def test_safetensors_need_no_package_but_for_bfloat16(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save(tmp_path / "in.safetensors", {"g": np.ones(2)})
    brain = save(tmp_path / "brain.safetensors", {"g": np.ones(2, BFLOAT16)})
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    assert main(["clip", str(path), str(path), "--global-norm", "1"]) == 0
    capsys.readouterr()
    assert main(["clip", str(brain), str(path), "--global-norm", "1"]) == 2
    assert "fastclip-grad[cli]" in one_line(capsys.readouterr().err)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--global-norm", "1"], ["norm 5,", "scale 0.2", ": 1 tensor, 2 elements\n"]),
        (["--norm", "1"], ["1 of 1 tensor clipped", "largest norm 5"]),
        (["--value", "0", "3.5"], ["1 of 2 elements clipped\n"]),
    ],
)
def test_report_as_text(
    options: list[str], said: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save(tmp_path / "in.npz", {"g": np.array([3.0, 4.0])})
    assert main(["clip", str(path), str(tmp_path / "out.npz"), *options]) == 0
    text = capsys.readouterr().out
    for part in said:
        assert part in text


def test_report_mentions_nonfinite_tensors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(tmp_path / "in.npz", {"a": np.array([3.0, 4.0]), "b": np.array([np.nan])})
    assert main(["clip", str(path), str(tmp_path / "out.npz"), "--norm", "1"]) == 0
    text = capsys.readouterr().out
    assert (
        "largest norm 5, smallest scale 0.2; 1 of 2 tensors clipped; NaN or inf was found in 1 tensor\n"
        in text
    )
    assert main(["clip", str(path), str(tmp_path / "out.npz"), "--global-norm", "1"]) == 0
    assert "NaN or inf was found" in capsys.readouterr().out


def test_value_option_mentions_nan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(tmp_path / "in.npz", {"a": np.array([3.0, np.nan, np.inf]), "b": np.array([np.nan])})
    command = ["clip", str(path), str(tmp_path / "out.npz"), "--value", "-1", "1"]
    assert main(command) == 0
    assert "2 of 4 elements clipped; NaN was found in 2 elements, and stays NaN\n" in capsys.readouterr().out
    np.testing.assert_array_equal(load(tmp_path / "out.npz")["a"], [1.0, np.nan, 1.0])
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["nan"] == 2


def test_bounds_beyond_the_dtype_cause_no_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(tmp_path / "in.npz", {"g": np.array([1.0, np.inf], np.float16)})
    assert main(["clip", str(path), str(path), "--value", "-1e9", "1e9"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("broken", "said"),
    [(["'w 1'"], "in entry 'w 1';"), (["'a'", "'w 1'"], "in 2 entries: 'a', 'w 1';")],
)
def test_entries_with_nan_are_called_by_their_names_in_the_file(
    broken: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arrays: dict[str, Array] = {
        name: np.array([np.nan if repr(name) in broken else 1.0]) for name in ("a", "fine", "w 1")
    }
    path = save(tmp_path / "in.npz", arrays)
    command = ["clip", str(path), str(path), "--global-norm", "1", "--on-nonfinite", "raise"]
    assert main(command) == 1
    message = one_line(capsys.readouterr().err)
    assert said in message
    assert "t_list" not in message


@pytest.mark.parametrize("option", [["--global-norm", "1"], ["--norm", "1"], ["--value", "0", "1"]])
@pytest.mark.parametrize(
    "array",
    [np.ones(2, np.longdouble), np.array(["a"]), np.zeros(2, [("x", "f4")])],
    ids=lambda a: a.dtype.kind,
)
def test_entries_that_cannot_be_clipped_are_called_by_their_names_in_the_file(
    array: Array, option: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if array.dtype.kind == "f" and array.dtype == np.float64:
        pytest.skip("longdouble is float64 here")
    path = save(tmp_path / "in.npz", {"w": array})
    assert main(["clip", str(path), str(tmp_path / "out.npz"), *option, "--skip-integers"]) == 2
    message = one_line(capsys.readouterr().err)
    assert "entry 'w' is of type" in message
    assert "t_list" not in message
    assert not (tmp_path / "out.npz").exists()


@pytest.mark.parametrize("kind", ["float8_e4m3fn", "float8_e5m2", "float8_e5m2fnuz"])
@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_float8_is_refused(
    kind: str, suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    array = np.ones(3, getattr(ml_dtypes, kind))
    path = tmp_path / f"in{suffix}"
    if suffix == ".npz":
        np.savez(path, g=array)
    else:
        names = {"float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "float8_e5m2fnuz": "F8_E5M2FNUZ"}
        write_safetensors(path, {"g": {"dtype": names[kind], "shape": [3], "data_offsets": [0, 3]}}, bytes(3))
    assert main(["clip", str(path), str(tmp_path / "out.safetensors"), "--value", "0", "1"]) == 2
    assert "'g'" in one_line(capsys.readouterr().err)
    assert not (tmp_path / "out.safetensors").exists()


def write_safetensors(path: Path, header: dict[str, Any], data: bytes) -> Path:
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def test_info_lists_gpus_and_the_configuration_looks_for_none(capsys: pytest.CaptureFixture[str]) -> None:
    fastclip.show_config()
    assert "GPU" not in capsys.readouterr().out
    assert main(["info"]) == 0
    assert "GPUs" in capsys.readouterr().out
