"""From a request to its texts, and the two forms in which they are told: ours and OpenAI's."""

import contextlib
import dataclasses
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse

from .answers import (
    CompletionAnswer,
    CompletionChoice,
    PromptTokensDetails,
    SentenceAnswer,
    SentenceEvent,
    Usage,
    answer,
)
from .choice import Choice, Delta, EncodedPrompt
from .errors import ApiError
from .limits import N_SEEDS
from .schemas import TextRequest
from .service import Service
from .submission import EngineFailed, QueueFull, Refused, Unavailable
from .telemetry import request_id

RETRY_AFTER = {"Retry-After": "1"}  # seconds
MUCH = 500  # tokens with their numbers; the event loop stands still for a few milliseconds for fewer


class Generation:
    """One request on its way: `with` ends it when it is left, `deltas` brings what its choices gain.

    Args:
        service: what answers.
        request: what is asked for.
        prompts: those of the request.
        number: tells the order in which requests came; see `AsyncEngine.next_number`.

    Raises:
        ApiError: 429 or 503, the engine does not take it.
    """

    def __init__(self, service: Service, request: TextRequest, prompts: list[EncodedPrompt], number: int):
        self.service = service
        self.request = request
        self.prompts = prompts
        self.began = time.monotonic()
        seed = secrets.randbits(63) if request.seed is None else request.seed
        samples = [request.params((seed + i) % N_SEEDS) for i in range(request.n)]
        # The prompt's numbers are the same for all of its samples: the first asks for them.
        samples[1:] = [dataclasses.replace(params, prompt_logprobs=False) for params in samples[1:]]
        jobs = [(prompt.context, params) for prompt in prompts for params in samples]
        owners = [prompt for prompt in prompts for _ in samples]
        self.choices = [Choice(i, prompt, request, service.encoding) for i, prompt in enumerate(owners)]
        with as_api_errors():
            checkpoint = _checkpoint(service, request)
            self.submission = service.engine.submit(jobs, checkpoint, number, request.supersede, request.timeout)
        service.telemetry.prompt_tokens.inc(self.usage.prompt_tokens)

    def __enter__(self) -> "Generation":
        return self

    def __exit__(self, *_) -> None:
        self.submission.close()

    @property
    def checkpoint(self) -> str:
        """The name of the checkpoint that answers."""
        return self.submission.checkpoint.name

    @property
    def usage(self) -> Usage:
        prompt, completion = sum(len(p.ids) for p in self.prompts), sum(c.n_tokens for c in self.choices)
        # The first sample of a prompt reads it; the others get it from the first.
        details = PromptTokensDetails(cached_tokens=sum(c.n_found for c in self.choices[:: self.request.n]))
        return Usage(
            prompt_tokens=prompt,
            prompt_tokens_details=details,
            completion_tokens=completion,
            total_tokens=prompt + completion,
        )

    async def deltas(self) -> AsyncIterator[tuple[Choice, Delta]]:
        """What every choice gains, until all have ended.

        Raises:
            ApiError: 400, 500 or 503, the engine could not go on.
        """
        with as_api_errors():
            async for number, output in self.submission:
                choice = self.choices[number]
                delta = await _beside(len(output.prompt), choice.take, output)
                self._observe(choice, len(output.tokens))
                if delta.finish_reason:
                    self.submission.cancel(number)  # at a stop string the engine would go on
                yield choice, delta

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


def _checkpoint(service: Service, request: TextRequest) -> Path | None:
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
def as_api_errors() -> Iterator[None]:
    """Turns the engine's exceptions into ApiErrors."""
    try:
        yield
    except QueueFull as error:
        raise ApiError(429, str(error), code="queue_full", headers=RETRY_AFTER) from None
    except Unavailable as error:
        raise ApiError(503, str(error), headers=RETRY_AFTER) from None
    except EngineFailed as error:
        raise ApiError(500, str(error), code="engine_failed") from None
    except Refused as error:
        raise ApiError(400, str(error), code="invalid_value") from None


class SentenceForm:
    """How POST /complete-sentence tells a generation. Streamed, its last event is the unstreamed answer."""

    def __init__(self, generation: Generation):
        self.generation = generation

    def event(self, choice: Choice, delta: Delta) -> SentenceEvent:
        optional = {"logprobs": delta.logprobs} if self.generation.request.wants_logprobs else {}
        optional |= {"finish_reason": delta.finish_reason} if delta.finish_reason else {}
        return SentenceEvent(index=choice.index, text=delta.text, **optional)

    def last_events(self) -> list[SentenceAnswer]:
        return [self.answer()]

    def answer(self) -> SentenceAnswer:
        choices, request = self.generation.choices, self.generation.request
        texts, first = [choice.prompt.text + choice.whole.text for choice in choices], choices[0].whole
        optional = {"completed_sentences": texts} if request.n > 1 else {}
        optional |= {"logprobs": first.logprobs} if request.wants_logprobs else {}
        return SentenceAnswer(
            completed_sentence=texts[0],
            finish_reason=first.finish_reason,
            slides=first.slides,
            checkpoint=self.generation.checkpoint,
            usage=self.generation.usage,
            **optional,
        )


class CompletionForm:
    """How POST /v1/completions tells a generation: OpenAI's text_completion object."""

    def __init__(self, generation: Generation):
        self.generation = generation
        self._wants_usage = generation.request.stream_options.include_usage
        self._created = int(time.time())

    def event(self, choice: Choice, delta: Delta) -> CompletionAnswer:
        return self._object([self._choice(choice, delta)], **({"usage": None} if self._wants_usage else {}))

    def last_events(self) -> list[CompletionAnswer]:
        return [self._object([], usage=self.generation.usage)] if self._wants_usage else []

    def answer(self) -> CompletionAnswer:
        choices = [self._choice(choice, choice.whole) for choice in self.generation.choices]
        return self._object(choices, usage=self.generation.usage)

    def _object(self, choices: list[CompletionChoice], **usage: Usage | None) -> CompletionAnswer:
        return CompletionAnswer(
            id=f"cmpl-{request_id.get()}",
            object="text_completion",
            created=self._created,
            model=self.generation.service.run.name,
            system_fingerprint=self.generation.checkpoint,
            choices=choices,
            **usage,
        )

    def _choice(self, choice: Choice, delta: Delta) -> CompletionChoice:
        return CompletionChoice(
            index=choice.index,
            text=delta.text,
            logprobs=delta.logprobs if self.generation.request.wants_logprobs else None,
            finish_reason=delta.finish_reason,
            slides=delta.slides,
        )


Form = SentenceForm | CompletionForm


async def whole(form: Form) -> JSONResponse:
    """The answer, once all of it is there."""
    async for _ in form.generation.deltas():
        pass
    return await run_in_threadpool(lambda: answer(form.answer()))


async def events(form: Form) -> AsyncIterator[str]:
    """The data of each server-sent event; an error on the way is one of them."""
    try:
        async for choice, delta in form.generation.deltas():
            if delta.text or delta.notes or delta.finish_reason:
                yield await _beside(len(delta.notes), lambda: _json(form.event(choice, delta)))  # noqa: B023
        for event in form.last_events():
            yield _json(event)
    except ApiError as error:
        yield _json(error.body)
    yield "[DONE]"


async def _beside(size: int, work: Callable, *arguments):
    """What the work gives; if it is a lot, done beside the event loop, which answers others meanwhile."""
    return await run_in_threadpool(work, *arguments) if size > MUCH else work(*arguments)


def _json(event: BaseModel) -> str:
    return json.dumps(event.model_dump(exclude_unset=True))  # in ASCII: some clients take U+2028 for the end of a line
