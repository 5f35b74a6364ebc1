"""The error that ends a command with one line and an exit code."""


class CommandError(Exception):
    """Ends the command: its message goes to stderr as one line, without a traceback.

    Parameters
    ----------
    message : str
        What went wrong and what to do about it.
    exit_code : int
        The exit code of the process; 2 stands for bad usage or a bad file.
    """

    def __init__(self, message: str, exit_code: int = 2) -> None:
        super().__init__(message)
        self.exit_code = exit_code
