"""Linux CPU only: put OpenBLAS in front of the reference BLAS that MLX's wheel carries.

MLX finds `cblas_sgemm` through the dynamic linker, which asks the global scope first. The wheel `scipy-openblas32`
carries OpenBLAS under names that begin with `scipy_`, so a forwarder of one function, made by the C++ compiler
that `mx.compile` needs on the CPU anyhow, gives it the plain name. Float32 matrix products run 15 to 30 times
faster for it. macOS has Accelerate and needs none of this.
"""

import ctypes
import importlib.util
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

_FORWARDER = """
extern "C" {
void scipy_cblas_sgemm(int, int, int, int, int, int, float, const float*, int, const float*, int, float, float*, int);
void cblas_sgemm(int order, int trans_a, int trans_b, int m, int n, int k, float alpha, const float* a, int lda,
                 const float* b, int ldb, float beta, float* c, int ldc) {
  scipy_cblas_sgemm(order, trans_a, trans_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}
}
"""

_openblas = None
_name = "not looked for yet"


def preload() -> None:
    """Load OpenBLAS into the global scope. Must run before `mlx.core` is imported; without the means it does nothing.

    `name` tells what came of it.
    """
    global _openblas, _name
    if sys.platform != "linux":
        _name = "Accelerate" if sys.platform == "darwin" else "MLX's own"
        return
    if "mlx.core" in sys.modules:
        _name = "MLX's reference BLAS (slow: mlx was imported before gpt2_mlx)"
        return
    spec = importlib.util.find_spec("scipy_openblas32")
    if spec is None:
        _name = "MLX's reference BLAS (slow: the package scipy-openblas32 is not installed)"
        return
    compiler = shutil.which("g++")
    if compiler is None:
        _name = "MLX's reference BLAS (slow: g++ is not installed)"
        return
    try:
        _openblas = ctypes.CDLL(str(Path(spec.origin).parent / "lib" / "libscipy_openblas.so"), mode=ctypes.RTLD_GLOBAL)
        _load_forwarder(compiler)
        for function in (_openblas.scipy_openblas_get_config, _openblas.scipy_openblas_get_corename):
            function.restype = ctypes.c_char_p
        version = " ".join(_openblas.scipy_openblas_get_config().decode().split()[:2])
        _name = f"{version} ({_openblas.scipy_openblas_get_corename().decode()})"
    except (OSError, subprocess.SubprocessError) as error:
        _name = f"MLX's reference BLAS (slow: {str(error).splitlines()[0]})"


def _load_forwarder(compiler: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        library = f"{folder}/libcblas_forwarder.so"
        subprocess.run(
            [compiler, "-O2", "-shared", "-fPIC", "-x", "c++", "-", "-o", library],
            input=_FORWARDER,
            text=True,
            check=True,
            capture_output=True,
            timeout=60,
        )
        ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)  # stays mapped when the file is gone


def name() -> str:
    """Which BLAS serves the CPU's float32 matrix products, for a run's log."""
    return _name


def set_threads(n: int) -> None:
    """How many threads one matrix product may use; does nothing where OpenBLAS is not loaded."""
    if _openblas is not None:
        _openblas.scipy_openblas_set_num_threads(n)
