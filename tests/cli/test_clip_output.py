"""OUT of ``fastclip clip``: replacement, owner and mode, pipes and devices, signals, too little memory."""

from __future__ import annotations

import contextlib
import io
import os
import random
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastclip.cli import interruption, main, output_file
from support import fresh_python
from support.line_tracing import call_with_action

NORM = ["--global-norm", "1"]
COMMAND = [sys.executable, "-m", "fastclip", "clip"]
CLIPPED = pytest.approx([0.6, 0.8])

on_unix = pytest.mark.skipif(os.name == "nt", reason="Windows has no such files, modes or signals")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.npz"
    np.savez(path, w=np.array([3.0, 4.0]))
    return path


def read(path: Path) -> list[float]:
    with np.load(path) as content:
        values: list[float] = content["w"].tolist()
    return values


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# Replacement -----------------------------------------------------------------------------------


def test_out_may_have_the_longest_name(source: Path) -> None:
    target = source.with_name("x" * 251 + ".npz")
    assert main(["clip", str(source), str(target), *NORM]) == 0
    assert read(target) == CLIPPED


@on_unix
def test_link_that_leads_nowhere_is_kept_and_its_target_created(source: Path) -> None:
    link = source.with_name("link.npz")
    link.symlink_to("fresh.npz")
    assert main(["clip", str(source), str(link), *NORM]) == 0
    assert link.is_symlink()
    assert read(source.with_name("fresh.npz")) == CLIPPED


@on_unix
def test_links_in_a_circle_are_reported(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    link = source.with_name("link.npz")
    link.symlink_to("link.npz")
    assert main(["clip", str(source), str(link), *NORM]) == 2
    assert "cannot be written" in capsys.readouterr().err


@on_unix
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o666, 0o4755])
def test_mode_is_kept(mode: int, source: Path) -> None:
    source.chmod(mode)
    assert main(["clip", str(source), str(source), *NORM]) == 0
    assert stat.S_IMODE(source.stat().st_mode) == mode
    assert read(source) == CLIPPED


@on_unix
def test_new_file_has_the_mode_of_the_umask(source: Path) -> None:
    before = os.umask(0o027)
    try:
        assert main(["clip", str(source), str(source.with_name("out.npz")), *NORM]) == 0
    finally:
        os.umask(before)
    assert stat.S_IMODE(source.with_name("out.npz").stat().st_mode) == 0o640


