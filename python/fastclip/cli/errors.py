"""The exception that ends a command with one line and an exit code."""

from __future__ import annotations


class CommandError(Exception):
    """Ends the command: the message goes to stderr as one line, without a traceback.

    Parameters
    ----------
    message : str
        What went wrong and what to do about it.
    exit_code : int
        The exit code of the process. The default, 2, stands for bad usage or a bad file.
    """

    def __init__(self, message: str, exit_code: int = 2) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def one_line_message(error: BaseException) -> str:
    """Return the message of `error` in one line, or the name of its type if the message is empty."""
    return " ".join(str(error).split()) or type(error).__name__
