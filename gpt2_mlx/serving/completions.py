"""From a request to its texts, and the two forms in which they are told: ours and OpenAI's."""

import contextlib
import json
import secrets
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import tiktoken

from .async_engine import AsyncEngine
from .choice import Choice, EncodedPrompt, Piece
from .errors import ApiError
from .run import Run
from .schemas import N_SEEDS, Request
from .stream import QueueFull, Refused, StepFailed, Unavailable
from .telemetry import Telemetry, request_id

RETRY_AFTER = {"Retry-After": "1"}  # seconds


@dataclass(frozen=True)
class Service:
    """What every request needs."""

    engine: AsyncEngine
    encoding: tiktoken.Encoding
    telemetry: Telemetry
    run: Run
    api_key: str | None = None
    watches: bool = False  # whether a new best checkpoint of the run takes over
    created: int = field(default_factory=lambda: int(time.time()))


class Generation:
    """One request in the engine: `with` ends it when it is left, `pieces` brings what its choices gain.

    Raises:
        ApiError: 429 or 503, the engine does not take it.
    """

    def __init__(self, service: Service, request: Request, prompts: list[EncodedPrompt]):
        self.service = service
        self.request = request
        self.prompts = prompts
        self.began = time.monotonic()
        seed = secrets.randbits(63) if request.seed is None else request.seed
        samples = [request.params((seed + i) % N_SEEDS) for i in range(request.n)]
        jobs = [(prompt.ids, params) for prompt in prompts for params in samples]
        owners = [prompt for prompt in prompts for _ in samples]
        self.choices = [Choice(i, prompt, request, service.encoding) for i, prompt in enumerate(owners)]
        with _told():
            self.stream = service.engine.submit(jobs, _checkpoint(service, request))
        service.telemetry.prompt_tokens.inc(self.usage["prompt_tokens"])

    def __enter__(self) -> "Generation":
        return self

    def __exit__(self, *_) -> None:
        self.stream.close()

    @property
    def checkpoint(self) -> str:
        """The name of the checkpoint that answers; known once a piece has come."""
        return self.stream.checkpoint.name

    @property
    def usage(self) -> dict[str, int]:
        prompt, completion = sum(len(p.ids) for p in self.prompts), sum(c.n_tokens for c in self.choices)
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}

    async def pieces(self) -> AsyncIterator[tuple[Choice, Piece]]:
        """Every choice's pieces, until all have ended.

        Raises:
            ApiError: 400, 500 or 503, the engine could not go on.
        """
        with _told():
            async for number, output in self.stream:
                choice = self.choices[number]
                piece = choice.take(output)
                self._observe(choice, len(output.tokens))
                if piece.finish_reason:
                    self.stream.cancel(number)  # at a stop string the engine would go on
                yield choice, piece

    def _observe(self, choice: Choice, n_tokens: int) -> None:
        """Count the tokens that came, and the time they took."""
        telemetry, now = self.service.telemetry, time.monotonic()
        if not n_tokens:
            return
        telemetry.completion_tokens.inc(n_tokens)
        if choice.last_at is None:
            telemetry.first_token_seconds.observe(now - self.began)
        else:
            telemetry.token_seconds.observe((now - choice.last_at) / n_tokens)
        choice.last_at = now


def _checkpoint(service: Service, request: Request) -> Path | None:
    """The folder of the checkpoint that a request names.

    Raises:
        ApiError: 400, there is none of that name.
    """
    if request.checkpoint is None:
        return None
    folders = service.run.checkpoints()
    if request.checkpoint not in folders:
        allowed = ", ".join(folders)
        message = f"checkpoint is {request.checkpoint[:80]!r}; allowed: {allowed}"
        raise ApiError(400, message, "checkpoint", code="invalid_value")
    return folders[request.checkpoint]


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Turns the engine's exceptions into ApiErrors."""
    try:
        yield
    except QueueFull as error:
        raise ApiError(429, str(error), code="queue_full", headers=RETRY_AFTER) from None
    except Unavailable as error:
        raise ApiError(503, str(error), headers=RETRY_AFTER) from None
    except StepFailed as error:
        raise ApiError(500, str(error), code="engine_failed") from None
    except Refused as error:
        raise ApiError(400, str(error), code="invalid_value") from None


class SentenceForm:
    """How POST /complete-sentence tells a generation. Streamed, its last event is the unstreamed answer."""

    def __init__(self, generation: Generation):
        self.generation = generation

    def event(self, choice: Choice, piece: Piece) -> dict:
        event: dict = {"index": choice.index, "text": piece.text}
        if self.generation.request.wants_logprobs:
            event["logprobs"] = piece.logprobs
        return event | ({"finish_reason": piece.finish_reason} if piece.finish_reason else {})

    def last_events(self) -> list[dict]:
        return [self.answer()]

    def answer(self) -> dict:
        choices, request = self.generation.choices, self.generation.request
        texts, first = [choice.prompt.text + choice.whole.text for choice in choices], choices[0].whole
        answer = {"completed_sentence": texts[0], "finish_reason": first.finish_reason, "slides": first.slides}
        if request.n > 1:
            answer["completed_sentences"] = texts
        if request.wants_logprobs:
            answer["logprobs"] = first.logprobs
        return answer | {"checkpoint": self.generation.checkpoint, "usage": self.generation.usage}


class CompletionForm:
    """How POST /v1/completions tells a generation: OpenAI's text_completion object."""

    def __init__(self, generation: Generation):
        self.generation = generation
        self._wants_usage = generation.request.stream_options.include_usage
        self._head = {
            "id": f"cmpl-{request_id.get()}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": generation.service.run.name,
        }

    def event(self, choice: Choice, piece: Piece) -> dict:
        usage = {"usage": None} if self._wants_usage else {}
        return self._object([self._choice(choice, piece)]) | usage

    def last_events(self) -> list[dict]:
        return [self._object([]) | {"usage": self.generation.usage}] if self._wants_usage else []

    def answer(self) -> dict:
        choices = [self._choice(choice, choice.whole) for choice in self.generation.choices]
        return self._object(choices) | {"usage": self.generation.usage}

    def _object(self, choices: list[dict]) -> dict:
        return self._head | {"system_fingerprint": self.generation.checkpoint, "choices": choices}

    def _choice(self, choice: Choice, piece: Piece) -> dict:
        return {
            "index": choice.index,
            "text": piece.text,
            "logprobs": piece.logprobs if self.generation.request.wants_logprobs else None,
            "finish_reason": piece.finish_reason,
            "slides": piece.slides,
        }


Form = SentenceForm | CompletionForm


async def whole(form: Form) -> dict:
    """The answer, once all of it is there."""
    async for _ in form.generation.pieces():
        pass
    return form.answer()


async def events(form: Form) -> AsyncIterator[str]:
    """The data of each server-sent event; an error on the way is one of them."""
    try:
        async for choice, piece in form.generation.pieces():
            if piece.text or piece.notes or piece.finish_reason:
                yield _json(form.event(choice, piece))
        for event in form.last_events():
            yield _json(event)
    except ApiError as error:
        yield _json(error.body)
    yield "[DONE]"


def _json(event: dict) -> str:
    return json.dumps(event)  # in ASCII: some clients take U+2028 for the end of a line
