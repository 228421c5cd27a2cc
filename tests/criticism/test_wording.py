import math

import pytest

from probinterp.criticism.wording import counted, position


@pytest.mark.parametrize(
    ("n", "noun", "text"),
    [
        (1, "gene", "1 gene"),
        (0, "gene", "0 genes"),
        (2, "study", "2 studies"),
        (3, "day", "3 days"),
    ],
)
def test_numbers_agree_with_their_nouns(n, noun, text):
    assert counted(n, noun) == text


@pytest.mark.parametrize(
    ("z", "text"),
    [
        (2.123, "2.1 sd above"),
        (-0.5, "0.5 sd below"),
        (0.0, "0 sd above"),
        (-math.inf, "infinitely many sd below"),
        (math.nan, "an undefined number of sd from"),
    ],
)
def test_positions_in_words(z, text):
    assert position(z) == text
