"""The exceptions a trainer shows its user without a traceback."""


class RunError(Exception):
    """Something the user can correct; the message names the file or argument, what was found and what to do."""


class DataError(RunError, ValueError):
    """The data on disk is not what its format promises; the message names the file and the way out."""


class MissingDataError(DataError, FileNotFoundError):
    """A file or a directory that the format promises is not there."""
