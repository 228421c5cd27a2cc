"""Check a model that is not ours: a bootstrapped Poisson regression from scikit-learn.

The counts are over-dispersed, which the regression cannot know. Two hundred bootstrap fits stand
for its posterior; each becomes a draw that replicates the held-out counts and scores data. The
check finds what is wrong, and finds nothing once the counts are Poisson.

    python examples/check_any_model.py
"""

import numpy as np
import torch
from sklearn.linear_model import PoissonRegressor
from sklearn.utils import resample
from torch.distributions import Independent, Poisson

from probinterp.criticism import FunctionDraw, PopPCResult, discrepancies, pop_pc


def predictive_draw(fit: PoissonRegressor, covariates: np.ndarray) -> FunctionDraw:
    """One fit as a draw: what it would replicate, and how likely it finds data."""
    rate = torch.as_tensor(fit.predict(covariates)).unsqueeze(1)
    likelihood = Independent(Poisson(rate), 1)
    return FunctionDraw(likelihood.sample, lambda x: likelihood)


def check(covariates: np.ndarray, counts: np.ndarray, seed: int) -> list[PopPCResult]:
    """Fit to the first three quarters of the rows, check on the rest."""
    n_obs = 3 * len(counts) // 4
    a, b, held_out = covariates[:n_obs], counts[:n_obs], covariates[n_obs:]
    model = PoissonRegressor(alpha=0)
    reference = predictive_draw(model.fit(a, b), held_out)
    bootstrap = [
        predictive_draw(model.fit(*resample(a, b, random_state=seed + k)), held_out)
        for k in range(200)
    ]
    x_new = torch.as_tensor(counts[n_obs:]).unsqueeze(1)
    compare = [
        discrepancies.mean_negative_log_likelihood,
        discrepancies.chi_square,
        discrepancies.zero_fraction,
        discrepancies.mean,
    ]
    return [pop_pc(bootstrap, x_new, d, reference=reference, seed=seed) for d in compare]


def main() -> dict[str, list[PopPCResult]]:
    random = np.random.default_rng(0)
    covariates = random.normal(size=(1000, 4))
    rate = np.exp(1 + covariates @ [0.4, -0.3, 0.2, 0.0])
    data = {
        "negative-binomial counts": random.poisson(rate * random.gamma(3, 1 / 3, 1000)),
        "Poisson counts": random.poisson(rate),
    }
    results = {name: check(covariates, x.astype(float), seed=1) for name, x in data.items()}
    for name, found in results.items():
        print(f"\n{name}")
        for result in found:
            print(f"  {result.verdict()}")
    return results


if __name__ == "__main__":
    main()
