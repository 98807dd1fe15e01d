"""All checks, one after the other, and a report of their findings."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from .. import device
from ..files import finite
from . import checks, speed
from .finding import Finding

CHECKS: dict[str, Callable[[Path], Finding]] = {
    "matrix products in float32 against float64": checks.products,
    "logits against a NumPy reference": checks.logits,
    "gradients against differences of the reference": checks.gradient,
    "compiled step against the plain one": checks.compiled_step,
    "dropout in the compiled step": checks.compiled_dropout,
    "fused attention against the plain one": checks.attention,
    "fused loss against the plain one": checks.loss,
    "save and exact resume": checks.resume,
    "cached generation against one pass": checks.cached,
    "batched generation against alone": checks.batched,
    "training speed": speed.training,
    "decoding speed": speed.decoding,
    "peak memory": speed.memory,
}


def facts() -> dict:
    """The machine and the versions that the checks run with."""
    return {
        "machine": device.facts(),
        "versions": device.versions("mlx-metal", "mlx-cpu", "mlx-cuda-12", "mlx-cuda-13", "scipy-openblas32"),
    }


def examine(tell: Callable[[str, Finding, float], None]) -> list[dict]:
    """Run all checks in a temporary folder and return their findings for a report.

    After each check `tell` is called with its name, its finding and its seconds. A check that raises is not ok; the
    others still run.
    """
    results = []
    with tempfile.TemporaryDirectory(prefix="gpt2_mlx_doctor_", ignore_cleanup_errors=True) as folder:
        for name, check in CHECKS.items():
            began = time.perf_counter()
            finding = _run(check, Path(folder))
            seconds = time.perf_counter() - began
            tell(name, finding, seconds)
            numbers = {key: finite(number) for key, number in {"seconds": round(seconds, 3), **finding.numbers}.items()}
            results.append({"check": name, "ok": finding.ok, "text": finding.text, **numbers})
    return results


def _run(check: Callable[[Path], Finding], folder: Path) -> Finding:
    try:
        return check(folder)
    except Exception as error:
        return Finding(False, f"{type(error).__name__}: {' '.join(str(error).split())}")
