"""Waiting, on machines of any speed."""

import time
from collections.abc import Callable

PATIENCE = 120.0  # seconds that anything may take before it counts as never


def eventually(claim: Callable[[], object]) -> None:
    """Wait until a claim holds."""
    deadline = time.monotonic() + PATIENCE
    while not claim():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.005)
