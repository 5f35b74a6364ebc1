"""Checks of options that several commands have."""

from __future__ import annotations

from pathlib import Path

from fastclip.cli.errors import CommandError


def check_at_least(option: str, value: float, least: float) -> None:
    """Raise CommandError if `value` is below `least` or NaN."""
    if not value >= least:
        raise CommandError(f"{option} has to be at least {least}, and is {value}")


def check_directory_exists(option: str, path: Path) -> None:
    """Raise CommandError if the directory that `path` would be written to does not exist."""
    if not path.absolute().parent.is_dir():
        raise CommandError(f"{option}: there is no directory {path.parent}")
