"""gpt2-mlx serve: a checkpoint over HTTP."""

import signal
import sys
import threading
from pathlib import Path

from .. import checkpoint, cli, device, pretrained, tokenizer
from ..generation.capacity import slots_that_fit
from ..generation.engine import Engine
from ..serving import app, pages
from ..serving.async_engine import AsyncEngine
from ..serving.completions import Service
from ..serving.config import ServeConfig
from ..serving.engines import Engines
from ..serving.served_run import ServedRun
from ..serving.server import Server, listen
from ..serving.telemetry import Telemetry, configure_logging
from ..serving.watch import watch


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # until the server has begun
    config = cli.parse(ServeConfig)
    source = config.checkpoint or checkpoint.newest_run(Path("checkpoints"))
    folder = pretrained.find(source)
    path = Path(source) if Path(source).exists() else folder  # a hub's model is where it was fetched to
    if config.watch and folder == path:
        raise ValueError(f"--watch is on, but {path} is a checkpoint; it must be a run, whose best one can change")
    served = folder.resolve()  # what `best` points to may change at any time
    configure_logging(config.log_format)
    telemetry = Telemetry()
    engine = AsyncEngine(lambda: build_engines(config, served), config.max_queue, telemetry.batch_size.observe)
    telemetry.watch(engine)
    run = ServedRun(path, Path(source).resolve().name)
    service = Service(engine, tokenizer.load(), telemetry, run, config.api_key, config.watch)
    web = app.build(service, config.cors_origin, pages.routes())
    server = Server(web, config.drain_seconds, lambda: engine.drain(config.drain_seconds))
    with listen(config.host, config.port) as listener:
        print(f"serving {folder} on {config.host}, port {listener.getsockname()[1]}", flush=True)
        engine.start(on_failure=lambda: setattr(server, "should_exit", True))
        if config.watch:
            threading.Thread(target=watch, args=(path, served, engine, threading.Event()), daemon=True).start()
        try:
            server.run(sockets=[listener])
        finally:
            engine.stop(config.drain_seconds)
    if engine.failure:
        raise engine.failure


def build_engines(config: ServeConfig, folder: Path) -> Engines:
    """Load the model and its engine, in the thread that will own them and those to come."""
    device.select(config.device)

    def load(folder: Path) -> Engine:
        model = checkpoint.load(folder, config.dtype, config.quantize)
        return Engine(model, config.max_batch_size or slots_that_fit(model.config, model.dtype))

    return Engines(load, folder)
