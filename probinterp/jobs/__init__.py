"""Whole jobs, from files to files: what the command line offers, callable from Python too."""

from probinterp.jobs.checking import Checked, check_cells, check_file
from probinterp.jobs.demo import run_demo
from probinterp.jobs.fitting import Fitted, fit_cells, fit_file
from probinterp.jobs.pages import report_directory, write_page

__all__ = [
    "Checked",
    "Fitted",
    "check_cells",
    "check_file",
    "fit_cells",
    "fit_file",
    "report_directory",
    "run_demo",
    "write_page",
]
