"""Local latents: what a check of factor analysis sees by where the replicate's z comes from.

Factor analysis with known loadings and noise. New rows: z of the replicate from the prior or from
its posterior given the held-out row; data with the right or a wider distribution of z. Masked
cells: z from its posterior given the unmasked cells of the row. Expected: the prior mode is
calibrated and sees the wrong prior, the posterior mode is blind to it; on masked cells the
realised kind degenerates while plug-in and predictive kinds reject about 5 %.

    python benchmarks/calibration/factor_analysis.py --sets 300 --out factor_analysis.csv
"""

from __future__ import annotations

import warnings

from simulations import factor_rows, masked_pca
from study import (
    PValues,
    arguments,
    check_sets,
    negative_log_likelihood,
    rates,
    regime,
    report,
    variance,
)

from probinterp.criticism import LocalDoubleUseWarning

N_ROWS, N_FACTORS = 200, 3
STATISTICS = {"NLL": negative_log_likelihood, "variance": variance}


def check_new_rows(
    local: str, scale: float, n_features: int, n_sets: int, n_draws: int, seed: int
) -> dict[str, PValues]:
    """Check rows whose factors have sd ``scale``; the model says 1."""
    simulate = factor_rows(N_ROWS, n_features, N_FACTORS, local=local, scale=scale)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LocalDoubleUseWarning)
        return check_sets(simulate, STATISTICS, n_sets=n_sets, n_draws=n_draws, seed=seed)


def check_masked(n_masked: int, kind: str, n_sets: int, n_draws: int, seed: int) -> PValues:
    """Check masked cells of rows with 20 features."""
    found = check_sets(
        masked_pca(N_ROWS, 20, N_FACTORS, n_masked),
        {"NLL": negative_log_likelihood},
        n_sets=n_sets,
        n_draws=n_draws,
        kind=kind,
        seed=seed,
    )
    return found["NLL"]


def main() -> None:
    options = arguments(__doc__, n_sets=300, n_draws=199)
    how = (options.sets, options.draws, options.seed)
    rows = []
    for n_features in (20, 5):
        for scale in (1.0, 1.3):
            for local in ("prior", "posterior"):
                case = {"case": f"new rows, G={n_features}, sd(z)={scale}"}
                for name, p in check_new_rows(local, scale, n_features, *how).items():
                    rows.append(case | {"check": f"{local}, {name}", "r": "-"} | rates(p))
    for n_masked in (40, 200, 800):
        r = f"{regime(masked_pca(N_ROWS, 20, N_FACTORS, n_masked), 400, options.seed):.2f}"
        for kind in ("realised", "plugin", "predictive"):
            settings = {"case": f"{n_masked} masked cells", "check": kind, "r": r}
            rows.append(settings | rates(check_masked(n_masked, kind, *how)))
    report(rows, options.out)


if __name__ == "__main__":
    main()
