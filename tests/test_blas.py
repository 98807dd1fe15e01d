import os
import shutil
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from gpt2_mlx import blas

ROOT = Path(__file__).parents[1]
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="macOS has Accelerate")


def python(code: str, **environment) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env={**os.environ, **environment}
    )


@linux_only
@needs_compiler
def test_importing_the_package_alone_binds_mlx_to_openblas():
    code = "import gpt2_mlx, mlx.core as mx; mx.eval(mx.ones((64, 64)) @ mx.ones((64, 64)))"
    bindings = python(code, LD_DEBUG="bindings").stderr.splitlines()
    bound = [line for line in bindings if "libmlx.so" in line.split(" to ")[0] and "`cblas_sgemm'" in line]
    assert bound
    assert "libcblas.so" in bound[-1]
    assert blas.name().startswith("OpenBLAS")


@linux_only
def test_products_are_right_in_all_layouts():
    random = np.random.RandomState(0)
    a, b = (random.standard_normal(shape).astype(np.float32) for shape in ((70, 33), (33, 51)))
    x, y = mx.array(a), mx.array(b)
    expected = a.astype(np.float64) @ b
    assert np.abs(np.array(x @ y) - expected).max() < 1e-4
    assert np.abs(np.array(mx.array(a.T.copy()).T @ mx.array(b.T.copy()).T) - expected).max() < 1e-4
    c = mx.ones((70, 51))
    assert np.abs(np.array(mx.addmm(c, x, y, alpha=2.0, beta=3.0)) - (2 * expected + 3)).max() < 1e-4


@linux_only
@needs_compiler
@pytest.mark.parametrize("n", [1, 51, 256])
@pytest.mark.parametrize("k", [5, 64, 777])
@pytest.mark.parametrize("transposed", [False, True])
def test_few_rows_are_right_and_have_the_same_bits_in_any_company(k, n, transposed):
    random = np.random.RandomState(0)
    x, w, bias = (random.standard_normal(shape).astype(np.float32) for shape in ((32, k), (k, n), (n,)))
    weights = mx.array(w.T.copy()).T if transposed else mx.array(w)
    all_rows = np.array(mx.addmm(mx.array(bias), mx.array(x), weights))
    assert np.abs(all_rows - (x.astype(np.float64) @ w + bias)).max() < 1e-4
    for m in (1, 2, 3, 8, 31):
        rows = np.array(mx.addmm(mx.array(bias), mx.array(x[:m]), weights))
        assert np.abs(rows - all_rows[:m]).max() < 1e-4
        if transposed or n == 256:  # other shapes are OpenBLAS's
            assert (rows == all_rows[:m]).all(), m


@linux_only
@needs_compiler
@pytest.mark.parametrize(
    ("prelude", "reason"),
    [
        ("import sys; sys.modules['scipy_openblas32'] = None", "scipy-openblas32 is not installed"),
        ("import mlx.core", "mlx was imported before gpt2_mlx"),
        ("import os; os.environ['PATH'] = ''", "g++ is not installed"),
    ],
)
def test_goes_on_without_and_says_so(prelude, reason):
    product = "import mlx.core as mx; mx.eval(mx.ones((2, 2)) @ mx.ones((2, 2)))"
    done = python(f"{prelude}\nimport gpt2_mlx.blas; {product}; print(gpt2_mlx.blas.name())")
    assert done.returncode == 0, done.stderr
    assert "reference BLAS (slow" in done.stdout
    assert reason in done.stdout
