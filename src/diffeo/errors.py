"""The one exception for mistakes that a user can fix."""


class UserError(ValueError):
    """A mistake in what the user gave: one line that names the file, the column, the row and the remedy.

    The command line prints it on stderr and exits with code 2; in Python it is a ``ValueError``.
    """
