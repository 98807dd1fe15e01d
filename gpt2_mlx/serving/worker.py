"""The engine's process: it owns every array. It reads messages on stdin and answers on stdout; see `messages`.

Whatever ends it, a fault of the GPU's driver as well, ends no more than this process: the service starts another.
"""

import functools
import logging
import os
import queue
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from .. import device, pretrained
from ..generation import adapters, draft_model
from ..generation.adapters import Adapters
from ..generation.capacity import prefixes_that_fit, slots_that_fit
from ..generation.engine import Engine
from ..model import GPT2
from . import messages
from .config import ServeConfig
from .engines import Engines, Full, Loading, loading
from .messages import Add, Cancel, Loaded, NotLoaded, NotTaken, Pass, Step, Swap
from .served_adapters import NO_ADAPTERS, ServedAdapters
from .telemetry import configure_logging

log = logging.getLogger(__name__)


def launch(config: ServeConfig, checkpoint: Path, served: ServedAdapters = NO_ADAPTERS) -> subprocess.Popen:
    """Start the process for a checkpoint. It ends when its stdin does, hence with the process that started it."""
    command, how = messages.process(__name__)
    process = subprocess.Popen(command, **how)
    process.stdin.write(messages.pack((config, checkpoint, served)))
    process.stdin.flush()
    return process


def main() -> None:
    source, sink = messages.own_pipes()
    config, checkpoint, served = messages.read(source)
    configure_logging(config.log_format)

    def build(on_pass: Callable[[list[int], int], None]) -> Engines:
        device.select(config.device)
        device.limit_cache()
        dtype = device.dtype(config.dtype)
        small = config.draft_model and draft_model.find(config.draft_model, checkpoint)
        drafting = pretrained.load(small, dtype, config.quantize) if small else None

        def load(folder: Path) -> Loading:
            folders = served.folders if folder == served.base else {}
            beside = adapters.size(folders, pretrained.read_config(folder), dtype)
            return (yield from loading(folder, dtype, config.quantize, functools.partial(make, folders), beside))

        def make(folders: dict[str, Path], model: GPT2, folder: Path) -> Engine:
            own = Adapters(model, folders)
            models = [model, drafting] if drafting else [model]  # each has a cache with as many slots
            slots = config.max_batch_size or slots_that_fit(model.dtype, *(each.config for each in models))
            n_prefixes = prefixes_that_fit(model.config, model.dtype, config.prefix_cache_mb)
            encoding = pretrained.vocabulary(folder).encoding
            return Engine(model, slots, on_pass, n_prefixes, encoding, config.speculate, own, drafting)

        return Engines(load, checkpoint, served)

    try:
        run(build, checkpoint, source, sink)
    except BrokenPipeError:  # the service is gone
        pass
    except Exception:
        log.exception("the engine's process ends")
        os._exit(1)
    os._exit(0)  # at once: nothing here is to be saved, and the end of a driver may hang


def run(build: Callable[..., Engines], checkpoint: Path, source: BinaryIO, sink: BinaryIO) -> None:
    """Serve until `source` ends. An exception of a step is for the caller: all sequences are lost.

    Args:
        build: makes the Engines, which call what they are given before each forward pass.
        checkpoint: the one that answers first.
    """

    def tell(message: object) -> None:
        sink.write(messages.pack(message))
        sink.flush()

    try:
        engines = build(lambda ids, n_tokens: tell(Pass(tuple(ids), n_tokens)))
        engines.warm_up()
    except (ValueError, OSError) as error:  # the user can mend it
        tell(NotLoaded(checkpoint, str(error)))
        return
    tell(Loaded(engines.checkpoint))
    inbox: queue.SimpleQueue = queue.SimpleQueue()
    threading.Thread(target=_read, args=(source, inbox), daemon=True).start()
    engines.learn_vocabulary()
    n_running = 0
    while True:
        for message in _received(inbox, wait=not engines.has_work):
            if message is None:
                return
            _act(engines, message, tell)
        outputs = engines.step() if engines.has_work else []
        if engines.is_loading:
            tell(Pass((), 0))  # it is alive
        for message in engines.take_news():
            tell(message)
        if outputs or engines.n_running != n_running:
            n_running = engines.n_running
            tell(Step(outputs, n_running, engines.take_prefix_counts()))


def _read(source: BinaryIO, inbox: queue.SimpleQueue) -> None:
    while message := messages.read(source):
        inbox.put(message)
    inbox.put(None)


def _received(inbox: queue.SimpleQueue, wait: bool) -> list:
    """The messages that have come; where there is no work, wait for one, but wake up to let idle engines go."""
    received = []
    try:
        received.append(inbox.get(wait, timeout=60.0))
        while True:
            received.append(inbox.get_nowait())
    except queue.Empty:
        return received


def _act(engines: Engines, message: object, tell: Callable[[object], None]) -> None:
    match message:
        case Add(id, prompt, params, request, checkpoint):
            try:
                engines.add(id, prompt, params, request, checkpoint)
            except Full as error:
                tell(NotTaken(id, str(error), for_now=True))
            except ValueError as error:
                tell(NotTaken(id, str(error)))
        case Cancel(id):
            engines.cancel(id)
        case Swap(checkpoint):
            engines.swap(checkpoint)
