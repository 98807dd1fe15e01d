"""The finding of a check."""

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Finding:
    """Whether a check found all in order, a text that shows the values, and the numbers for a report."""

    ok: bool
    text: str
    numbers: dict[str, float] = field(default_factory=dict)


def within(error: float, limit: float, text: str = "relative error") -> Finding:
    """A finding that is ok where the error is at most `limit`; it is not ok where the error is nan."""
    error, limit = float(error), float(limit)
    return Finding(error <= limit, f"{text} {error:.1e}, at most {limit:.1e}", {"error": error, "limit": limit})


def worst(errors: dict[str, tuple[float, float]]) -> Finding:
    """The finding of the case, among those of errors with their limits, that comes closest to its limit or is nan."""

    def share(case: str) -> float:
        error, limit = errors[case]
        return error / limit if error == error else np.inf

    case = max(errors, key=share)
    found, wrong = within(*errors[case]), sum(not within(*error).ok for error in errors.values())
    where = f"{len(errors)} cases" + (f", {wrong} of which are wrong" if wrong else "")
    return Finding(found.ok, f"{found.text}, in the worst of {where}: {case}", found.numbers)


def difference(got, expected) -> float:
    """The largest difference of two arrays' elements, divided by the largest expected element."""
    got, expected = np.array(got, np.float64), np.array(expected, np.float64)
    return float(np.abs(got - expected).max() / np.abs(expected).max())
