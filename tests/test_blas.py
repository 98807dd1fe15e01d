import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from gpt2_mlx import blas, device, inventory

ROOT = Path(__file__).parents[1]
COMPILER = shutil.which("g++")
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="g++ is not installed")
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="macOS has Accelerate")
own_kernel = pytest.mark.skipif("own kernel" not in blas.name(called=True), reason="MLX does not have our kernel here")

LEVELS = ["x86-64", "x86-64-v3", "x86-64-v4"]
TELL = "from gpt2_mlx import device, inventory; device.select('cpu'); print(inventory.description())"
ALONE = f"""
import importlib.util
spec = importlib.util.spec_from_file_location("blas", "{ROOT}/gpt2_mlx/blas.py")
blas = importlib.util.module_from_spec(spec)
spec.loader.exec_module(blas)
"""
PRODUCTS = """
import mlx.core as mx, numpy as np
random = np.random.RandomState(0)
for m, k, n in ((1, 70, 256), (3, 300, 256), (9, 300, 256), (32, 70, 51), (40, 70, 51)):
    a, b = (random.standard_normal(shape).astype(np.float32) for shape in ((m, k), (k, n)))
    for right in (mx.array(b), mx.array(b.T.copy()).T):
        rows = np.array(mx.array(a) @ right)
        assert np.abs(rows - a.astype(np.float64) @ b).max() < 1e-4, (m, k, n)
        assert (np.array(mx.array(a[:1]) @ right) == rows[:1]).all(), (m, k, n)
"""


def cpu_level() -> str:
    flags = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")), "")
    return blas.level_of(platform.machine(), set(flags.split()))


class Machine:
    """Where processes of ours start: with a cache folder of its own, and a compiler that notes when it compiles."""

    def __init__(self, folder: Path):
        self.folder, self.home, self.bin, self.log = folder, folder / "home", folder / "bin", folder / "compiled"
        self.cache = self.home / "gpt2_mlx"
        self.bin.mkdir()
        self.compiler(f'exec {COMPILER} "$@"')

    def compiler(self, compile: str, version: str = f"exec {COMPILER} --version") -> None:
        """Put a g++ in front of the machine's own: what it does, in the language of the shell."""
        script = f'#!/bin/sh\nif [ "$1" = --version ]; then {version}; fi\necho >> {self.log}\n{compile}\n'
        (self.bin / "g++").write_text(script)
        (self.bin / "g++").chmod(0o755)

    def start(self, code: str, **environment: str) -> subprocess.Popen:
        places = {"PYTHONPATH": ROOT, "XDG_CACHE_HOME": self.home, "PATH": f"{self.bin}:{os.environ['PATH']}"}
        environment = {**os.environ, "GPT2_MLX_BLAS": "auto", **places, **environment}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen([sys.executable, "-c", code], cwd=self.folder, env=environment, **pipes)

    def run(self, code: str, **environment: str) -> str:
        """What a process prints that ends well and complains of nothing."""
        process = self.start(code, **environment)
        printed, complaints = process.communicate()
        assert (process.returncode, complaints) == (0, "")
        return printed

    def compiled(self) -> int:
        return len(self.log.read_text().splitlines()) if self.log.exists() else 0

    def files(self) -> list[Path]:
        return sorted(self.cache.iterdir()) if self.cache.exists() else []


@pytest.fixture
def machine(tmp_path) -> Machine:
    return Machine(tmp_path)


@linux_only
@needs_compiler
def test_importing_the_package_alone_binds_mlx_to_openblas(machine):
    code = "import gpt2_mlx, mlx.core as mx; mx.eval(mx.ones((64, 64)) @ mx.ones((64, 64)))"
    bindings = machine.start(code, LD_DEBUG="bindings").communicate()[1].splitlines()
    bound = [line for line in bindings if "libmlx.so" in line.split(" to ")[0] and "`cblas_sgemm'" in line]
    assert bound
    assert "/cblas-" in bound[-1]


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


@own_kernel
@pytest.mark.parametrize("n", [1, 51, 256])
@pytest.mark.parametrize("k", [5, 64, 777, 2100])
@pytest.mark.parametrize("transposed", [False, True])
def test_rows_are_right_and_have_the_same_bits_in_any_company(k, n, transposed):
    random = np.random.RandomState(0)
    x, w, bias = (random.standard_normal(shape).astype(np.float32) for shape in ((512, k), (k, n), (n,)))
    weights = mx.array(w.T.copy()).T if transposed else mx.array(w)
    all_rows = np.array(mx.addmm(mx.array(bias), mx.array(x), weights))
    assert np.abs(all_rows - (x.astype(np.float64) @ w + bias)).max() < 1e-3
    for m in (1, 2, 3, 4, 7, 31, 65, 200):  # those of the end: they have other places in a tile than among all rows
        rows = np.array(mx.addmm(mx.array(bias), mx.array(x[-m:]), weights))
        assert (rows == all_rows[-m:]).all(), m


