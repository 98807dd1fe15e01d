"""The processes that train one model together, each on its part of every step: `mlx.launch -n 2 python train.py`.

A process that was started alone is a group of one, in which these functions return what they are given.
"""

import io
import json
import platform
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from typing import Any, TypeVar

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map

from .. import device

Result = TypeVar("Result")
Tree = TypeVar("Tree")

_REASON_BYTES = 32


def rank() -> int:
    """This process's number, from 0."""
    return mx.distributed.init().rank()


def size() -> int:
    """The number of processes."""
    return mx.distributed.init().size()


def here() -> int:
    """The number of the processes that share this machine."""
    name = zlib.crc32(platform.node().encode())
    return mx.distributed.all_gather(mx.array([name], mx.uint32)).tolist().count(name)


def is_first() -> bool:
    """Whether this is the process that logs, saves and draws."""
    return rank() == 0


def own_micro_batches(step: int, n: int) -> range:
    """The numbers of the micro-batches that this process reads for a step, where every process reads n."""
    first = (step * size() + rank()) * n
    return range(first, first + n)


def mean(tree: Tree) -> Tree:
    """The mean of the processes' trees of evaluated float32 arrays."""
    with mx.stream(device.between_processes()):
        return nn.average_gradients(tree)


def total(array: mx.array) -> mx.array:
    """The sum of the processes' arrays."""
    return mx.distributed.all_sum(array)


def largest(number: int) -> int:
    """The largest of the processes' numbers."""
    return mx.distributed.all_max(mx.array(number)).item()


def share(tree: Tree) -> Tree:
    """The first process's tree of arrays, returned in all processes."""
    shared = tree_map(lambda a: total(a if is_first() else mx.zeros_like(a)), tree)
    mx.eval(shared)
    return shared


def ask_first(question: Callable[[], Any]) -> Any:
    """What `question()` returns in the first process, returned in all processes; JSON must be able to hold it."""
    answer = list(json.dumps(question()).encode()) if is_first() else []
    length = total(mx.array(len(answer))).item()
    return json.loads(bytes(share(mx.array(answer or [0] * length)).tolist()))


def agree(reason: str | None) -> str | None:
    """The reason to stop of the first process that has one, so that all processes stop after the same step."""
    own = (reason or "").encode()[:_REASON_BYTES].ljust(_REASON_BYTES, b"\0")
    reasons = mx.distributed.all_gather(mx.array(list(own))[None]).tolist()  # (size, 32)
    return next((bytes(characters).rstrip(b"\0").decode() for characters in reasons if any(characters)), None)


def in_turn(act: Callable[[], Result]) -> Result:
    """Call `act` in the first process and then in the others, so that what it caches is made once on a machine."""
    result = act() if is_first() else None
    mx.eval(total(mx.array(0)))  # the others wait here
    return result if is_first() else act()


@contextmanager
def together() -> Iterator[None]:
    """Let only the first process print. A process that finds another one gone ends with status 1 and one line."""
    try:
        with nullcontext() if is_first() else redirect_stdout(io.StringIO()):
            yield
    except RuntimeError as error:
        if size() == 1:
            raise
        raise SystemExit(
            f"process {rank()} of {size()} ends, for it cannot go on without the others ({error});"
            " --resume goes on from the latest checkpoint"
        ) from None
