import runpy
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "examples" / "check_any_model.py"


def test_check_finds_overdispersion_and_only_that(capsys):
    results = runpy.run_path(str(SCRIPT))["main"]()
    rejected = {
        name: {r.discrepancy for r in found if (r.p_adjusted <= 0.05).all()}
        for name, found in results.items()
    }
    assert rejected["Poisson counts"] == set()
    expected = {"mean_negative_log_likelihood", "chi_square", "zero_fraction"}
    assert rejected["negative-binomial counts"] >= expected
    assert all(r.calibrated for found in results.values() for r in found)
    assert "chi_square shows misfit" in capsys.readouterr().out