@own_kernel
def test_a_training_leaves_products_of_many_rows_to_openblas():
    assert blas.alike_rows() == 512
    device.streams(batch_size=2)
    a, b = mx.random.normal((33, 2100)), mx.random.normal((2100, 256))
    assert blas.alike_rows() == 32
    assert mx.all((a[:32] @ b)[:1] == a[:1] @ b)
    assert not mx.all((a @ b)[:1] == a[:1] @ b)  # OpenBLAS sums in another order


@own_kernel
def test_zeros_at_the_end_of_a_sum_over_rows_change_no_bits():
    """So attention may read on to where the longest row of a batch ends."""
    random = np.random.RandomState(0)
    p, values = (mx.array(random.standard_normal(shape).astype(np.float32)) for shape in ((5, 320), (320, 64)))
    p[:, 70:] = 0
    assert (np.array(p @ values) == np.array(p[:, :128] @ values[:128])).all()


@linux_only
@needs_compiler
@pytest.mark.parametrize("level", LEVELS)
def test_products_are_right_at_each_level_of_instructions_and_its_file_has_its_name(machine, level):
    if cpu_level() not in LEVELS[LEVELS.index(level) :]:
        pytest.skip("this CPU does not have it")
    machine.run(f"{ALONE}\nblas.level_of = lambda *_: '{level}'; blas.preload()\n{PRODUCTS}assert blas.products()")
    assert [file.name.rsplit("-", 1)[0] for file in machine.files()] == [f"cblas-{level}"]


def test_the_level_follows_from_the_flags_of_the_cpu():
    assert blas.level_of("x86_64", blas.V4 | {"sse2"}) == "x86-64-v4"
    assert blas.level_of("x86_64", blas.V4 - {"avx512vl"}) == "x86-64-v3"
    assert blas.level_of("x86_64", blas.V4 - {"fma"}) == "x86-64"
    assert blas.level_of("aarch64", {"asimd"}) == "aarch64"


@linux_only
@needs_compiler
def test_is_compiled_once(machine):
    first, second = machine.run(TELL), machine.run(TELL)
    assert first == second
    assert f", own kernel for few rows ({cpu_level()})" in first
    assert machine.compiled() == len(machine.files()) == 1


@linux_only
@needs_compiler
def test_is_compiled_anew_for_another_source_or_compiler(machine):
    machine.run(TELL)
    source = machine.folder / "cblas.cpp"
    source.write_text((ROOT / "gpt2_mlx" / "cblas.cpp").read_text() + "// more\n")
    machine.run(f"{ALONE}\nimport pathlib; blas.SOURCE = pathlib.Path('{source}'); blas.preload()")
    assert machine.compiled() == len(machine.files()) == 2
    machine.compiler(f'exec {COMPILER} "$@"', version="echo g++ 99.1; exit")
    machine.run(TELL)
    assert machine.compiled() == len(machine.files()) == 3


