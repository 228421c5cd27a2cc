"""Whole jobs, from files to files: what the command line offers, callable from Python too."""

from probinterp.jobs.checking import Checked, check_cells, check_file
from probinterp.jobs.comparing import Comparison, compare_files
from probinterp.jobs.demo import run_demo
from probinterp.jobs.fitting import Fitted, fit_cells, fit_file
from probinterp.jobs.pages import report_directory, write_page
from probinterp.jobs.platelets import run_platelets

__all__ = [
    "Checked",
    "Comparison",
    "Fitted",
    "check_cells",
    "check_file",
    "compare_files",
    "fit_cells",
    "fit_file",
    "report_directory",
    "run_demo",
    "run_platelets",
    "write_page",
]
