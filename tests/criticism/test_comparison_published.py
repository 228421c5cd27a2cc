"""Published claims on transcoders in CLIP, recomputed from their net counts of images."""

import csv
import importlib.util
import math
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location(
    "published_claims", ROOT / "benchmarks" / "published_claims.py"
)
claims = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(claims)

BY_NAME = {claim.name: claim for claim in claims.CLAIMS}

# p at a discordance of 2, 5, 10, 20 % (None: impossible or not printed), significant up to,
# non-inferior at 1 pp up to (percent; -1: not printed)
PRINTED = {
    "CLT COCO all, drop-1": ((".55", ".70", ".79", ".85"), ".18", -1),
    "CLT COCO CLS, drop-1": ((".11", ".31", ".47", ".61"), "1.3", -1),
    "CLT COCO all, keep-4": ((".69", ".80", ".86", ".90"), "none", "15"),
    "CLT COCO CLS, keep-4": ((".62", ".75", ".82", ".87"), ".12", "14"),
    "CLT IN-100 all, keep-4": ((".55", ".70", ".79", ".85"), ".18", "24"),
    "CLT IN-100 CLS, keep-4": ((".84", ".90", ".93", ".95"), "none", "21"),
    "CLT CIFAR-100 all, keep-4": (("1e-37", "4e-14", "1e-7", "2e-4"), "73", "never"),
    "CLT CIFAR-100 CLS, keep-4": (("4e-11", "4e-5", ".004", ".04"), "22", "never"),
    "CLT CIFAR-100 all, drop-1": (("1e-56", "7e-19", "5e-10", "1e-5"), "all", "never"),
    "CLT CIFAR-100 CLS, drop-1": (("1e-40", "5e-15", "4e-8", "1e-4"), "78", "never"),
    "CLT CIFAR-100 all, keep-4 minus drop-1": ((".056", ".23", ".39", ".55"), "1.9", -1),
    "CLT CIFAR-100 CLS, keep-4 minus drop-1": (("1e-8", "3e-4", ".011", ".074"), "17", -1),
    "CLT IN-100 all, drop-1": (("-", "-", "4e-36", "4e-18"), "all", "never"),
    "CLT IN-100 CLS, drop-1": (("-", "-", None, None), "all", "never"),
    "Replacement CLS 0-11, CIFAR-100": ((".52", None, None, ".84"), ".2", "45"),
    "Replacement CLS 0-11, COCO": ((".27", None, None, ".73"), ".6", "28"),
    "Replacement CLS 0-11, IN-100": ((".073", ".26", ".42", ".57"), "1.7", "35"),
    "Replacement patches 0-11, CIFAR-100": (("-", "-", "-", None), "all", "never"),
    "Replacement patches 0-11, COCO": (("-", None, None, None), "all", "never"),
    "Replacement patches 0-11, IN-100": (("-", "-", "-", None), "all", "never"),
    "Replacement patches 7-11, CIFAR-100": ((None,) * 4, -1, "37"),
    "Replacement patches 7-11, COCO": ((None,) * 4, -1, "18"),
    "Replacement patches 7-11, IN-100": ((None,) * 4, -1, "11"),
    "VS2 CUB B/32": (("5e-7", ".002", ".028", ".12"), "13", -1),
    "VS2 CUB B/16": (("4e-9", "3e-4", ".010", ".069"), "17", -1),
    "VS2 Tiny B/32": ((None, None, None, "9e-4"), "58", -1),
    "PASS over VS2, CUB B/32": ((".16", None, None, ".66"), "1.0", -1),
    "PASS over VS2, Tiny B/16": ((".72", None, None, ".91"), ".06", -1),
    "PASS over VS2, CIFAR-100 B/16": ((".32", None, None, ".75"), ".5", -1),
    "PASS over VS2, CUB B/16": ((".012", ".11", ".26", ".43"), "3.3", -1),
    "PASS over VS2, Tiny B/32": ((".18", None, None, ".67"), ".9", -1),
    "VS2 CUB L/14": ((None, None, "3e-5", None), "46", -1),
    "VS2 CIFAR-100 L/14": ((None, None, "2e-7", None), "69", -1),
    "VS2 Tiny L/14": ((None, None, ".003", None), "22", -1),
}


