"""A run to serve, and serve.py serving it."""

import contextlib
import functools
import subprocess
import sys
from pathlib import Path

import httpx
from patience import PATIENCE, eventually

from gpt2_mlx import checkpoint, metrics
from gpt2_mlx.config import GPT2Config
from gpt2_mlx.model import GPT2

ROOT = Path(__file__).parents[1]
CONFIG = GPT2Config(block_size=64, n_layer=1, n_head=1, n_embd=8)

http = httpx.Client(timeout=PATIENCE)


def add_checkpoint(run: Path, step: int, *links: str) -> Path:
    """Save a checkpoint whose weights follow from its step."""
    folder = run / f"step-{step:08d}"
    checkpoint.save(folder, GPT2(CONFIG, seed=step))
    for link in links:
        checkpoint.mark(run, link, folder)
    return folder


def make_run(run: Path) -> Path:
    """A run of 8 steps that has come to step 4, with two checkpoints; the second is the best."""
    add_checkpoint(run, 2)
    add_checkpoint(run, 4, "latest", "best")
    log = functools.partial(metrics.write, run / "metrics.jsonl")
    config = {"batch_size": 2, "grad_accum_steps": 1, "block_size": 64, "max_steps": 8}
    log("start", 0, config=config, text={"name": "verse"}, n_params=CONFIG.n_params)
    for step in range(1, 5):
        log("train", step, loss=11 - step / 4, elapsed_s=float(step))
        if step % 2 == 0:
            log("eval", step, val_loss=11 - step / 8, **({"bits_per_byte": 3.5} if step == 4 else {}))
    return run


def command(*flags: str) -> list[str]:
    return [sys.executable, str(ROOT / "serve.py"), "--device", "cpu", "--port", "0", *flags]


@contextlib.contextmanager
def begun(folder: Path, *flags: str):
    """serve.py in a folder, ready, and its address. What it tells on stderr is in the folder's `log`."""
    with (folder / "log").open("w") as log:  # a pipe that nobody reads would fill, and stop it
        process = subprocess.Popen(command(*flags), cwd=folder, stdout=subprocess.PIPE, stderr=log, text=True)
    with process:
        try:
            line = process.stdout.readline()
            assert line.startswith("serving "), line or (folder / "log").read_text()
            url = f"http://127.0.0.1:{line.split()[-1]}"
            eventually(lambda: http.get(url + "/ready").status_code == 200)
            yield process, url
        finally:
            process.kill()
