"""How long from a command to its effect: an import, the first token, a server that is ready; beside mlx_lm.

Whole processes, on files that the system has in its memory. Beside them how long a process takes that only reads the
weights with MLX, over one that only imports it: what no program spares.
"""

import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from gpt2_mlx import cli, device
from gpt2_mlx.config import PRESETS

from . import ENVIRONMENT
from .common import alternate, append, introduce, machine, medians, require, seconds, table
from .servers import running
from .weights import save_random

OPENBLAS = ("-m", "benchmarks.contestants.openblas")
GENERATE = ("--prompt", "Once upon a time", "--max-tokens", "1", "--ignore-chat-template")


@dataclass(frozen=True)
class Settings:
    """How fast things start, beside mlx_lm."""

    quick: bool = False
    """Two rounds instead of five."""
    device: Literal["auto", "gpu", "cpu"] = "auto"
    """Where to compute."""


def main() -> None:
    settings = cli.parse(Settings)
    require("mlx_lm")
    where = device.select(settings.device)
    facts = machine("mlx-lm")
    introduce(facts)
    measured = {}
    with tempfile.TemporaryDirectory() as folder:
        models = [save_random(PRESETS[preset], Path(folder) / preset) for preset in ("tiny", "gpt2")]
        contestants = imports()
        for model in models:
            contestants |= starts(model, where)
        measured = alternate(2 if settings.quick else 5, contestants)
    print(report(measured))
    append("startup", seconds=measured, **facts)


def imports() -> dict[str, Callable[[], float]]:
    return {
        "python alone": partial(process, "-c", "pass"),
        "import mlx.core": partial(process, "-c", "import mlx.core"),
        "import gpt2_mlx": partial(process, "-c", "import gpt2_mlx"),
        "import mlx_lm": partial(process, "-c", "import mlx_lm"),
    }


def starts(model: Path, where: str) -> dict[str, Callable[[], float]]:
    read = f"import mlx.core as mx; mx.eval(mx.load('{model}/model.safetensors', stream=mx.cpu))"
    generate = ("-m", "gpt2_mlx", "generate", "Once upon a time", "--max-tokens", "1", "--device", where)
    return {
        f"{model.name}: read the weights": partial(process, "-c", read),
        f"{model.name}: gpt2_mlx generate": partial(process, *generate, "--checkpoint", str(model)),
        f"{model.name}: mlx_lm generate": partial(
            process, *OPENBLAS, where, "mlx_lm.generate", "--model", str(model), *GENERATE
        ),
        f"{model.name}: serve.py to ready": partial(ready, "gpt2_mlx", model, where),
        f"{model.name}: serve.py to a first answer": partial(first_answer, "gpt2_mlx", model, where),
        f"{model.name}: mlx_lm.server to a first answer": partial(first_answer, "mlx_lm", model, where),
    }


def process(*arguments: str) -> float:
    command = [sys.executable, *arguments]
    return seconds(lambda: subprocess.run(command, env=ENVIRONMENT, check=True, capture_output=True))


def ready(name: str, model: Path, where: str) -> float:
    with running(name, model, where) as server:
        return server.ready_s


def first_answer(name: str, model: Path, where: str) -> float:
    with running(name, model, where) as server:
        return server.first_s


def report(measured: dict[str, list[float]]) -> str:
    rows = [[name, f"{s:.2f}"] for name, s in medians(measured).items()]
    return table(["from the start of a process", "seconds"], rows)


if __name__ == "__main__":
    cli.run(main)
