"""Paired comparison of a network and its proxy on the same images.

How large is the change, how sure are we, and may the proxy stay? Images are the units; arrays go
in, immutable results come out.
"""

from probinterp.criticism.comparison.cell_bootstrap import acceleration, bca_interval
from probinterp.criticism.comparison.cells import Cells, count_cells
from probinterp.criticism.comparison.class_effects import ClassEffects, class_effects
from probinterp.criticism.comparison.curves import (
    Curve,
    CurveDifference,
    curve,
    curve_difference,
    curve_rank,
)
from probinterp.criticism.comparison.dirichlet import ChangePosterior, change_posterior
from probinterp.criticism.comparison.floor import Floor, self_discordance
from probinterp.criticism.comparison.holm_family import Family, family, holm
from probinterp.criticism.comparison.image_bootstrap import Bootstrap, bootstrap_images
from probinterp.criticism.comparison.intervals import (
    Interval,
    agresti_min_interval,
    bonett_price_interval,
    wald_interval,
    wilson_interval,
)
from probinterp.criticism.comparison.layer_contrasts import LayerContrasts, layer_contrasts
from probinterp.criticism.comparison.margins import MarginTest, equivalence, noninferiority
from probinterp.criticism.comparison.mcnemar import mcnemar
from probinterp.criticism.comparison.paired import (
    PairedAccuracy,
    accuracy_of_cells,
    paired_accuracy,
)
from probinterp.criticism.comparison.power import (
    minimal_detectable_difference,
    minimal_margin,
    power,
    required_images,
)
from probinterp.criticism.comparison.quantity import Comparison, Quantity
from probinterp.criticism.comparison.reconstruction import (
    bootstrap_nmse,
    paired_bootstrap,
)
from probinterp.criticism.comparison.record import (
    IncomparableRecordsError,
    Record,
    compare_records,
    hash_of,
    require_comparable,
)
from probinterp.criticism.comparison.score_change import ScoreChange, score_change
from probinterp.criticism.comparison.seeds import SeedBootstrap, seed_bootstrap
from probinterp.criticism.comparison.sign_flip import SignFlip, sign_flip
from probinterp.criticism.comparison.subsets import SubsetRank, subset_rank
from probinterp.criticism.comparison.tango import tango_interval
from probinterp.criticism.comparison.verdict import Verdict, verdict

__all__ = [
    "Bootstrap",
    "Cells",
    "ChangePosterior",
    "ClassEffects",
    "Comparison",
    "Curve",
    "CurveDifference",
    "Family",
    "Floor",
    "IncomparableRecordsError",
    "Interval",
    "LayerContrasts",
    "MarginTest",
    "PairedAccuracy",
    "Quantity",
    "Record",
    "ScoreChange",
    "SeedBootstrap",
    "SignFlip",
    "SubsetRank",
    "Verdict",
    "acceleration",
    "accuracy_of_cells",
    "agresti_min_interval",
    "bca_interval",
    "bonett_price_interval",
    "bootstrap_images",
    "bootstrap_nmse",
    "change_posterior",
    "class_effects",
    "compare_records",
    "count_cells",
    "curve",
    "curve_difference",
    "curve_rank",
    "equivalence",
    "family",
    "hash_of",
    "holm",
    "layer_contrasts",
    "mcnemar",
    "minimal_detectable_difference",
    "minimal_margin",
    "noninferiority",
    "paired_accuracy",
    "paired_bootstrap",
    "power",
    "require_comparable",
    "required_images",
    "score_change",
    "seed_bootstrap",
    "self_discordance",
    "sign_flip",
    "subset_rank",
    "tango_interval",
    "verdict",
    "wald_interval",
    "wilson_interval",
]
