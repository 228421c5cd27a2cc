import runpy
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "examples" / "check_nuts.py"


def test_held_out_checks_of_a_chain_find_what_is_wrong_and_only_that(capsys):
    results = runpy.run_path(str(SCRIPT))["main"]()
    p = {name: [r.p_two_sided.item() for r in found] for name, found in results.items()}
    assert min(p["normal errors"]) > 0.05
    assert max(p["errors that grow, with outliers"]) < 0.05
    assert all(r.calibrated and r.n_obs == 100 for found in results.values() for r in found)
    assert "spread_ratio shows misfit" in capsys.readouterr().out
