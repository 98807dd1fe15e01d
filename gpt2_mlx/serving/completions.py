"""`Generation`: a request on its way to its texts."""

import dataclasses
import secrets
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from starlette.concurrency import run_in_threadpool

from ..generation.outputs import Output
from .answers import Receipt, Usage
from .choice import Choice, Delta, EncodedPrompt, choices_of, usage_of
from .errors import ApiError
from .receipts import Answered
from .schemas import TextRequest
from .service import Service
from .submission import as_api_errors

MUCH = 500  # tokens with their numbers; the event loop stands still for a few milliseconds for fewer


class Generation:
    """One request on its way: `with` ends it when it is left, `deltas` brings what its choices gain.

    Args:
        service: what answers.
        request: what is asked for.
        prompts: those of the request.
        number: tells the order in which requests came; see `AsyncEngine.next_number`.
        timeout: the seconds that are left of the request's.

    Raises:
        ApiError: 429 or 503, the engine does not take it.
    """

    def __init__(
        self,
        service: Service,
        request: TextRequest,
        prompts: list[EncodedPrompt],
        number: int,
        timeout: float | None,
    ):
        self.service = service
        self.request = request
        self.prompts = prompts
        self.began = time.monotonic()
        if request.seed is None:
            self.request = request = request.model_copy(update={"seed": secrets.randbits(63)})
        jobs, self.choices = zip(*choices_of(request, prompts, service.encoding))
        with as_api_errors():
            self._adapter = adapter_of(service, request)
            checkpoint = _checkpoint(service, request, self._adapter)
            service.audits.give_way()
            self.submission = service.engine.submit(list(jobs), checkpoint, number, request.supersede, timeout)
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
        """The name of the checkpoint or the adapter that answers."""
        return self._adapter or self.submission.checkpoint.name

    @property
    def model(self) -> str:
        """The name of the model that answers."""
        return self._adapter or self.service.run.name

    @property
    def usage(self) -> Usage:
        return usage_of(self.prompts, self.choices)

    async def deltas(self) -> AsyncIterator[tuple[Choice, Delta]]:
        """What every choice gains, until all have ended.

        Raises:
            ApiError: 400, 500 or 503, the engine could not go on.
        """
        with as_api_errors():
            async for number, output in self._in_order():
                choice = self.choices[number]
                if choice.is_whole:  # it ended at a stop string, and this waited meanwhile
                    continue
                delta = await beside(len(output.prompt), choice.take, output)
                self._observe(choice, output)
                if delta.finish_reason:
                    self.submission.cancel(number)  # at a stop string the engine would go on
                yield choice, delta

    async def _in_order(self) -> AsyncIterator[tuple[int, Output]]:
        """The outputs; those of a sample wait for the first sample's, which brings their prompt's numbers."""
        waiting: list[tuple[int, Output]] = []
        async for event in self.submission:
            waiting.append(event)
            while ready := next((one for one in waiting if not self.choices[one[0]].must_wait(one[1])), None):
                waiting.remove(ready)
                yield ready
        for event in waiting:  # the first sample was ended before its prompt was read
            yield event

    def _observe(self, choice: Choice, output: Output) -> None:
        """Count the tokens that came, and the time they took."""
        telemetry, now, n_tokens = self.service.telemetry, time.monotonic(), len(output.tokens)
        telemetry.drafted.inc(output.drafted)
        telemetry.accepted.inc(output.accepted)
        if not n_tokens:
            return
        telemetry.completion_tokens.inc(n_tokens)
        if choice.last_at is None:
            telemetry.first_token_seconds.observe(now - self.began)
        else:
            telemetry.token_seconds.observe((now - choice.last_at) / n_tokens)
        choice.last_at = now


def adapter_of(service: Service, request: TextRequest) -> str | None:
    """The adapter that a request names as its model or its checkpoint.

    Raises:
        ApiError: 400, the model is none that is served beside adapters, or the checkpoint is another one.
    """
    adapters, model = service.adapters.folders, getattr(request, "model", None)  # only OpenAI's requests have a model
    if adapters and model not in (None, service.run.name, *adapters):
        allowed = ", ".join([service.run.name, *adapters])
        raise ApiError(400, f"model is {model[:80]!r}; allowed: {allowed}", "model", code="invalid_value")
    if model in adapters and request.checkpoint not in (None, model):
        message = f"model is {model!r}, but checkpoint is {request.checkpoint[:80]!r}; one of them is enough"
        raise ApiError(400, message, "checkpoint", code="invalid_value")
    return next((name for name in (model, request.checkpoint) if name in adapters), None)


def _checkpoint(service: Service, request: TextRequest, adapter: str | None) -> Path | None:
    """The folder of the adapter, or of the checkpoint that a request names.

    Raises:
        ApiError: 400, there is none of that name.
    """
    if adapter:
        return service.adapters.folders[adapter]
    if request.checkpoint is None:
        return None
    folders = service.run.checkpoints()
    if request.checkpoint not in folders:
        allowed = ", ".join([*folders, *service.adapters.folders])
        message = f"checkpoint is {request.checkpoint[:80]!r}; allowed: {allowed}"
        raise ApiError(400, message, "checkpoint", code="invalid_value")
    return folders[request.checkpoint]


async def beside(size: int, work: Callable, *arguments):
    """What the work gives; if it is a lot, done beside the event loop, which answers others meanwhile."""
    return await run_in_threadpool(work, *arguments) if size > MUCH else work(*arguments)
