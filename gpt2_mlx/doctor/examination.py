"""All checks, one after the other, and a report of their findings."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from ..files import finite
from . import attention, draws, footprint, machine, mathematics, speed, steps, storage, texts
from .finding import Finding

CHECKS: dict[str, Callable[[Path], Finding]] = {
    "versions of MLX": machine.versions,
    "matrix products in float32 against float64": mathematics.products,
    "products with weights in 8 and 4 bits": mathematics.quantized,
    "logits against a NumPy reference": mathematics.logits,
    "gradients against differences of the reference": mathematics.gradient,
    "fused loss against the plain one": mathematics.loss,
    "fused attention against the plain one": attention.fused,
    "attention to a cache against NumPy": attention.cached,
    "compiled step against the plain one": steps.compiled,
    "dropout in the compiled step": steps.dropout,
    "step in bfloat16 against float32": steps.in_bfloat16,
    "step in float16 against float32": steps.in_float16,
    "step with --grad-checkpoint against without": steps.recomputed,
    "step on windows of 8 tokens": steps.short_windows,
    "step of Muon against NumPy": steps.muon,
    "save and exact resume": steps.resume,
    "draws from the whole vocabulary against NumPy": draws.draws,
    "cached generation against one pass": texts.cached,
    "batched generation against alone": texts.batched,
    "generation in a second thread": texts.threaded,
    "generation in the server's process": texts.served,
    "memory of a step against the prediction": footprint.step,
    "memory of a decoding step": footprint.cache,
    "training speed": speed.training,
    "decoding speed": speed.decoding,
    "peak memory": footprint.peak,
}
ON_DISK = "disk of the runs"  # the one check that is given their folder


def examine(tell: Callable[[str, Finding, float], None], out: Path) -> list[dict]:
    """Run all checks in a temporary folder, then that of the folder `out`, and return their findings for a report.

    After each check `tell` is called with its name, its finding and its seconds. A check that raises is not ok; the
    others still run.
    """
    results = []
    with tempfile.TemporaryDirectory(prefix="gpt2_mlx_doctor_", ignore_cleanup_errors=True) as folder:
        places = {check: Path(folder) for check in CHECKS.values()} | {storage.disk: out}
        for name, check in {**CHECKS, ON_DISK: storage.disk}.items():
            began = time.perf_counter()
            finding = _run(check, places[check])
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
