"""What machine this is, in words and numbers, for logs and reports."""

import importlib.metadata
import platform
import shutil
import subprocess

import mlx.core as mx

from . import blas, device


def description() -> str:
    """The device in words, for a run's log: "Apple M3 Max, GPU" or "AMD EPYC, 2 CPU cores, OpenBLAS 0.3.34 (Zen)"."""
    name = mx.device_info().get("device_name", platform.machine())
    return f"{name}, GPU" if device.on_gpu() else f"{name}, {device.cpu_count()} CPU cores, {_blas()}"


def chip() -> str | None:
    """The GPU's name, such as "Apple M3 Max"; None on a CPU."""
    return mx.device_info().get("device_name") if device.on_gpu() else None


def facts() -> dict[str, str | float]:
    """What machine this is, for a report."""
    return {
        "device": f"{mx.device_info().get('device_name', platform.machine())}, {'GPU' if device.on_gpu() else 'CPU'}",
        "system": platform.platform(),
        "cpu_cores": device.cpu_count(),
        "memory_gb": round(device.total_memory() / 1e9, 1),
        "blas": "not used by a GPU" if device.on_gpu() else _blas(),
        "compiler": compiler(),
    }


def limits() -> dict[str, str | float]:
    """The limits of memory, for a report: MLX's own, and those that a GPU's driver tells."""
    info, untold = mx.device_info(), "not told" if device.on_gpu() else "none on a CPU"

    def gb(name: str) -> str | float:
        return round(info[name] / 1e9, 1) if name in info else untold

    return {
        "architecture": info.get("architecture", "not told"),
        "memory_limit_gb": round(mx.get_memory_limit() / 1e9, 1),
        "working_set_gb": gb("max_recommended_working_set_size"),  # what a Mac's GPU may keep resident
        "largest_buffer_gb": gb("max_buffer_length"),
        "most_buffers": info.get("resource_limit", untold),
    }


def _blas() -> str:
    """What multiplies on this CPU, tried with one product."""
    before = blas.products()
    mx.eval(mx.ones((2, 2)) @ mx.ones((2, 2)))
    return blas.name(called=blas.products() > before)


def compiler() -> str:
    """The C++ compiler that mx.compile fuses with on Linux's CPU; a Mac without developer tools would open a dialog."""
    if not device.is_scalar():
        return "not looked for"
    path = shutil.which("g++")
    if path is None:
        return "none (without g++ mx.compile fuses nothing on a CPU)"
    try:
        return subprocess.run([path, "--version"], capture_output=True, text=True, timeout=20).stdout.splitlines()[0]
    except (OSError, subprocess.SubprocessError, IndexError) as error:
        return f"{path}, which does not run: {error}"


def versions(*more: str) -> dict[str, str]:
    """The versions of Python and of the packages that results follow from, and of `more` that are there."""
    found = {"python": platform.python_version()}
    for name in ("mlx", "numpy", "tiktoken", *more):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
