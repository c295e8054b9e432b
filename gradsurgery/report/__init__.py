"""A run's folder as a page: what its log shows, in sentences and pictures."""

from gradsurgery.report.error import ReportError
from gradsurgery.report.finding import Finding
from gradsurgery.report.rules import findings
from gradsurgery.report.run import Run, read_run
from gradsurgery.report.write import write_report

__all__ = ["Finding", "ReportError", "Run", "findings", "read_run", "write_report"]