@linux_only
@needs_compiler
@pytest.mark.parametrize("damage", [lambda all: all[: len(all) // 2], lambda all: b"", lambda all: b"\0" + all[1:]])
def test_a_damaged_library_is_compiled_anew(machine, damage):
    machine.run(TELL)
    [library] = machine.files()
    library.write_bytes(damage(library.read_bytes()))
    assert "own kernel" in machine.run(TELL)
    assert machine.compiled() == 2
    machine.run(TELL)
    assert machine.compiled() == 2


@linux_only
@needs_compiler
def test_a_compiler_that_stops_half_way_leaves_nothing(machine):
    half = f'for last; do :; done; {COMPILER} "$@" && truncate -s 9000 "$last"; exit 1'  # its last word is the file
    machine.compiler(half)
    assert "reference BLAS (slow" in machine.run(TELL)
    assert not machine.files()


@linux_only
@needs_compiler
def test_two_processes_that_start_together_both_have_it(machine):
    """Each compiler writes half its library, and the rest when the other has done so too."""
    machine.compiler(
        f"""for last; do :; done; {COMPILER} "$@"
        cp "$last" "$last.all"; head -c 9000 "$last.all" > "$last"; echo >> {machine.bin}/half
        while [ $(wc -l < {machine.bin}/half) -lt 2 ]; do sleep 0.01; done
        tail -c +9001 "$last.all" >> "$last"; rm "$last.all" """
    )
    both = [machine.start(TELL), machine.start(TELL)]
    told = [process.communicate() for process in both]
    assert "own kernel" in told[0][0]
    assert told[0] == told[1]
    assert len(machine.files()) == 1
    machine.run(TELL)
    assert machine.compiled() == 2


@linux_only
@needs_compiler
@pytest.mark.parametrize(
    "prelude",
    [
        "import os; os.environ['XDG_CACHE_HOME'] = '/dev/null'",
        "import pathlib, platformdirs; platformdirs.user_cache_path = lambda name: pathlib.Path('~', name)",
        "import platformdirs\ndef no_home(name): raise RuntimeError(name)\nplatformdirs.user_cache_path = no_home",
    ],
)
def test_does_without_a_cache_folder(machine, prelude):
    assert "own kernel" in machine.run(f"{prelude}\n{TELL}")
    assert machine.compiled() == 1
    assert not (machine.folder / "~").exists()


@linux_only
@needs_compiler
def test_does_without_a_cache_folder_that_is_full(machine):
    full = "echo No space left on device >&2; exit 1"
    machine.compiler(f'case "$*" in *{machine.cache}*) {full} ;; esac; exec {COMPILER} "$@"')
    assert "own kernel" in machine.run(TELL)
    assert not machine.files()


@linux_only
@needs_compiler
def test_loads_nothing_from_a_folder_that_others_may_write_to(machine):
    machine.run(TELL)
    assert [path.stat().st_mode & 0o777 for path in (machine.cache, *machine.files())] == [0o700, 0o600]
    machine.cache.chmod(0o770)
    assert "own kernel" in machine.run(TELL)
    assert machine.compiled() == 2
    assert len(machine.files()) == 1


@linux_only
@needs_compiler
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give a folder away")
def test_loads_nothing_from_a_folder_of_another_user(machine):
    machine.run(TELL)
    os.chown(machine.cache, 12345, -1)
    assert "own kernel" in machine.run(TELL)
    assert machine.compiled() == 2


@linux_only
@needs_compiler
def test_the_mode_decides_who_multiplies(machine):
    tell = (
        "; from gpt2_mlx import blas; print('libscipy_openblas.so' in open('/proc/self/maps').read(), blas.products())"
    )
    told = machine.run(TELL + tell, GPT2_MLX_BLAS="off")
    assert "cores, MLX's own (GPT2_MLX_BLAS=off)" in told
    assert "False 0" in told
    assert machine.compiled() == 0
    told = machine.run(TELL + tell, GPT2_MLX_BLAS="openblas")
    assert "OpenBLAS" in told
    assert "kernel" not in told
    assert "True 1" in told


@linux_only
@needs_compiler
def test_openblas_alone_multiplies_few_rows_as_openblas_does(machine):
    code = """
import gpt2_mlx.blas as blas, ctypes, numpy as np, mlx.core as mx
a, b = np.random.RandomState(0).standard_normal((2, 256, 256)).astype(np.float32)
pointer, one = lambda x: x.ctypes.data_as(ctypes.c_void_p), ctypes.c_float(1)
plain = np.zeros((3, 256), np.float32)
ctypes.CDLL(None).scipy_cblas_sgemm(101, 111, 112, 3, 256, 256, one, pointer(a), 256, pointer(b), 256,
                                 ctypes.c_float(0), pointer(plain), 256)
print((np.array(mx.array(a[:3]) @ mx.array(b).T) == plain).all())
"""
    assert machine.run(code, GPT2_MLX_BLAS="openblas") == "True\n"
    assert machine.run(code) == "False\n"


@pytest.mark.parametrize("value", ["mkl", ""])
@pytest.mark.parametrize("door", ["device.select()", "load('x')"])
def test_a_wrong_mode_is_a_mistake_that_shows_the_value(machine, value, door):
    code = f"import gpt2_mlx\ntry:\n    gpt2_mlx.{door}\nexcept ValueError as error:\n    print(error)"
    assert machine.run(code, GPT2_MLX_BLAS=value) == f"GPT2_MLX_BLAS is '{value}'; allowed: auto, openblas, off\n"


def test_a_door_tells_a_wrong_mode_in_one_line(tmp_path):
    command, environment = [sys.executable, ROOT / "train.py"], {**os.environ, "GPT2_MLX_BLAS": "mkl"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 2
    assert done.stderr == "train.py: error: GPT2_MLX_BLAS is 'mkl'; allowed: auto, openblas, off\n"


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
def test_goes_on_without_and_says_so(machine, prelude, reason):
    told = machine.run(f"{prelude}\n{TELL}")
    assert "reference BLAS (slow" in told
    assert reason in told


@linux_only
@needs_compiler
def test_tells_what_the_compiler_says(machine):
    machine.compiler(f'exec {COMPILER} "$@" -fno-such-thing')
    told = machine.run(TELL, LC_ALL="de_DE.UTF-8")
    assert "reference BLAS (slow: g++: error: unrecognized command-line option '-fno-such-thing'" in told


@linux_only
@needs_compiler
def test_says_so_where_mlx_does_not_call_what_was_loaded(machine):
    bound_early = "import ctypes, importlib.util as util, pathlib\n"
    bound_early += "[folder] = util.find_spec('mlx').submodule_search_locations\n"
    bound_early += "ctypes.CDLL(str(pathlib.Path(folder) / 'lib' / 'libmlx.so'), mode=ctypes.RTLD_GLOBAL | 2)\n"
    assert "OpenBLAS is loaded, but MLX does not call it" in machine.run(bound_early + TELL)


def test_nothing_is_asked_of_a_compiler_where_it_is_not_needed(monkeypatch):
    def run(*_, **__):
        raise AssertionError("a compiler is run")

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(shutil, "which", run)
    with monkeypatch.context() as mac:
        mac.setattr(sys, "platform", "darwin")
        assert inventory.compiler() == "not looked for"
    monkeypatch.setattr(device, "on_gpu", lambda: True)
    assert inventory.compiler() == "not looked for"
