"""The one exception a trainer shows its user without a traceback."""


class RunError(Exception):
    """Something the user can correct; the message names the file or argument, what was found and what to do."""
