"""A small engine to test serving with, and the engine's process as a thread of the test's."""

import os
import threading
import time
from collections import deque
from pathlib import Path

from patience import PATIENCE

from gpt2_mlx import tokenizer
from gpt2_mlx.generation.outputs import Output, Token
from gpt2_mlx.generation.prefixes import PrefixCounts
from gpt2_mlx.serving import worker
from gpt2_mlx.serving.messages import Loaded, NotLoaded

ENCODING = tokenizer.load()
SCRIPT = ENCODING.encode_ordinary(" To be — or not: “naïve” 🎭🙂? It costs 3.14 ducats. 'Tis so!\nAnd on, ")
POISON = 666  # a process that reads a prompt with this token dies


class Killed(Exception):
    pass


class FakeEngine:
    """Engines' interface; every text is the script, over and over, from the place that the seed says."""

    block_size, vocab_size = 64, tokenizer.VOCAB_SIZE
    is_loading = False

    def __init__(self, n_slots: int = 4, seconds: float = 0.0):
        self.n_slots = n_slots
        self.seconds = seconds  # per step
        self.gate = threading.Event()  # steps wait for it
        self.gate.set()
        self.checkpoint = Path("verse/step-00000001")
        self.unloadable = set()  # checkpoints that cannot be loaded
        self.deadly = set()  # checkpoints whose loading ends the process
        self.cancelled, self.begun = [], 0
        self.prompts, self.noted = [], 0  # that came, and how many of them with the wish for their numbers
        self.killed = threading.Event()
        self.fails_at = None  # how many tokens a text with a constraint has when that cannot be followed further
        self.ends_at = None  # how many tokens a text has when the model ends it
        self.dies_at = None  # the step at which the process dies by itself
        self.found = 0  # tokens of each prompt that it claims to have found
        self.prefix_counts = PrefixCounts()  # what it claims next
        self.in_reverse = False  # whether of several texts the last one comes first
        self.drafted = self.accepted = 0  # tokens that it claims to have drafted for each step, and drawn

    def begin(self, on_pass):
        """The engine of another process, which knows nothing of the last one's work."""
        if self.checkpoint.name in self.unloadable:
            raise ValueError("no such checkpoint")
        self.begun += 1
        self.on_pass, self.n_steps, self.news = on_pass, 0, []
        self.killed.clear()
        self.waiting, self.running = deque(), {}
        return self

    def learn_vocabulary(self):
        pass

    def add(self, id, prompt, params, request, checkpoint):
        if max(prompt) >= self.vocab_size:
            raise ValueError("a token is out of range")
        if checkpoint.name in self.unloadable:
            raise ValueError("no such checkpoint")
        self.prompts.append(prompt)
        self.noted += params.prompt_logprobs
        self.waiting.append((id, prompt, params))

    def step(self):
        while not self.gate.wait(0.01):
            self.check_alive()
        time.sleep(self.seconds)
        self.check_alive()
        self.n_steps += 1
        if self.n_steps == self.dies_at:
            self.dies_at = None
            raise Killed
        while self.waiting and len(self.running) < self.n_slots:
            id, prompt, params = self.waiting.pop() if self.in_reverse else self.waiting.popleft()
            self.running[id] = [prompt, params, 0]
            self.on_pass([id], len(prompt))
            if POISON in prompt:
                raise RuntimeError("poisoned")
        self.on_pass(list(self.running), len(self.running))
        return [self._output(id) for id in (sorted(self.running, reverse=self.in_reverse))]

    def check_alive(self):
        if self.killed.is_set():
            raise Killed

    def _output(self, id):
        prompt, params, n = self.running[id]
        if params.constraint and n == self.fails_at:
            del self.running[id]
            return Output(id, (), failure="the constraint cannot be followed")
        if n == self.ends_at:
            del self.running[id]
            end = None if params.logprobs is None else self._token(ENCODING.eot_token, params)
            return Output(id, (), finish_reason="stop", found=self.found, end=end)
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
        reason, drafts = "length" if done else None, {"drafted": self.drafted, "accepted": self.accepted}
        return Output(id, tokens, noted, reason, found=self.found, **drafts)

    def _token(self, id, params):
        if params.logprobs is None:
            return Token(id)
        return Token(id, -0.5, tuple((id + i, -0.5 - i) for i in range(params.logprobs)))

    def swap(self, checkpoint):
        if checkpoint.name in self.deadly:
            raise Killed
        if checkpoint.name in self.unloadable:
            self.news.append(NotLoaded(checkpoint, "no such checkpoint"))
        else:
            self.checkpoint = checkpoint
            self.news.append(Loaded(checkpoint))

    def take_prefix_counts(self):
        counts, self.prefix_counts = self.prefix_counts, PrefixCounts()
        return counts

    def take_news(self):
        news, self.news = self.news, []
        return news

    def cancel(self, id):
        self.cancelled.append(id)
        self.running.pop(id, None)
        self.waiting = deque(job for job in self.waiting if job[0] != id)

    def warm_up(self):
        pass

    has_work = property(lambda self: bool(self.waiting or self.running))
    n_running = property(lambda self: len(self.running))


class ThreadProcess:
    """What subprocess.Popen is to the engine's process: a thread that runs a FakeEngine."""

    def __init__(self, fake: FakeEngine):
        self.fake, self.status = fake, None
        (source, stdin), (stdout, sink) = os.pipe(), os.pipe()
        self.stdin, self.stdout = os.fdopen(stdin, "wb"), os.fdopen(stdout, "rb")
        files = os.fdopen(source, "rb"), os.fdopen(sink, "wb")
        self.thread = threading.Thread(target=self._run, args=files, daemon=True)
        self.thread.start()

    def _run(self, source, sink):
        try:
            with sink:
                worker.run(self.fake.begin, self.fake.checkpoint, source, sink)
            self.status = 0
        except Exception:  # it has died
            self.status = 1

    def kill(self):
        self.fake.killed.set()

    def wait(self):
        self.stdin.close()  # if nobody has written to it
        self.thread.join(PATIENCE)
        return self.status