def last_digit(printed):
    """Size of one unit in the last printed digit."""
    mantissa, _, exponent = printed.partition("e")
    decimals = len(mantissa.partition(".")[2])
    return 10.0 ** (int(exponent or 0) - decimals)


def agrees(found, printed):
    """Equal after rounding; a half may have been rounded either way."""
    return abs(found - float(printed)) <= 0.5001 * last_digit(printed)


@pytest.mark.parametrize("name", PRINTED)
def test_p_values_and_thresholds_as_printed(name):
    claim, (p_values, significant, noninferior) = BY_NAME[name], PRINTED[name]
    for q, printed in zip(claims.DISCORDANCES, p_values, strict=True):
        found = claims.p_value(claim, q)
        if printed == "-":
            assert found is None
        elif printed is not None:
            assert agrees(found, printed), (q, found, printed)
    m = claims.significant_up_to(claim.net, claim.n)
    if significant == "none":
        assert m == 0
    elif significant == "all":
        assert m >= claim.n - 1
    elif significant != -1:
        assert agrees(100 * m / claim.n, significant), m
    largest = claims.noninferior_up_to(claim)
    if noninferior == "never":
        assert largest is None
    elif noninferior != -1:
        assert agrees(100 * largest, noninferior), largest


def test_large_effects_are_significant_at_any_printed_discordance():
    for name in ("VS2 Tiny B/32", "VS2 Tiny B/16", "VS2 CIFAR-100 B/32", "VS2 CIFAR-100 B/16"):
        p = [claims.p_value(BY_NAME[name], q) for q in claims.DISCORDANCES]
        assert all(v is None or v <= 9e-4 for v in p)
        assert claims.significant_up_to(BY_NAME[name].net, 10_000) >= 5750  # 58 %
    for name in ("CIFAR-100", "COCO", "IN-100"):
        patches = BY_NAME[f"Replacement patches 0-11, {name}"]
        p = [claims.p_value(patches, q) for q in claims.DISCORDANCES]
        assert all(v is None or v < 1e-10 for v in p)


def test_parity_of_the_net_count_is_kept():
    cells = claims.cells_at(BY_NAME["CLT COCO all, drop-1"], 0.02)
    assert (cells.network_only, cells.proxy_only, cells.n) == (54, 47, 5000)
    assert cells.difference == -7 / 5000


@pytest.mark.parametrize(("net", "most"), [(25, 49), (23, 41), (21, 33), (17, 23), (15, 17)])
def test_class_gains_that_survive_bonferroni_over_a_hundred_classes(net, most):
    assert claims.significant_up_to(net, 100, 0.05 / 100) == most


@pytest.mark.parametrize(
    ("accuracy", "n", "expected"),
    [(0.6165, 10_000, 0.69), (0.8042, 5000, 0.79), (0.4312, 5000, 0.99)],
)
def test_unpaired_standard_errors(accuracy, n, expected):
    error = math.sqrt(2 * accuracy * (1 - accuracy) / n)
    assert round(100 * error, 2) == expected


def test_the_stored_table_is_what_the_script_writes():
    with (ROOT / "docs" / "studies" / "published_claims.csv").open() as file:
        stored = list(csv.DictReader(file))
    assert [row["claim"] for row in stored] == [claim.name for claim in claims.CLAIMS]
    for row, claim in zip(stored, claims.CLAIMS, strict=True):
        if claim.n * abs(claim.net) % 3 == 0:  # a part of the rows, to save time
            assert row == {k: str(v) for k, v in claims.row_of(claim).items()}
