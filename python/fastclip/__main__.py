"""Runs the command line: ``python -m fastclip``."""

from fastclip.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
