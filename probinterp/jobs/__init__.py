"""Whole jobs, from files to files: what the command line offers, callable from Python too."""

from probinterp.jobs.checking import Checked, check_cells, check_file
from probinterp.jobs.clt import evaluate_clt, fit_clt, record_clt
from probinterp.jobs.clt_evaluation import classification, evaluate_proxy
from probinterp.jobs.clt_fitting import fit_transcoder, make_transcoder
from probinterp.jobs.comparing import Comparison, compare_files
from probinterp.jobs.demo import run_demo
from probinterp.jobs.fitting import Fitted, fit_cells, fit_file
from probinterp.jobs.pages import report_directory, write_page
from probinterp.jobs.platelets import run_platelets
from probinterp.jobs.vision_demo import run_vision_demo

__all__ = [
    "Checked",
    "Comparison",
    "Fitted",
    "check_cells",
    "check_file",
    "classification",
    "compare_files",
    "evaluate_clt",
    "evaluate_proxy",
    "fit_cells",
    "fit_clt",
    "fit_file",
    "fit_transcoder",
    "make_transcoder",
    "record_clt",
    "report_directory",
    "run_demo",
    "run_platelets",
    "run_vision_demo",
    "write_page",
]
