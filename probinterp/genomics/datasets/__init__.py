"""Real data: shipped with a dependency, or read from the files of a public deposit."""

from probinterp.genomics.datasets.blood_cells import pbmc68k, recovered_counts
from probinterp.genomics.datasets.platelet_rna import platelets

__all__ = ["pbmc68k", "platelets", "recovered_counts"]
