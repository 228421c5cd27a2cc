"""Numbers in sentences."""

from __future__ import annotations

import math


def plural(noun: str) -> str:
    """More than one of what an English noun stands for: genes, studies."""
    if noun.endswith("y") and noun[-2:-1] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + "s"


def counted(n: int, noun: str) -> str:
    """How many, in words: "1 gene", "2 genes"."""
    return f"{n} {noun if n == 1 else plural(noun)}"


def position(z: float) -> str:
    """Where a value lies, to be followed by what it is compared with: "2.1 sd above"."""
    if math.isnan(z):
        return "an undefined number of sd from"
    size = "infinitely many" if math.isinf(z) else f"{abs(z):.2g}"
    return f"{size} sd {'above' if z >= 0 else 'below'}"
