"""From a request to its texts, and the two forms in which they are told: ours and OpenAI's."""

import dataclasses
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse

from .answers import (
    CompletionAnswer,
    CompletionChoice,
    PromptTokensDetails,
    Receipt,
    SentenceAnswer,
    SentenceEvent,
    Usage,
    answer,
)
from .choice import Choice, Delta, EncodedPrompt, choices_of
from .errors import ApiError
from .receipts import Answered
from .schemas import TextRequest
from .service import Service
from .submission import as_api_errors
from .telemetry import request_id

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
        if request.seed is None:
            self.request = request = request.model_copy(update={"seed": secrets.randbits(63)})
        jobs, self.choices = zip(*choices_of(request, prompts, service.encoding))
        with as_api_errors():
            checkpoint = _checkpoint(service, request)
            service.audits.give_way()
            self.submission = service.engine.submit(list(jobs), checkpoint, number, request.supersede, request.timeout)
        service.audits.enter()
        service.telemetry.prompt_tokens.inc(self.usage.prompt_tokens)

    def __enter__(self) -> "Generation":
        return self

    def __exit__(self, *_) -> None:
        self.submission.close()
        self.service.audits.leave(self.answered)

    @property
    def answered(self) -> Answered | None:
        """The request and its texts; None if one did not come to its end."""
        if not all(choice.is_whole for choice in self.choices):
            return None
        texts = [choice.record for choice in self.choices]
        prompts = [dataclasses.replace(prompt, notes=None) for prompt in self.prompts]  # these may be large
        return Answered(self.request, prompts, self.submission.checkpoint, texts)

    async def receipt(self) -> dict[str, Receipt | None]:
        """The receipt as a field of the answer, if it is asked for, once all choices have ended."""
        if not self.request.receipt:
            return {}
        answered = self.answered
        return {"receipt": answered and await self.service.receipts.make(answered)}

    @property
    def checkpoint(self) -> str:
        """The name of the checkpoint that answers."""
        return self.submission.checkpoint.name

    @property
    def usage(self) -> Usage:
        prompt, completion = sum(len(p.ids) for p in self.prompts), sum(len(c.ids) for c in self.choices)
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


class SentenceForm:
    """How POST /complete-sentence tells a generation. Streamed, its last event is the unstreamed answer."""

    def __init__(self, generation: Generation):
        self.generation = generation

    def event(self, choice: Choice, delta: Delta) -> SentenceEvent:
        optional = {"logprobs": delta.logprobs} if self.generation.request.wants_logprobs else {}
        optional |= {"finish_reason": delta.finish_reason} if delta.finish_reason else {}
        return SentenceEvent(index=choice.index, text=delta.text, **optional)

    def last_events(self, **receipt: Receipt | None) -> list[SentenceAnswer]:
        return [self.answer(**receipt)]

    def answer(self, **receipt: Receipt | None) -> SentenceAnswer:
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
            **receipt,
        )


class CompletionForm:
    """How POST /v1/completions tells a generation: OpenAI's text_completion object."""

    def __init__(self, generation: Generation):
        self.generation = generation
        self._wants_usage = generation.request.stream_options.include_usage
        self._created = int(time.time())

    def event(self, choice: Choice, delta: Delta) -> CompletionAnswer:
        return self._object([self._choice(choice, delta)], **({"usage": None} if self._wants_usage else {}))

    def last_events(self, **receipt: Receipt | None) -> list[CompletionAnswer]:
        usage = {"usage": self.generation.usage} if self._wants_usage else {}
        return [self._object([], **usage, **receipt)] if usage or receipt else []

    def answer(self, **receipt: Receipt | None) -> CompletionAnswer:
        choices = [self._choice(choice, choice.whole) for choice in self.generation.choices]
        return self._object(choices, usage=self.generation.usage, **receipt)

    def _object(self, choices: list[CompletionChoice], **more: Usage | Receipt | None) -> CompletionAnswer:
        return CompletionAnswer(
            id=f"cmpl-{request_id.get()}",
            object="text_completion",
            created=self._created,
            model=self.generation.service.run.name,
            system_fingerprint=self.generation.checkpoint,
            choices=choices,
            **more,
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
    receipt = await form.generation.receipt()
    return await run_in_threadpool(lambda: answer(form.answer(**receipt)))


async def events(form: Form) -> AsyncIterator[str]:
    """The data of each server-sent event; an error on the way is one of them."""
    try:
        async for choice, delta in form.generation.deltas():
            if delta.text or delta.notes or delta.finish_reason:
                yield await _beside(len(delta.notes), lambda: _json(form.event(choice, delta)))  # noqa: B023
        for event in form.last_events(**await form.generation.receipt()):
            yield _json(event)
    except ApiError as error:
        yield _json(error.body)
    yield "[DONE]"


async def _beside(size: int, work: Callable, *arguments):
    """What the work gives; if it is a lot, done beside the event loop, which answers others meanwhile."""
    return await run_in_threadpool(work, *arguments) if size > MUCH else work(*arguments)


def _json(event: BaseModel) -> str:
    return json.dumps(event.model_dump(exclude_unset=True))  # in ASCII: some clients take U+2028 for the end of a line
