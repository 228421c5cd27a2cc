"""What the tests of several generators need."""

import math

import pytest


@pytest.fixture(scope="session")
def within():
    """Whether the mean of independent values is the expected one, up to its standard error."""

    def mean_is(values, expected, errors=4.0):
        values = values.double().flatten()
        return abs(values.mean() - expected) < errors * values.std() / math.sqrt(len(values))

    return mean_is
