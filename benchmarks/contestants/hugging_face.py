"""transformers' generate on PyTorch."""

import queue
import threading
from collections.abc import Callable, Iterator

import torch
from transformers import AutoModelForCausalLM

from . import times
from .pytorch import peak, torch_device


class Ids:
    """A streamer: what `generate` hands it can be iterated over in another thread."""

    def __init__(self):
        self._queue: queue.SimpleQueue = queue.SimpleQueue()

    def put(self, value: torch.Tensor) -> None:
        self._queue.put(value)

    def end(self) -> None:
        self._queue.put(None)

    def __iter__(self) -> Iterator[int]:
        self._queue.get()  # the prompt
        while (value := self._queue.get()) is not None:
            yield value.item()


def decode(folder: str, prompt: list[int], n: int, dtype: str, device: str) -> Callable[[], dict]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).to(torch_device(device)).eval()
    tokens = torch.tensor([prompt], device=model.device)
    settings = {"attention_mask": torch.ones_like(tokens), "do_sample": False, "eos_token_id": None, "pad_token_id": 0}

    def generate(n: int) -> Iterator[int]:
        ids = Ids()
        arguments = {"inputs": tokens, "max_new_tokens": n, "streamer": ids, **settings}
        threading.Thread(target=model.generate, kwargs=arguments).start()
        return iter(ids)

    times(generate(2))
    return lambda: times(generate(n)) | peak(model.device.type)
