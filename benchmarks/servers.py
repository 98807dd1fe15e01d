"""Our server and mlx_lm's, each a process: started, ready, asked, stopped."""

import contextlib
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

from . import ENVIRONMENT


@dataclass(frozen=True)
class Server:
    """One that is running."""

    url: str
    model: str  # what requests call the model
    ready_s: float  # from the start of the process until a GET says ready
    first_s: float  # until an answer of one token has come
    pid: int
    log: Path  # what it prints


def command(name: str, folder: Path, port: int, device: str) -> tuple[list[str], str]:
    """The command line of a server, and the route that tells it is ready."""
    if name == "gpt2_mlx":
        return ["serve.py", "--checkpoint", str(folder), "--port", str(port), "--device", device], "/ready"
    module = ["-m", "benchmarks.contestants.openblas", device, "mlx_lm.server"]
    return [*module, "--model", str(folder), "--port", str(port), "--log-level", "ERROR"], "/health"


@contextlib.contextmanager
def running(name: str, folder: Path, device: str, *flags: str) -> Iterator[Server]:
    """A server of the folder's model, "gpt2_mlx" or "mlx_lm", on the device "gpu" or "cpu", ended with the context.

    Further flags are the server's own.

    Raises:
        ValueError: it ended early.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments, ready = command(name, folder, port, device)
    url = f"http://127.0.0.1:{port}"
    model = "default_model" if name == "mlx_lm" else folder.name
    with tempfile.TemporaryDirectory() as own, httpx.Client(base_url=url, timeout=600) as http:
        log = Path(own) / "log"
        began = time.perf_counter()
        line = [sys.executable, *arguments, *flags]
        with log.open("w") as file:
            process = subprocess.Popen(line, env=ENVIRONMENT, stdout=file, stderr=subprocess.STDOUT)
        try:
            while not answers(http, ready):
                if process.poll() is not None:
                    raise ValueError(f"the server of {name} ended early: {log.read_text()[-500:]}")
                time.sleep(0.01)
            ready_s = time.perf_counter() - began
            request = {"model": model, "prompt": "Once", "max_tokens": 1}
            http.post("/v1/completions", json=request).raise_for_status()
            yield Server(url, model, ready_s, time.perf_counter() - began, process.pid, log)
        finally:
            process.terminate()
            process.wait()


def answers(http: httpx.Client, route: str) -> bool:
    try:
        return http.get(route).status_code == 200
    except httpx.TransportError:
        return False
