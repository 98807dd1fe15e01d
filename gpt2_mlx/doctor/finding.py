"""What a check found."""

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Finding:
    """Whether all is as it should be, in words with a figure, and in numbers for a report."""

    ok: bool
    text: str
    numbers: dict[str, float] = field(default_factory=dict)


def within(error: float, limit: float, text: str = "relative error") -> Finding:
    """A finding that is ok where an error is a number of at most `limit`."""
    error, limit = float(error), float(limit)
    return Finding(error <= limit, f"{text} {error:.1e}, at most {limit:.1e}", {"error": error, "limit": limit})


def difference(got, expected) -> float:
    """The largest distance of two arrays' elements, relative to the largest that is expected."""
    got, expected = np.array(got, np.float64), np.array(expected, np.float64)
    return float(np.abs(got - expected).max() / np.abs(expected).max())
