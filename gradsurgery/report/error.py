"""What is told to the one who asked for a report."""


class ReportError(ValueError):
    """A run from which no report can be made; its text says what was expected, what was found, and what to do."""
