"""The forms in which a generation is told, whole or as it comes: ours and OpenAI's."""

import json
import time
from collections.abc import AsyncIterator

from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse

from ..tokenizer import token_bytes
from .answers import CompletionAnswer, CompletionChoice, Receipt, SentenceAnswer, SentenceEvent, Usage, answer
from .chat import (
    ChatAnswer,
    ChatChoice,
    ChatDelta,
    ChatEvent,
    ChatLogprobs,
    ChatMessage,
    ChatPart,
    ChatToken,
    ChatTokenChoice,
)
from .choice import Choice, Delta, token_text
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
            model=self.generation.model,
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


class ChatForm:
    """How POST /v1/chat/completions tells a generation: OpenAI's chat.completion object and its chunks."""

    def __init__(self, generation: Generation):
        self.generation = generation
        self._wants_usage = generation.request.stream_options.include_usage
        self._begun: set[int] = set()  # the choices that have had an event
        self._shared = {
            "id": f"chatcmpl-{request_id.get()}",
            "created": int(time.time()),
            "model": generation.model,
            "system_fingerprint": generation.checkpoint,
        }

    def event(self, choice: Choice, delta: Delta) -> ChatEvent:
        role = {} if choice.index in self._begun else {"role": "assistant"}
        self._begun.add(choice.index)
        part = ChatPart(
            index=choice.index,
            delta=ChatDelta(content=delta.text, **role),
            logprobs=self._logprobs(delta),
            finish_reason=delta.finish_reason,
        )
        return self._chunk([part], **({"usage": None} if self._wants_usage else {}))

    def last_events(self, **receipt: Receipt | None) -> list[ChatEvent]:
        usage = {"usage": self.generation.usage} if self._wants_usage else {}
        return [self._chunk([], **usage, **receipt)] if usage or receipt else []

    def answer(self, **receipt: Receipt | None) -> ChatAnswer:
        choices = [self._choice(choice.index, choice.whole) for choice in self.generation.choices]
        usage = self.generation.usage
        return ChatAnswer(object="chat.completion", choices=choices, usage=usage, **self._shared, **receipt)

    def _chunk(self, parts: list[ChatPart], **more: Usage | Receipt | None) -> ChatEvent:
        return ChatEvent(object="chat.completion.chunk", choices=parts, **self._shared, **more)

    def _choice(self, index: int, whole: Delta) -> ChatChoice:
        return ChatChoice(
            index=index,
            message=ChatMessage(role="assistant", content=whole.text, refusal=None),
            logprobs=self._logprobs(whole),
            finish_reason=whole.finish_reason,
            slides=whole.slides,
        )

    def _logprobs(self, delta: Delta) -> ChatLogprobs | None:
        if not self.generation.request.wants_logprobs:
            return None
        content = []
        for token in (note.token for note in delta.notes):
            others = [ChatToken(**self._told(*other)) for other in token.alternatives]
            content.append(ChatTokenChoice(**self._told(token.id, token.logprob), top_logprobs=others))
        return ChatLogprobs(content=content, refusal=None)

    def _told(self, id: int, logprob: float) -> dict:
        encoding = self.generation.service.encoding
        return {"token": token_text(encoding, id), "logprob": logprob, "bytes": list(token_bytes(encoding, id))}


Form = SentenceForm | CompletionForm | ChatForm


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
