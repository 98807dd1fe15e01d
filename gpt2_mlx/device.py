"""Which device this machine offers and what follows from it."""

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import mlx.core as mx

from . import blas


def select(name: str = "auto") -> str:
    """Make a device MLX's default and return its name, "gpu" or "cpu". Call it before anything is computed.

    Args:
        name: "auto" takes the GPU where there is one.

    Raises:
        ValueError: "gpu" where there is none, or a wrong GPT2_MLX_BLAS.
    """
    blas.check()
    chosen = choice(name)
    mx.set_default_device(mx.gpu if chosen == "gpu" else mx.cpu)
    if chosen == "cpu" and sys.platform == "linux":
        _tune_linux_cpu()
    if chosen == "gpu" and sys.platform == "darwin":  # the system shares it; MLX's own limit is half as large again
        mx.set_memory_limit(memory())
    return chosen


def choice(name: str) -> str:
    """What `select` makes of a device's name. Raises a ValueError as that does."""
    has_gpu = mx.is_available(mx.gpu)
    if name == "gpu" and not has_gpu:
        raise ValueError("--device is gpu, but MLX finds no GPU here; allowed on this machine: auto, cpu")
    return "gpu" if has_gpu and name != "cpu" else "cpu"


def limit_cache() -> None:
    """Have a service on a Mac's GPU give most of the memory back that it does not use; a training takes it anew."""
    if on_gpu() and sys.platform == "darwin":
        mx.set_cache_limit(memory() // 4)


def dtype(name: str) -> str:
    """The type to generate in: "auto" is float16 on a GPU, where reading the weights takes the time, else float32.

    bfloat16 would round logits of 64 to 128, which GPT-2 has, to halves; float16 rounds them to sixteenths.
    """
    return dtype_on("gpu" if on_gpu() else "cpu", name)


def dtype_on(device: str, name: str) -> str:
    """The same for a device, "gpu" or "cpu", that another process computes on."""
    return name if name != "auto" else "float16" if device == "gpu" else "float32"


def _tune_linux_cpu() -> None:
    # MLX hands out work in graph order, ten tasks at a time: breadth first, or streams wait for each other.
    os.environ.setdefault("MLX_BFS_MAX_WIDTH", "400")
    # Arrays come and go by the tens of megabytes; keep them instead of faulting their pages in anew (-20 % time).
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # glibc
        m_trim_threshold, m_mmap_max, m_arena_max = -1, -4, -8
        libc.mallopt(m_trim_threshold, 2**31 - 1)
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_arena_max, 1)


def has_posix() -> bool:
    """Whether this is macOS or Linux: asyncio can wait on a pipe to another process."""
    return os.name == "posix"


def on_gpu() -> bool:
    return mx.default_device().type == mx.DeviceType.gpu


def is_scalar() -> bool:
    """Whether MLX's elementwise kernels take an element at a time, as on Linux's CPU: 13 ns for exp, 18 ns for tanh."""
    return sys.platform == "linux" and not on_gpu()


