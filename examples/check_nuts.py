"""Check a regression that NUTS has fitted, on data that it has not seen.

Half the responses of a simulated study are used to fit a Bayesian linear regression with Pyro's
NUTS. The other half are compared with what the posterior predicts for them: once for data that
the model describes, once for data with outliers and a scale that grows with the covariate. Any
Pyro program can be checked like this one, and any guide in place of the samples.

    python examples/check_nuts.py
"""

import pyro
import torch
from pyro.distributions import Exponential, Normal
from pyro.infer import MCMC, NUTS
from torch import Tensor

from probinterp.criticism import PopPCResult, discrepancies, pop_pc
from probinterp.inference import pyro_draws

N_OBS, N_NEW, N_COVARIATES = 100, 100, 3


def regression(design: Tensor, response: Tensor | None = None) -> None:
    """Normal errors of one scale around a linear predictor."""
    intercept = pyro.sample("intercept", Normal(0.0, 10.0))
    slopes = pyro.sample("slopes", Normal(torch.zeros(N_COVARIATES), 10.0).to_event(1))
    scale = pyro.sample("scale", Exponential(1.0))
    with pyro.plate("subjects", len(design)):
        pyro.sample("response", Normal(intercept + design @ slopes, scale), obs=response)


def spread_ratio(x: Tensor, draw) -> Tensor:
    """Residual scale of the upper half of the predicted responses over that of the lower half."""
    residual = (x - draw.likelihood(x).mean)[:, 0]
    order = draw.likelihood(x).mean[:, 0].argsort()
    low, high = residual[order[: len(x) // 2]], residual[order[len(x) // 2 :]]
    return high.std() / low.std()


def check(design: Tensor, response: Tensor) -> list[PopPCResult]:
    """Fit to the first half of the subjects, check on the second."""
    chain = MCMC(NUTS(regression), num_samples=200, warmup_steps=100, disable_progbar=True)
    chain.run(design[:N_OBS], response[:N_OBS])
    draws = pyro_draws(
        regression,
        samples=chain.get_samples(),
        args=(design[N_OBS:],),
        obs_site="response",
        n_obs=N_OBS,
    )
    print(f"  {len(draws)} draws, worth at least {draws.n_effective:.0f} independent ones")
    x_new = response[N_OBS:].unsqueeze(1)
    compare = [
        discrepancies.mean_negative_log_likelihood,
        discrepancies.chi_square,
        discrepancies.maximum,
        spread_ratio,
    ]
    return [pop_pc(draws, x_new, d, seed=1) for d in compare]


def main() -> dict[str, list[PopPCResult]]:
    pyro.set_rng_seed(0)
    design = torch.randn(N_OBS + N_NEW, N_COVARIATES)
    predictor = 1 + design @ torch.tensor([1.0, -0.5, 0.0])
    noise = torch.randn(N_OBS + N_NEW)
    outliers = 1 + 4 * (torch.rand(N_OBS + N_NEW) < 0.05)
    data = {
        "normal errors": predictor + noise,
        "errors that grow, with outliers": predictor + noise * outliers * (predictor / 2).exp(),
    }
    results = {}
    for name, response in data.items():
        print(f"\n{name}")
        results[name] = check(design, response)
        for result in results[name]:
            print(f"  {result.verdict()}")
    return results


if __name__ == "__main__":
    main()
