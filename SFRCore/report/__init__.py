"""The report of a study: pictures, curves and the HTML page."""

from SFRCore.report.page import write_report

__all__ = ["write_report"]
