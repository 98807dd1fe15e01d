"""Linux CPU only: put OpenBLAS in front of the reference BLAS that MLX's wheel carries.

MLX finds `cblas_sgemm` through the dynamic linker, which asks the global scope first. The wheel `scipy-openblas32`
carries OpenBLAS under names that begin with `scipy_`, so `cblas.cpp`, compiled by the C++ compiler that `mx.compile`
needs on the CPU anyhow, gives it the plain name, and multiplies few rows itself. Float32 matrix products run 15 to 30
times faster for it. macOS has Accelerate and needs none of this.
"""

import ctypes
import importlib.util
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

_SOURCE = Path(__file__).with_name("cblas.cpp")

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
        _load_cblas(compiler)
        for function in (_openblas.scipy_openblas_get_config, _openblas.scipy_openblas_get_corename):
            function.restype = ctypes.c_char_p
        version = " ".join(_openblas.scipy_openblas_get_config().decode().split()[:2])
        _name = f"{version} ({_openblas.scipy_openblas_get_corename().decode()})"
    except (OSError, subprocess.SubprocessError) as error:
        _name = f"MLX's reference BLAS (slow: {str(error).splitlines()[0]})"


def _load_cblas(compiler: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        library = f"{folder}/libcblas.so"
        command = [compiler, "-O3", "-march=native", "-fopenmp", "-shared", "-fPIC", _SOURCE, "-o", library]
        subprocess.run(command, check=True, capture_output=True, timeout=60)
        ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)  # stays mapped when the file is gone


def name() -> str:
    """Which BLAS serves the CPU's float32 matrix products, for a run's log."""
    return _name


def set_threads(n: int) -> None:
    """How many threads one matrix product may use; does nothing where OpenBLAS is not loaded."""
    if _openblas is not None:
        _openblas.scipy_openblas_set_num_threads(n)