@on_unix
def test_content_of_a_private_file_is_never_readable_by_others(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source.chmod(0o600)
    modes = []

    def look(descriptor: int) -> None:
        modes.extend(stat.S_IMODE(path.stat().st_mode) for path in source.parent.iterdir())

    monkeypatch.setattr(os, "fsync", look)
    assert main(["clip", str(source), str(source), *NORM]) == 0
    assert modes == [0o600, 0o600]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give a file away")
def test_owner_and_group_are_kept(source: Path) -> None:
    os.chown(source, 1234, 4321)
    source.chmod(0o6751)
    assert main(["clip", str(source), str(source), *NORM]) == 0
    status = source.stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (1234, 4321, 0o6751)


@on_unix
def test_file_whose_owner_cannot_be_kept_is_not_replaced(
    source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(descriptor: int, user: int, group: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    before, own = source.read_bytes(), os.fstat

    def foreign(descriptor: int) -> Any:
        status = own(descriptor)
        return os.stat_result([*status[:4], status.st_uid + 1, *status[5:]])

    monkeypatch.setattr(os, "fchown", refuse)
    monkeypatch.setattr(output_file.os, "fstat", foreign)
    assert main(["clip", str(source), str(source), *NORM]) == 2
    monkeypatch.undo()
    assert "belongs to user" in capsys.readouterr().err
    assert source.read_bytes() == before
    assert names(source.parent) == ["in.npz"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everything")
@pytest.mark.parametrize("which", ["file", "folder"])
def test_file_without_write_permission_is_not_replaced(
    which: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    target = folder / "out.npz"
    target.write_bytes(b"old")
    protected = target if which == "file" else folder
    protected.chmod(0o555)
    try:
        assert main(["clip", str(source), str(target), *NORM]) == 2
    finally:
        protected.chmod(0o755)
    assert "Permission denied" in capsys.readouterr().err
    assert target.read_bytes() == b"old"
    assert names(folder) == ["out.npz"]


# Pipes and devices -----------------------------------------------------------------------------


@contextlib.contextmanager
def reader(path: Path, read_from: Callable[[io.FileIO], bytes]) -> Iterator[list[bytes]]:
    """Opens a pipe in another thread, and returns what the function has read when the block ends."""
    received: list[bytes] = []

    def work() -> None:
        with open(path, "rb", buffering=0) as stream:
            received.append(read_from(stream))

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield received
    finally:
        thread.join()


def read_slowly(stream: io.FileIO) -> bytes:
    parts = []
    while part := stream.read(100_000):
        parts.append(part)
        time.sleep(0.005)
    return b"".join(parts)


@on_unix
@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
@pytest.mark.parametrize("read_from", [io.FileIO.readall, read_slowly])
def test_named_pipe_is_written_to(
    suffix: str, read_from: Callable[[io.FileIO], bytes], tmp_path: Path
) -> None:
    source, pipe, got = tmp_path / "in.npz", tmp_path / f"pipe{suffix}", tmp_path / f"got{suffix}"
    np.savez(source, w=np.full(250_000, 3.0), v=np.ones((2, 3), np.float32))
    os.mkfifo(pipe)
    with reader(pipe, read_from) as received:
        assert main(["clip", str(source), str(pipe), "--norm", "1"]) == 0
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    got.write_bytes(received[0])
    again = tmp_path / "again.npz"
    assert main(["clip", str(got), str(again), "--norm", "inf"]) == 0
    with np.load(again) as content:
        np.testing.assert_allclose(content["w"], np.full(250_000, 1 / 500), rtol=1e-12)
        assert content["v"].shape == (2, 3)
    assert names(tmp_path) == sorted(path.name for path in (source, pipe, got, again))


@on_unix
def test_named_pipe_whose_reader_leaves_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, pipe = tmp_path / "in.npz", tmp_path / "pipe.npz"
    np.savez(source, w=np.ones(1_000_000))
    os.mkfifo(pipe)
    with reader(pipe, lambda stream: stream.read(100)):
        assert main(["clip", str(source), str(pipe), *NORM]) == 2
    message = capsys.readouterr().err
    assert "Broken pipe" in message
    assert message.count("\n") == 1


@on_unix
def test_safetensors_are_read_from_a_named_pipe(source: Path, tmp_path: Path) -> None:
    file, pipe, target = tmp_path / "in.safetensors", tmp_path / "pipe.safetensors", tmp_path / "out.npz"
    assert main(["clip", str(source), str(file), *NORM]) == 0
    os.mkfifo(pipe)
    thread = threading.Thread(target=lambda: pipe.write_bytes(file.read_bytes()))
    thread.start()
    assert main(["clip", str(pipe), str(target), *NORM]) == 0
    thread.join()
    assert read(target) == CLIPPED


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full is Linux's")
@pytest.mark.parametrize(("device", "code"), [("/dev/null", 0), ("/dev/full", 2)])
@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_device_is_written_to(
    device: str, code: int, suffix: str, source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    link = source.with_name(f"link{suffix}")
    link.symlink_to(device)
    assert main(["clip", str(source), str(link), *NORM]) == code
    assert ("No space left" in capsys.readouterr().err) is (code == 2)
    assert stat.S_ISCHR(os.stat(device).st_mode)
    assert link.is_symlink()
    assert names(source.parent) == ["in.npz", link.name]


@on_unix
def test_socket_is_refused(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(source.parent)  # the address of a socket is short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("out.npz")
        assert main(["clip", "in.npz", "out.npz", *NORM]) == 2
    assert stat.S_ISSOCK(os.stat("out.npz").st_mode)


@pytest.mark.skipif(not os.path.exists("/dev/stdout"), reason="there is no /dev/stdout")
@pytest.mark.parametrize("to", ["pipe", "file"])
def test_report_goes_to_stderr_if_the_arrays_go_to_stdout(to: str, source: Path) -> None:
    link, got = source.with_name("link.npz"), source.with_name("got.npz")
    link.symlink_to("/dev/stdout")
    command = [*COMMAND, str(source), str(link), *NORM]
    if to == "pipe":
        done = subprocess.run(command, capture_output=True, check=True)
        got.write_bytes(done.stdout)
    else:
        with got.open("wb") as stdout:
            done = subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, check=True)
    assert read(got) == CLIPPED
    assert b"global norm 5" in done.stderr


# Stdout and stderr -----------------------------------------------------------------------------


def run_in_shell(redirection: str, source: Path, unbuffered: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        ["sh", "-c", f'"$@" {redirection}', "sh", *COMMAND, str(source), str(source), *NORM],
        capture_output=True,
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        check=False,
    )


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full is Linux's")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    ("redirection", "said"),
    [
        (">/dev/full", b"No space left on device"),
        (">&-", b"stdout is closed"),
        (">/dev/full 2>/dev/full", b""),
        ("<&- >&- 2>&-", b""),
    ],
)
def test_report_that_cannot_be_printed_gives_3_and_out_is_written(
    redirection: str, said: bytes, unbuffered: str, source: Path
) -> None:
    done = run_in_shell(redirection, source, unbuffered)
    assert done.returncode == 3
    assert said in done.stderr
    assert done.stderr.count(b"\n") == (1 if said else 0)
    assert read(source) == CLIPPED


@on_unix
def test_reader_that_closes_the_pipe_gives_141_and_out_is_written(source: Path) -> None:
    end, pipe = os.pipe()
    os.close(end)
    with os.fdopen(pipe, "wb") as stdout:
        done = subprocess.run(
            [*COMMAND, str(source), str(source), *NORM], stdout=stdout, stderr=subprocess.PIPE, check=False
        )
    assert (done.returncode, done.stderr) == (141, b"")
    assert read(source) == CLIPPED


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full is Linux's")
@pytest.mark.parametrize("redirection", ["2>/dev/full", "2>&-"])
def test_error_that_cannot_be_printed_has_its_exit_code(redirection: str, source: Path) -> None:
    missing = source.with_name("missing.npz")
    done = run_in_shell(redirection, missing, "")
    assert (done.returncode, done.stdout, done.stderr) == (2, b"", b"")
    usage = subprocess.run(
        ["sh", "-c", f'"$@" {redirection}', "sh", *COMMAND], capture_output=True, check=False
    )
    assert (usage.returncode, usage.stdout, usage.stderr) == (2, b"", b"")


@on_unix
def test_path_that_stdout_cannot_encode_is_printed_with_escapes(source: Path) -> None:
    target = source.with_name("out-\udcff-∂.npz")
    try:
        target.touch()
    except (OSError, UnicodeEncodeError):
        pytest.skip("the file system has no such names")
    done = subprocess.run(
        [*COMMAND, str(source), str(target), *NORM],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "1"},
        check=True,
    )
    assert rb"out-\udcff-\u2202.npz" in done.stdout
    assert read(target) == CLIPPED


# Ctrl-C and signals ----------------------------------------------------------------------------


def interrupt() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
@pytest.mark.parametrize("kind", ["signal", "exception"])
# A file that has been opened when the exception comes, and not yet entered a with statement.
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_exit_code_after_ctrl_c_tells_whether_out_is_written(suffix: str, kind: str, source: Path) -> None:
    """Ctrl-C comes at every line of the command in turn. "exception" stands for a handler of the caller's."""
    target = source.with_name(f"out{suffix}")
    command = ["clip", str(source), str(target), *NORM]
    action = interrupt if kind == "exception" else lambda: signal.raise_signal(signal.SIGINT)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, *interruption._ENDING)}
    seen = set()
    line = 0
    ran = True
    while ran:
        target.write_bytes(b"old")
        codes: list[int] = []
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            ran, _ = call_with_action(
                lambda codes=codes: codes.append(main(command)), action, line, catch=KeyboardInterrupt
            )
        for number, handler in handlers.items():  # exceptions come between the lines that restore them, too
            signal.signal(number, handler)
        written = target.read_bytes() != b"old"
        for code in codes:  # empty if the exception came before or after all that `main` does
            assert (code in (0, 3)) is written, f"line {line}: exit code {code}"
            assert code in (0, 3, 130), f"line {line}"
            seen.add(code)
        assert names(source.parent) == ["in.npz", target.name], f"line {line}"
        line += 1
    assert {0, 130} <= seen
    assert line > 300


@on_unix
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_signals_leave_no_temporary_file(name: str, tmp_path: Path) -> None:
    source, target = tmp_path / "in.npz", tmp_path / "out.npz"
    np.savez(source, **{f"w{i}": np.ones(200_000, np.float32) for i in range(10)})  # type: ignore[arg-type]
    moments = random.Random(name)
    script = """
        import sys
        from fastclip.cli import clip_file, main
        print("ready", flush=True)
        sys.argv[0] = "fastclip"
        raise SystemExit(main())
    """
    codes = set()
    for _ in range(12):
        target.write_bytes(b"old")
        process = fresh_python.start(script, "clip", str(source), str(target), *NORM)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(moments.uniform(0, 0.15))
        process.send_signal(getattr(signal, name))
        _, errors = process.communicate(timeout=60)
        written = target.read_bytes() != b"old"
        if written:
            with np.load(target) as content:
                assert len(content.files) == 10
        if process.returncode in (0, 130):
            assert written is (process.returncode == 0)
        else:
            assert process.returncode == -getattr(signal, name), errors
        assert names(tmp_path) == ["in.npz", "out.npz"]
        codes.add(process.returncode)
    assert codes - {0}


@on_unix
@pytest.mark.parametrize("number", [signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)])
def test_signal_during_the_writing_ends_the_process_and_removes_the_file(
    number: signal.Signals, source: Path
) -> None:
    before = source.read_bytes()
    script = """
        import os, signal, sys
        from pathlib import Path
        from fastclip.cli import main
        fsync = os.fsync
        def kill(descriptor):
            assert len(list(Path(sys.argv[1]).parent.iterdir())) == 2  # the temporary file is there
            signal.raise_signal(int(sys.argv[2]))
        os.fsync = kill
        main(["clip", sys.argv[1], sys.argv[1], "--global-norm", "1"])
    """
    done = fresh_python.run(script, str(source), str(int(number)), expect=None)
    assert done.returncode == -number
    assert done.stderr == ""
    assert source.read_bytes() == before
    assert names(source.parent) == ["in.npz"]


@on_unix
def test_hangup_that_is_ignored_stays_ignored(source: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "fsync", lambda descriptor: signal.raise_signal(signal.SIGHUP))
            assert main(["clip", str(source), str(source), *NORM]) == 0
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    assert read(source) == CLIPPED


def test_command_runs_outside_the_main_thread(source: Path) -> None:
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(main(["clip", str(source), str(source), *NORM])))
    thread.start()
    thread.join()
    assert codes == [0]
    assert read(source) == CLIPPED


