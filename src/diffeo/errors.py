"""The one exception for mistakes that a user can fix."""

from diffeo.legible import legible


class UserError(ValueError):
    """A mistake in what the user gave: one line that names the file, the column, the row and the remedy.

    The command line prints it on stderr and exits with code 2; in Python it is a ``ValueError``. Whatever names it is
    made of, nothing in it steers a terminal (``legible``).

    Args:
        message: the line.
    """

    def __init__(self, message: str) -> None:
        super().__init__(legible(message, None))