def cpu_count() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def streams(batch_size: int) -> list[mx.Stream]:
    """The streams to split a batch over, so that every core works: on a GPU one.

    A CPU stream is one thread, and MLX's elementwise kernels use one thread each; where the batch cannot be split
    over the cores, the matrix products use what is left. From here on OpenBLAS multiplies all but a few rows: what is
    trained has its bits by its own shapes.
    """
    if on_gpu():
        return [mx.default_stream(mx.default_device())]
    n = n_streams(batch_size)
    blas.set_threads(max(1, cpu_count() // n))
    blas.leave_to_openblas(more_than=32)
    return [mx.new_stream(mx.cpu) for _ in range(n)]


def streams_of_cores() -> list[mx.Stream]:
    """A stream for each core, for elementwise work alone; on a GPU one."""
    return [mx.default_stream(mx.default_device())] if on_gpu() else [mx.new_stream(mx.cpu) for _ in range(cpu_count())]


def between_processes() -> mx.Device:
    """Where processes add up arrays: a Mac's GPU would wait for the network, and macOS ends what waits for long."""
    return mx.default_device() if mx.cuda.is_available() else mx.Device(mx.cpu)


def n_streams(batch_size: int) -> int:
    """How many streams a batch is split over."""
    largest = 1 if on_gpu() else min(cpu_count(), batch_size)
    return max(n for n in range(1, largest + 1) if batch_size % n == 0)


def split(batch_size: int, streams: list[mx.Stream]) -> list[tuple[mx.Stream, slice]]:
    """Each stream and its rows of a batch."""
    n = batch_size // len(streams)
    return [(stream, slice(i * n, (i + 1) * n)) for i, stream in enumerate(streams)]


def fuses_attention(head_dim: int) -> bool:
    """Whether a training step computes attention without keeping its scores: Metal has kernels for these sizes."""
    return on_gpu() and not mx.cuda.is_available() and head_dim in (64, 80, 128)


def pads_rows() -> bool:
    """Whether numbers of rows that are no power of two have slower products, or other bits: not on Metal."""
    return not on_gpu() or mx.cuda.is_available()


def logits_rows(vocab_size: int) -> int:
    """How many tokens' logits to hold at a time: as many as fit 26 MB on a CPU's stream, 400 MB on a GPU with 16 GB."""
    return max(1, (min(400_000_000, memory() // 40) if on_gpu() else 26_000_000) // (4 * vocab_size))


def total_memory() -> int:
    """The machine's memory in bytes: a GPU's own where it has its own, a container's limit where there is one."""
    if on_gpu() and (own := mx.device_info().get("total_memory")):
        return own
    sizes = [_physical_memory()]
    for name in ("memory.max", "memory/memory.limit_in_bytes"):  # control groups, version 2 and 1
        limit = Path("/sys/fs/cgroup") / name
        if limit.exists() and limit.read_text().strip().isdigit():
            sizes.append(int(limit.read_text()))
    return min(sizes)


def _physical_memory() -> int:
    if hasattr(os, "sysconf"):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    status = (ctypes.c_uint64 * 8)(64)  # Windows' MEMORYSTATUSEX: its length in bytes, then the memory
    ctypes.windll.kernel32.GlobalMemoryStatusEx(status)
    return status[1]


def memory(sharing: int = 1) -> int:
    """The bytes that arrays may take in each of the processes that share this machine.

    What Metal recommends, most of the GPU's own memory, or on a CPU most of the machine's. The rest is for the
    programs, and on a CPU for what the allocator cannot fill.
    """
    if on_gpu():
        recommended = mx.device_info().get("max_recommended_working_set_size")
        return recommended // sharing if recommended else int(0.9 * total_memory())  # each has its NVIDIA GPU
    return int(0.85 * total_memory()) // sharing


def work_within(size: float, sharing: int = 1) -> None:
    """Limit the memory of a training, where `sharing` processes share this machine.

    A Mac's GPU gets its share. A CPU's arrays take little more than `size` bytes beside those that are there now, where
    the work allows it: MLX allocates for up to a hundred operations ahead of the one at work, a third of a step's
    memory. Beyond the limit it waits for those it has begun; a little below what the work takes it would wait for each,
    and halve the speed.
    """
    if not on_gpu():
        mx.set_memory_limit(mx.get_active_memory() + int(1.05 * size))
    elif sys.platform == "darwin":
        mx.set_memory_limit(memory(sharing))


def peak_memory_gb() -> float:
    """The most memory MLX's arrays have taken so far, in GB of 10^9 bytes."""
    return mx.get_peak_memory() / 1e9


def wire(gb: float) -> None:
    """Have macOS keep so many GB of memory resident for the GPU; 0 leaves that to macOS.

    Raises:
        ValueError: it is more than the system allows, or this is no Mac's GPU.
    """
    if not gb:
        return
    if sys.platform != "darwin" or not on_gpu():
        raise ValueError(f"--wired-limit-gb is {gb}; only a Mac's GPU has such a limit")
    if gb * 1e9 > memory():
        raise ValueError(f"--wired-limit-gb is {gb}; this Mac allows at most {memory() / 1e9:.1f}")
    mx.set_wired_limit(int(gb * 1e9))


def keep_awake() -> None:
    """Keep a Mac from falling asleep while this process lives."""
    if sys.platform == "darwin" and shutil.which("caffeinate"):
        subprocess.Popen(["caffeinate", "-i", "-w", str(os.getpid())])
