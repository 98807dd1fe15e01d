"""Linux CPU only: put OpenBLAS in front of the reference BLAS that MLX's wheel carries.

MLX finds `cblas_sgemm` through the dynamic linker, which asks the global scope first. The wheel `scipy-openblas32`
carries OpenBLAS under names that begin with `scipy_`, so `cblas.cpp`, compiled by the C++ compiler that `mx.compile`
needs on the CPU anyhow, gives it the plain name, and multiplies up to 512 rows itself. Float32 matrix products run 15
to 30 times faster for it. macOS has Accelerate and needs none of this.

The environment variable GPT2_MLX_BLAS chooses: `auto` is all of this, `openblas` leaves few rows to OpenBLAS too, `off`
leaves MLX its own BLAS.
"""

import ctypes
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

_MODES = ("auto", "openblas", "off")
SOURCE = Path(__file__).with_name("cblas.cpp")
V2 = {"cx16", "lahf_lm", "popcnt", "sse4_1", "sse4_2", "ssse3"}
V3 = V2 | {"abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "xsave"}
V4 = V3 | {"avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl"}

_openblas = _cblas = None
_name = "not looked for yet"


def preload() -> None:
    """Load OpenBLAS into the global scope. Must run before `mlx.core` is imported; without the means it does nothing.

    `name` tells what came of it. A wrong GPT2_MLX_BLAS is taken for `auto` until `check` tells.
    """
    global _name
    mode = os.environ.get("GPT2_MLX_BLAS")
    if sys.platform != "linux":
        _name = "Accelerate" if sys.platform == "darwin" else "MLX's own"
    elif mode == "off":
        _name = "MLX's own (GPT2_MLX_BLAS=off)"
    else:
        try:
            _name = _load(own_kernel=mode != "openblas")
        except (OSError, subprocess.SubprocessError) as error:
            _name = f"MLX's reference BLAS (slow: {_in_one_line(error)})"


def check() -> None:
    """Tell a wrong GPT2_MLX_BLAS, where a door can print it in one line.

    Raises:
        ValueError: it is none of those allowed.
    """
    mode = os.environ.get("GPT2_MLX_BLAS", "auto")
    if mode not in _MODES:
        raise ValueError(f"GPT2_MLX_BLAS is {mode!r}; allowed: {', '.join(_MODES)}")


def name(called: bool) -> str:
    """Which BLAS multiplies float32 matrices on the CPU; `called`: `products` has counted one that MLX had to do."""
    if _cblas and not called:
        return "MLX's reference BLAS (slow: OpenBLAS is loaded, but MLX does not call it)"
    return _name


def products() -> int:
    """How many products MLX has left to what `preload` loaded."""
    return _cblas.gpt2_mlx_products() if _cblas else 0


def alike_rows() -> int:
    """Up to how many rows a float32 product gives each the bits that it has alone; 0 without a kernel of our own."""
    return _most_rows().value if products() else 0


def leave_to_openblas(more_than: int) -> None:
    """Leave products of more than so many rows to OpenBLAS, which is faster, where their bits may follow the number."""
    if _cblas:
        _most_rows().value = min(_most_rows().value, more_than)


def set_threads(n: int) -> None:
    """How many threads one matrix product may use; does nothing where OpenBLAS is not loaded."""
    if _openblas:
        _openblas.scipy_openblas_set_num_threads(n)


def _most_rows() -> ctypes.c_int:
    """Up to how many rows the kernel of our own multiplies."""
    return ctypes.c_int.in_dll(_cblas, "gpt2_mlx_most_rows")


def _load(own_kernel: bool) -> str:
    """Load OpenBLAS and `cblas.cpp`, and say what they are."""
    global _openblas, _cblas
    if "mlx.core" in sys.modules:
        raise OSError("mlx was imported before gpt2_mlx")
    spec = importlib.util.find_spec("scipy_openblas32")
    if spec is None:
        raise OSError("the package scipy-openblas32 is not installed")
    compiler = shutil.which("g++")
    if compiler is None:
        raise OSError("g++ is not installed")
    _openblas = ctypes.CDLL(str(Path(spec.origin).parent / "lib" / "libscipy_openblas.so"), mode=ctypes.RTLD_GLOBAL)
    config, core = _openblas.scipy_openblas_get_config, _openblas.scipy_openblas_get_corename
    config.restype = core.restype = ctypes.c_char_p
    openblas = f"{' '.join(config().decode().split()[:2])} ({core().decode()})"
    with Path("/proc/cpuinfo").open() as lines:  # a line at a time: it is long where there are many cores
        flags = next((line for line in lines if line.startswith("flags")), "").split()
    level = level_of(os.uname().machine, set(flags))
    _cblas = _load_cblas(compiler, level)
    _cblas.gpt2_mlx_products.restype = ctypes.c_long
    if own_kernel:
        return f"{openblas}, own kernel for few rows ({level})"
    _most_rows().value = 0
    return openblas


def level_of(machine: str, flags: set[str]) -> str:
    """GCC's name for the instructions that an x86 CPU of these flags has; for another machine, its own name."""
    if machine != "x86_64":
        return machine
    return "x86-64-v4" if flags >= V4 else "x86-64-v3" if flags >= V3 else "x86-64"


def _load_cblas(compiler: str, level: str) -> ctypes.CDLL:
    """Load `cblas.cpp` from the user's cache folder, or compiled anew where that cannot be."""
    from platformdirs import user_cache_path  # here, for nothing else needs it

    march = [f"-march={level}"] if level.startswith("x86") else []  # others have GCC's default, on aarch64 armv8-a
    command = [compiler, "-O3", *march, "-fopenmp", "-shared", "-fPIC", str(SOURCE)]
    key = hashlib.sha256(SOURCE.read_bytes() + _run(compiler, "--version") + " ".join(command[1:-1]).encode())
    file = f"cblas-{level}-{key.hexdigest()[:16]}.so"
    try:
        return _open(_private(user_cache_path("gpt2_mlx")) / file, command)
    except (OSError, RuntimeError, subprocess.SubprocessError):  # no home, not ours alone, read-only, full, noexec
        with tempfile.TemporaryDirectory() as folder:
            return _open(Path(folder) / file, command)  # stays mapped when the file is gone


def _private(folder: Path) -> Path:
    """A folder, made where it is missing; raises an OSError where another user could put a library into it."""
    if not folder.is_absolute():  # a user without a home, as older versions of platformdirs have it
        raise FileNotFoundError(folder)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.stat()
    if status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise PermissionError(folder)
    return folder


def _open(library: Path, command: list[str]) -> ctypes.CDLL:
    """Load a library; where it is not there whole, have it compiled first. Its end is a digest of the rest."""
    content = library.read_bytes() if library.exists() else b""
    if content[-32:] != hashlib.sha256(content[:-32]).digest():
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            aside = Path(folder) / library.name
            _run(*command, "-o", str(aside))
            aside.chmod(0o600)
            with aside.open("ab") as end:
                end.write(hashlib.sha256(aside.read_bytes()).digest())
            aside.replace(library)
    return ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)


def _run(*command: str) -> bytes:
    english = {**os.environ, "LC_ALL": "C"}
    return subprocess.run(command, check=True, capture_output=True, timeout=60, env=english).stdout


def _in_one_line(error: Exception) -> str:
    """What went wrong; of a compiler's message the first line that tells."""
    lines = (getattr(error, "stderr", None) or b"").decode(errors="replace").splitlines() or [str(error)]
    return next((line for line in lines if "error" in line.lower() or "cannot" in line), lines[0])
