"""A small engine to test serving with."""

import itertools
import threading
import time
from collections import deque
from pathlib import Path

from patience import PATIENCE

from gpt2_mlx import tokenizer
from gpt2_mlx.generation.engine import Output, Token

ENCODING = tokenizer.load()
SCRIPT = ENCODING.encode_ordinary(" To be — or not: “naïve” 🎭🙂? It costs 3.14 ducats. 'Tis so!\nAnd on, ")
POISON = 666  # a step with a prompt that holds this token raises


class FakeEngine:
    """Engines' interface; every text is the script, over and over, from the place that the seed says."""

    block_size, vocab_size = 64, tokenizer.VOCAB_SIZE

    def __init__(self, n_slots: int = 4, seconds: float = 0.0):
        self.n_slots = n_slots
        self.seconds = seconds  # per step
        self.gate = threading.Event()  # steps wait for it
        self.gate.set()
        self.waiting, self.running, self.cancelled = deque(), {}, []
        self.broken = False
        self.checkpoint = Path("verse/step-00000001")
        self.threads = set()
        self.ids = itertools.count()

    def add(self, prompt, params, checkpoint):
        self.threads.add(threading.get_ident())
        if max(prompt) >= self.vocab_size:
            raise ValueError("a token is out of range")
        id = next(self.ids)
        self.waiting.append((id, prompt, params))
        return id

    def step(self):
        assert self.gate.wait(PATIENCE)
        time.sleep(self.seconds)
        while self.waiting and len(self.running) < self.n_slots:
            id, prompt, params = self.waiting.popleft()
            self.running[id] = [prompt, params, 0]
        if self.broken or any(POISON in prompt for prompt, _, _ in self.running.values()):
            raise RuntimeError("poisoned")
        return [self._output(id) for id in list(self.running)]

    def _output(self, id):
        prompt, params, n = self.running[id]
        self.running[id][2] += 1
        tokens = ()
        if params.max_tokens:
            tokens = (self._token(SCRIPT[(params.seed + n) % len(SCRIPT)], params),)
        done = n + 1 >= params.max_tokens
        if done:
            del self.running[id]
        noted = ()
        if params.prompt_logprobs and not n:
            context = prompt[-self.block_size :]
            noted = (Token(context[0]), *(self._token(token, params) for token in context[1:]))
        return Output(id, tokens, noted, "length" if done else None)

    def _token(self, id, params):
        if params.logprobs is None:
            return Token(id)
        return Token(id, -0.5, tuple((id + i, -0.5 - i) for i in range(params.logprobs)))

    def swap(self, checkpoint):
        self.checkpoint = checkpoint

    def fail_step(self):
        failed, self.running = list(self.running), {}
        return failed

    def cancel(self, id):
        self.cancelled.append(id)
        self.running.pop(id, None)
        self.waiting = deque(job for job in self.waiting if job[0] != id)

    def warm_up(self):
        if self.broken:
            raise RuntimeError("broken")

    has_work = property(lambda self: bool(self.waiting or self.running))
    n_waiting = property(lambda self: len(self.waiting))
    n_running = property(lambda self: len(self.running))