# Memory ----------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the memory of a process so")
@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
@pytest.mark.parametrize("room", [4, 24, 40, 56])
def test_too_little_memory_gives_2_and_out_is_not_written(suffix: str, room: int, source: Path) -> None:
    """There is room for so many MiB, and the file has two arrays of 16 MiB."""
    large, target = source.with_name(f"large{suffix}"), source.with_name(f"out{suffix}")
    arrays = {"a": np.full((2048, 1024), 0.5), "b": np.asfortranarray(np.full((2048, 1024), 0.5))}
    np.savez(source.with_name("large.npz"), **arrays)  # type: ignore[arg-type]
    assert main(["clip", str(source.with_name("large.npz")), str(large), "--norm", "inf"]) == 0
    target.write_bytes(b"old")
    script = """
        import resource, sys
        from pathlib import Path
        import ml_dtypes
        from fastclip.cli import main
        source, target, room = sys.argv[1:]
        small, other = Path(source).with_name("in.npz"), Path(target).with_name("other" + Path(target).suffix)
        assert main(["clip", str(small), str(other), "--value", "0", "1"]) == 0  # imports what is needed
        size = next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith("VmSize"))
        limit = (size << 10) + (int(room) << 20)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        raise SystemExit(main(["clip", source, target, "--value", "0", "0.25"]))
    """
    done = fresh_python.run(script, str(large), str(target), str(room), expect=None)
    written = target.read_bytes() != b"old"
    assert done.returncode == (0 if written else 2), done.stderr
    if not written:
        assert "not enough memory" in done.stderr
        assert done.stderr.count("\n") == 1, done.stderr
    if room < 32:
        assert not written
    assert not [name for name in names(target.parent) if name.startswith(".")]


@pytest.mark.skipif(not Path("/dev/null").exists(), reason="this system has no /dev/null")
def test_device_without_a_suffix_gets_the_format_of_the_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "in.npz", w=np.float32([3.0, 4.0]))
    assert main(["clip", str(tmp_path / "in.npz"), "/dev/null", "--global-norm", "1"]) == 0
    assert "1 tensor" in capsys.readouterr().out
    assert main(["clip", str(tmp_path / "in.npz"), str(tmp_path / "out"), "--global-norm", "1"]) == 2
    assert "has to end in .npz" in capsys.readouterr().err
