"""gpt2-mlx serve: a checkpoint over HTTP."""

import asyncio
import functools
import signal
import socket
import sys
from pathlib import Path

from .. import checkpoint, cli, device, pretrained
from ..generation import draft_model
from ..serving import served_adapters
from ..serving.async_engine import AsyncEngine
from ..serving.config import ServeConfig
from ..serving.served_adapters import ServedAdapters
from ..serving.worker import launch


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # until the server has begun
    config = cli.parse(ServeConfig)
    if not device.has_posix():
        raise ValueError("serving needs macOS or Linux: Windows' pipes cannot be waited on (WSL has those of Linux)")
    source = config.checkpoint or checkpoint.newest_run(Path("checkpoints"))
    folder = pretrained.find(source)
    pretrained.base(folder)  # raises where an adapter's is missing
    if config.draft_model:
        draft_model.find(config.draft_model, folder)
    path = folder if pretrained.is_on_hub(source) else Path(source)
    if config.watch and folder == path:
        raise ValueError(f"--watch is on, but {path} is a checkpoint; it must be a run, whose best one can change")
    name = Path(source).resolve().name
    adapters = served_adapters.find(config.adapter, folder, {name, folder.name}, config.quantize)
    with listen(config.host, config.port) as listener:
        # What `best` points to may change at any time. The process loads while the rest is imported here.
        engine = AsyncEngine(functools.partial(launch, config, served=adapters), folder.resolve(), config.max_queue)
        print(f"serving {folder} on {config.host}, port {listener.getsockname()[1]}", flush=True)
        asyncio.run(serve(config, adapters, engine, path, name, listener))
    if engine.failure:
        raise ValueError(engine.failure)


async def serve(
    config: ServeConfig, adapters: ServedAdapters, engine: AsyncEngine, path: Path, name: str, listener: socket.socket
) -> None:
    """Serve the run or the checkpoint at a path until a signal ends it."""
    from ..serving import app, pages
    from ..serving.served_run import ServedRun
    from ..serving.server import Server
    from ..serving.service import Service
    from ..serving.telemetry import Telemetry, configure_logging
    from ..serving.watch import watch

    configure_logging(config.log_format)
    telemetry = Telemetry()
    telemetry.watch(engine)
    vocabulary = pretrained.vocabulary(checkpoint.resolve(path))
    run = ServedRun(path, name)
    flags = config.api_key, config.watch, config.audit
    service = Service(engine, vocabulary, telemetry, run, *flags, adapters, config)
    web = app.build(
        service, config.host, config.allowed_host, config.cors_origin, pages.routes(vocabulary.encoding.n_vocab)
    )
    server = Server(web, config.drain_seconds, engine)
    engine.start(on_failure=lambda: setattr(server, "should_exit", True))
    watching = asyncio.create_task(watch(path, engine)) if config.watch else None
    try:
        await server.serve(sockets=[listener])
    finally:
        if watching:
            watching.cancel()
        await service.examiner.stop()
        await engine.stop()


def listen(host: str, port: int) -> socket.socket:
    """A TCP socket that listens. Raises OSError where the address is taken or not ours."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family)
