"""fastclip.config and fastclip.show_config."""

from __future__ import annotations

import importlib.metadata

import pytest

import fastclip

LEVELS = {"scalar", "sse2", "sse4.2", "avx2", "avx512", "neon"}


def test_config() -> None:
    config = fastclip.config()
    assert config["version"] == importlib.metadata.version("fastclip-grad") == fastclip.__version__
    assert config["isa"] in LEVELS
    assert config["isa_detected"] in LEVELS
    assert config["threads"] == fastclip.get_num_threads()


def test_config_is_a_copy() -> None:
    config = fastclip.config()
    config["version"] = "changed"
    assert fastclip.config()["version"] == fastclip.__version__


def test_show_config_prints_the_config(capsys: pytest.CaptureFixture[str]) -> None:
    fastclip.show_config()
    printed = capsys.readouterr().out
    config = fastclip.config()
    assert config["version"] in printed
    assert config["isa"] in printed
    assert str(config["threads"]) in printed


def test_free_cached_memory_may_be_called_at_any_time() -> None:
    fastclip.free_cached_memory()
    fastclip.free_cached_memory()
