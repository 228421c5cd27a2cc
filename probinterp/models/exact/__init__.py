"""Small models whose posterior is exact: for teaching, and to prove that checks are calibrated.

They are plain classes: data in, posterior draws out. The draws have what a predictive check asks
for, and leading dimensions of the data are independent data sets, computed side by side.
"""

from probinterp.models.exact.bayesian_pca import BayesianPCA
from probinterp.models.exact.draws import ExactDraws, LawDraw
from probinterp.models.exact.linear_regression import LinearRegression, NormalInverseGamma
from probinterp.models.exact.poisson_gamma import PoissonGamma
from probinterp.models.exact.probabilistic_pca import ProbabilisticPCA
from probinterp.models.exact.two_level_gaussian import TwoLevelGaussian

__all__ = [
    "BayesianPCA",
    "ExactDraws",
    "LawDraw",
    "LinearRegression",
    "NormalInverseGamma",
    "PoissonGamma",
    "ProbabilisticPCA",
    "TwoLevelGaussian",
]
