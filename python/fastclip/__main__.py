"""Entry point of ``python -m fastclip``: runs the command line."""

from fastclip.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
