"""Serve a checkpoint over HTTP: `python serve.py`; `--help` shows every flag."""

import signal
import sys
from pathlib import Path

from gpt2_mlx import checkpoint, cli, device, pretrained, tokenizer
from gpt2_mlx.generation.engine import Engine
from gpt2_mlx.serving import app
from gpt2_mlx.serving.async_engine import AsyncEngine
from gpt2_mlx.serving.completions import Service
from gpt2_mlx.serving.config import ServeConfig
from gpt2_mlx.serving.server import Server, listen
from gpt2_mlx.serving.telemetry import Telemetry, configure_logging


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # until the server has begun
    config = cli.parse(ServeConfig)
    source = config.checkpoint or checkpoint.newest_run(Path("checkpoints"))
    folder = pretrained.find(source)
    configure_logging(config.log_format)
    telemetry = Telemetry()
    engine = AsyncEngine(lambda: build_engine(config, folder), config.max_queue, telemetry.batch_size.observe)
    telemetry.watch(engine)
    service = Service(engine, tokenizer.load(), telemetry, Path(source).resolve().name, config.api_key)
    server = Server(
        app.build(service, config.cors_origin), config.drain_seconds, lambda: engine.drain(config.drain_seconds)
    )
    with listen(config.host, config.port) as listener:
        print(f"serving {folder} on {config.host}, port {listener.getsockname()[1]}", flush=True)
        engine.start(on_failure=lambda: setattr(server, "should_exit", True))
        try:
            server.run(sockets=[listener])
        finally:
            engine.stop(config.drain_seconds)
    if engine.failure:
        raise engine.failure


def build_engine(config: ServeConfig, folder: Path) -> Engine:
    """Load the model and its engine, in the thread that will own them."""
    device.select(config.device)
    return Engine(checkpoint.load(folder, config.dtype, config.quantize), config.max_batch_size)


if __name__ == "__main__":
    cli.run(main)
