"""Conversations as text: chat templates in Jinja, as `transformers` keeps them in tokenizer_config.json.

A message is a dict with a `role`, one of `ROLES`, and a `content`.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import tiktoken
from tiktoken_ext.openai_public import ENDOFTEXT

from .files import read_json

ROLES = ("system", "user", "assistant")
CONFIG, FILE = "tokenizer_config.json", "chat_template.jinja"  # where other programs keep a template

# Of models that learn here: "user:", the content, an empty line; "assistant:", the answer, <|endoftext|>. White space
# around contents is cut off, so that a prompt's tokens are the same whatever follows it.
OURS = (
    r"{% for message in messages %}{{ message['role'] + ':\n' + (message['content'] | trim) }}"
    r"{{ eos_token if message['role'] == 'assistant' else '\n\n' }}{% endfor %}"
    r"{% if add_generation_prompt %}{{ 'assistant:\n' }}{% endif %}"
)


def read(folder: Path) -> str | None:
    """The chat template of a checkpoint folder, the one named `default` of several.

    None where it has none, or one with tokens that GPT-2 does not have. Raises a ValueError where it cannot be read.
    """
    fields = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    found = fields.get("chat_template")
    if (folder / FILE).is_file():
        found = (folder / FILE).read_text(encoding="utf-8")
    if isinstance(found, list):
        found = {each.get("name"): each.get("template") for each in found if isinstance(each, dict)}.get("default")
    if not isinstance(found, (str, type(None))):
        raise ValueError(f"{folder / CONFIG}: chat_template is {type(found).__name__}; it must be a string")
    added = [token["content"] for token in fields.get("added_tokens_decoder", {}).values()]
    return None if found and any(token in found for token in added if token != ENDOFTEXT) else found


def render(template: str, messages: list[dict[str, str]], answers_next: bool = True) -> str:
    """A conversation as text, up to where the next answer begins, or to its end.

    Raises a ValueError where a message holds <|endoftext|>, by which a template ends an answer, or the template does
    not take the messages.
    """
    from jinja2 import TemplateError  # here, since few need it

    for i, message in enumerate(messages):
        if ENDOFTEXT in message["content"]:
            raise ValueError(f"message {i} holds {ENDOFTEXT}, which ends an answer: leave it out")
    special = {f"{kind}_token": ENDOFTEXT for kind in ("bos", "eos", "unk")}
    try:
        return _compiled(template)(messages=messages, add_generation_prompt=answers_next, **special)
    except (TemplateError, TypeError, ArithmeticError, LookupError, OverflowError) as error:
        raise ValueError(f"the chat template does not take these messages: {error}") from None


@functools.cache
def _compiled(template: str) -> Callable[..., str]:
    """A template as a function. It may come from a hub, so it runs in a sandbox, as in transformers."""
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def complain(message: str) -> NoReturn:
        raise TemplateError(message)

    extensions = ["jinja2.ext.loopcontrols"]
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
    environment.globals["raise_exception"] = complain
    return environment.from_string(template).render


def answers(template: str, messages: list[dict[str, str]]) -> list[tuple[str, bool]]:
    """The parts of a conversation's text, and which of them a model is to say: the assistant's answers and their ends.

    Raises a ValueError as `render`, and where the template does not leave the text before an answer as it is.
    """
    parts, text = [], ""
    for i, message in enumerate(messages):
        if message["role"] == "assistant":
            before, after = render(template, messages[:i]), render(template, messages[: i + 1], answers_next=False)
            if not (before.startswith(text) and after.startswith(before)):
                raise ValueError("the chat template does not tell where answers begin: it changes the text before them")
            parts += [(before[len(text) :], False), (after[len(before) :], True)]
            text = after
    return parts


def encode(encoding: tiktoken.Encoding, text: str) -> list[int]:
    """The ids of a rendered text, in which <|endoftext|> is the token of that name."""
    return encoding.encode(text, allowed_special={ENDOFTEXT}, disallowed_special=())
