"""The forms in which a generation is told, whole or as it comes: ours and OpenAI's."""

import json
import time
from collections.abc import AsyncIterator

from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse

from .answers import CompletionAnswer, CompletionChoice, Receipt, SentenceAnswer, SentenceEvent, Usage, answer
from .choice import Choice, Delta
from .completions import Generation, beside
from .errors import ApiError
from .telemetry import request_id


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
                yield await beside(len(delta.notes), lambda: _json(form.event(choice, delta)))  # noqa: B023
        for event in form.last_events(**await form.generation.receipt()):
            yield _json(event)
    except ApiError as error:
        yield _json(error.body)
    yield "[DONE]"


def _json(event: BaseModel) -> str:
    return json.dumps(event.model_dump(exclude_unset=True))  # in ASCII: some clients take U+2028 for the end of a line
