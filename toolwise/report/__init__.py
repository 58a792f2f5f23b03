"""What a run found, for people: report.json, a page, a terminal table, a picture."""

from toolwise.report.build import build_report
from toolwise.report.terminal import print_report

__all__ = ["build_report", "print_report"]
