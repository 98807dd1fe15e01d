"""How near the planner's peak memory is to the measured one: `python -m benchmarks.plan`, ten configurations.

Each is measured in a process of its own, since memory that an earlier one left behind would be counted.
"""

import json
import subprocess
import sys

from gpt2_mlx import device
from gpt2_mlx.training import plan
from gpt2_mlx.training.config import TrainConfig

CONFIGURATIONS = [
    {"preset": "tiny"},
    {"preset": "tiny", "batch_size": 32, "optimizer": "adamw"},
    {"preset": "tiny", "batch_size": 2, "block_size": 1024, "n_layer": 8},
    {"preset": "tiny", "batch_size": 4, "n_layer": 8, "n_embd": 256, "dtype": "bfloat16"},
    {"preset": "baby", "batch_size": 8},
    {"preset": "baby", "batch_size": 4, "dropout": 0.1},
    {"preset": "baby", "batch_size": 8, "grad_checkpoint": True},
    {"preset": "gpt2", "batch_size": 1, "block_size": 256},
    {"preset": "gpt2", "batch_size": 1},
    {"preset": "gpt2", "batch_size": 2, "grad_checkpoint": True},
]


def main() -> None:
    on_gpu = device.select() == "gpu"
    if len(sys.argv) > 1:
        seconds, peak = plan.measure(TrainConfig(**json.loads(sys.argv[1])).resolved(on_gpu))
        print(json.dumps({"seconds": seconds, "peak": peak}))
        return
    print(f"{device.description()}\n\n| configuration | predicted GB | measured GB | off | s/step |")
    print("|---|--:|--:|--:|--:|")
    for fields in CONFIGURATIONS:
        text = json.dumps(fields)
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.plan", text], check=True, capture_output=True, text=True
        )
        measured = json.loads(done.stdout)
        predicted = sum(plan.memory(TrainConfig(**fields).resolved(on_gpu)).values())
        off = predicted / measured["peak"] - 1
        numbers = f"{predicted / 1e9:.2f} | {measured['peak'] / 1e9:.2f} | {off:+.0%} | {measured['seconds']:.2f}"
        print(f"| {text} | {numbers} |", flush=True)


if __name__ == "__main__":
    main()
