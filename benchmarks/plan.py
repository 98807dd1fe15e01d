"""How near the planner's peak memory is to the measured one, for ten configurations.

Each is measured in a process of its own, since memory that an earlier one left behind would be counted.
"""

import json
from multiprocessing import get_context

from gpt2_mlx import cli, device
from gpt2_mlx.training import memory, plan
from gpt2_mlx.training.config import TrainConfig

from .common import append, introduce, machine, table

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
    facts = machine()
    introduce(facts)
    with get_context("spawn").Pool(1, maxtasksperchild=1) as process:
        results = process.map(measure, CONFIGURATIONS, chunksize=1)
    print(table(["configuration", "predicted GB", "measured GB", "off", "s/step"], [_cells(**r) for r in results]))
    append("plan", results=results, **facts)


def measure(fields: dict) -> dict:
    """The predicted and the measured peak of a configuration, and the seconds of its step."""
    config = TrainConfig(**fields).resolved(device.select() == "gpu")
    predicted = memory.peak(config)
    seconds, measured = plan.measure(config)
    return {
        "configuration": fields,
        "predicted_gb": predicted / 1e9,
        "measured_gb": measured / 1e9,
        "off": predicted / measured - 1,
        "seconds": seconds,
    }


def _cells(configuration: dict, predicted_gb: float, measured_gb: float, off: float, seconds: float) -> list[str]:
    return [json.dumps(configuration), f"{predicted_gb:.2f}", f"{measured_gb:.2f}", f"{off:+.0%}", f"{seconds:.2f}"]


if __name__ == "__main__":
    cli.run(main)
