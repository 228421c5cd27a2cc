r"""What to compare: pure functions of data ``x`` (N, G) and a draw, scalar or a vector.

A *statistic* ignores the draw, a *discrepancy* uses it. With :math:`m_{ij}` and :math:`v_{ij}`
the mean and variance of the likelihood and
:math:`e_{ij} = (x_{ij} - m_{ij}) / \sqrt{v_{ij}}` the standardised residual:

==========================================  ===============  ==========  =====  =================
name                                        kind             range       ties   large means
==========================================  ===============  ==========  =====  =================
``mean_negative_log_likelihood``            discrepancy *    real        no     bad fit
``chi_square``                              discrepancy *    >= 0        no     bad fit
``mean_squared_residual``                   discrepancy *    >= 0        no     bad fit
``reconstruction_error``                    discrepancy *    >= 0        no     bad fit
``pit_uniformity``                          discrepancy *    (0, 1]      no     bad fit
``residual_correlation``                    discrepancy *    [0, 1]      no     bad fit
``unit_residual_correlation``               discrepancy *    [0, 1]      no     bad fit
``library_size_correlation``                discrepancy *    [0, 1]      no     bad fit
``group_gap(d, groups)``                    as ``d`` *       >= 0        as d   one bad group
``residual_skewness``                       discrepancy *    real        no     right tail
``residual_kurtosis``                       discrepancy *    >= -2       no     heavy tails
``residual_autocorrelation(lag)``           discrepancy *    [-1, 1]     no     similar neighbours
``autocorrelation(lag)``                    statistic        [-1, 1]     rare   similar neighbours
``mean``                                    statistic        real        count  larger values
``maximum``, ``minimum``                    statistic        real        count  larger values
``quantile(q)``                             statistic        real        count  larger values
``second_moment``                           statistic        >= 0        count  larger values
``third_moment``                            statistic        real        count  larger values
``variance``                                statistic        >= 0        count  more spread
``skewness``                                statistic        real        rare   right tail
``kurtosis``                                statistic        >= -2       rare   heavy tails
``library_size``                            statistic        >= 0        rare   uneven depth
``mean_variance_trend``                     statistic        real        rare   steeper trend
``grand_mean(groups)``                      statistic        real        count  larger values
``maximum_of_group_means(groups)``          statistic        real        count  one large group
``quantile_of_group_means(groups, q)``      statistic        real        count  larger groups
``mean_of_group_quantiles(groups, q)``      statistic        real        count  more spread within
``feature_variance``                        statistic, (G,)  >= 0        count  over-dispersion
``index_of_dispersion``                     statistic, (G,)  >= 0        count  over-dispersion
``zero_fraction``                           statistic, (G,)  [0, 1]      yes    more zeros
``word_document_mutual_information(...)``   statistic, (K,)  >= 0        rare   bursts, mixed topic
``instantaneous_mutual_information(...)``   statistic, (G,)  real        rare   bursts
``per_feature(d)``                          as ``d``, (G,)   as ``d``    as d   as ``d``
``per_unit(d)``                             as ``d``, (N,)   as ``d``    as d   as ``d``
``per_group(d, groups)``                    as ``d``, (M,)   as ``d``    as d   as ``d``
==========================================  ===============  ==========  =====  =================

Where large values mean bad fit, misfit gives a small one-sided p; the others have no bad side:
read the two-sided p. "count" in the column of ties: ties are possible when the data are discrete;
those of variances are only found when the units come in the same order, because sums are rounded.
A discrepancy can tie for discrete data too, but seldom does. A vector says what its values stand
for in the attributes ``axis`` and ``labels``.

All of them run in the dtype and on the device of ``x`` and never wait for the device, unless the
likelihood does to validate its arguments (``validate_args=False``). They can be evaluated for many
data sets at once with ``torch.vmap``; those with a * where the draw's likelihood can, which
excludes distribution functions that only SciPy has (``pit_uniformity`` of negative binomial,
binomial, beta and Student likelihoods, evaluated on the CPU).

:func:`discrepancy` makes one of your own function, :func:`check_discrepancy` verifies it. Those of
activations (N, L, D), with a value per layer and token type, are classes in ``proxies`` and
``proxy_dependence``.
"""

from probinterp.criticism.discrepancies.counts import (
    feature_variance,
    index_of_dispersion,
    library_size,
    mean_variance_trend,
    zero_fraction,
)
from probinterp.criticism.discrepancies.custom import check_discrepancy, discrepancy
from probinterp.criticism.discrepancies.dependence import (
    autocorrelation,
    library_size_correlation,
    residual_autocorrelation,
    residual_correlation,
    unit_residual_correlation,
)
from probinterp.criticism.discrepancies.general import (
    kurtosis,
    maximum,
    mean,
    minimum,
    quantile,
    second_moment,
    skewness,
    third_moment,
    variance,
)
from probinterp.criticism.discrepancies.grouped import (
    grand_mean,
    maximum_of_group_means,
    mean_of_group_quantiles,
    quantile_of_group_means,
)
from probinterp.criticism.discrepancies.residuals import (
    chi_square,
    mean_negative_log_likelihood,
    mean_squared_residual,
    pit_uniformity,
    reconstruction_error,
    residual_kurtosis,
    residual_skewness,
)
from probinterp.criticism.discrepancies.text import (
    instantaneous_mutual_information,
    word_document_mutual_information,
)
from probinterp.criticism.discrepancies.wrappers import (
    group_gap,
    per_feature,
    per_group,
    per_unit,
)

__all__ = [
    "autocorrelation",
    "check_discrepancy",
    "chi_square",
    "discrepancy",
    "feature_variance",
    "grand_mean",
    "group_gap",
    "index_of_dispersion",
    "instantaneous_mutual_information",
    "kurtosis",
    "library_size",
    "library_size_correlation",
    "maximum",
    "maximum_of_group_means",
    "mean",
    "mean_negative_log_likelihood",
    "mean_of_group_quantiles",
    "mean_squared_residual",
    "mean_variance_trend",
    "minimum",
    "per_feature",
    "per_group",
    "per_unit",
    "pit_uniformity",
    "quantile",
    "quantile_of_group_means",
    "reconstruction_error",
    "residual_autocorrelation",
    "residual_correlation",
    "residual_kurtosis",
    "residual_skewness",
    "second_moment",
    "skewness",
    "third_moment",
    "unit_residual_correlation",
    "variance",
    "word_document_mutual_information",
    "zero_fraction",
]
