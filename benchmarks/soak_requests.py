"""Random requests of the soak, with all that a server offers, and what its answers hold."""

import asyncio
import json
import random
from dataclasses import dataclass, field

import httpx

from gpt2_mlx.corpus.source import find
from gpt2_mlx.generation.scheduler import CHUNK

# The routes that answer with texts, and the field that each has for the prompt.
CHAT = "/v1/chat/completions"
ROUTES = {"/complete-sentence": "text", "/v1/completions": "prompt", CHAT: "messages"}
CUT_OFF = {"superseded", "timeout"}  # the finish reasons of texts that depend on when they were asked for
# How a request may be made special; of each row one is chosen. A field that a route does not have is left out.
WAYS: list[list[dict]] = [
    [{"max_tokens": n} for n in (1, 8, 24, 60)],
    [{"temperature": t} for t in (0, 0.7, 1.0, 1.5)],
    [{}, {"top_k": 0}, {"top_k": 5}, {"top_p": 0.8, "top_k": 0}, {"min_p": 0.05}],
    [
        {},
        {},
        {"repetition_penalty": 1.3},
        {"presence_penalty": 1.2},
        {"frequency_penalty": 0.7},
        {"logit_bias": {"11": 4}},
    ],
    [{}, {}, {"stop": "e"}, {"stop": ["\n", "on", ", "]}],
    [{}, {"n": 2}, {"n": 4}],
    [{}, {"logprobs": 0}, {"logprobs": 3}],
    [{"stream": False}, {"stream": True, "stream_options": {"include_usage": True}}],
    [{}, {}, {"echo": True}],
    [{}, {}, {"seed": 7}, {"seed": 2**62}],
    [{}, {}, {"whole_sentence": True}],
    [
        *[{}] * 3,
        {"structured_outputs": {"regex": "[a-z ]{3,30}"}},
        {"structured_outputs": {"choice": ["yes", "no", "it may be"]}},
        {"structured_outputs": {"grammar": 'root ::= "(" root ")" | [0-9]+'}},
        {"response_format": {"type": "json_object"}},
        {"structured_outputs": {"json": {"type": "array", "items": {"type": "integer"}, "maxItems": 4}}},
    ],
]


def closed(**properties: dict) -> dict:
    """The schema of an object with these properties and no other."""
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


SCHEMAS = [
    closed(name={"type": "string", "maxLength": 30}, age={"type": "integer", "minimum": 0, "maximum": 130}),
    closed(
        mood={"enum": ["glad", "sad", None, 3]},
        at={"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
        sure={"type": "boolean"},
    ),
    {
        "type": "array",
        "items": closed(id={"type": "string", "pattern": "^[A-Z]{2}-[0-9]{1,4}$"}),
        "minItems": 1,
        "maxItems": 3,
    },
]


@dataclass(frozen=True)
class Offer:
    """What a server lets requests ask for."""

    models: list[str]  # adapters among them
    checkpoints: list[str]
    fields: dict[str, set[str]]  # of each route that answers with texts
    card: dict = field(default_factory=dict)

    @classmethod
    async def of(cls, http: httpx.AsyncClient) -> "Offer":
        models, card, told = [(await http.get(path)).json() for path in ("/v1/models", "/card", "/openapi.json")]
        fields = {}
        for route in ROUTES.keys() & told["paths"].keys():
            body = told["paths"][route]["post"]["requestBody"]["content"]["application/json"]["schema"]
            fields[route] = set(told["components"]["schemas"][body["$ref"].rpartition("/")[2]]["properties"])
        hello = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}
        if CHAT in fields and (await http.post(CHAT, json=hello)).status_code == 400:  # the model has no chat template
            del fields[CHAT]
        names = [checkpoint["name"] for checkpoint in card["checkpoints"]]
        return cls([model["id"] for model in models["data"]], names, fields, card)

    def any_request(self, pick: random.Random) -> tuple[str, dict]:
        """A route and a body for it. Prompts begin alike, so that the prefix cache has what to find."""
        route = pick.choice(sorted(self.fields))
        body = {name: value for row in WAYS for name, value in pick.choice(row).items() if name in self.fields[route]}
        if pick.random() < 0.15 and body.get("n", 1) == 1:  # of several texts an answer may tell one reason
            body |= pick.choice([{"supersede": pick.choice("abc")}, {"timeout": pick.choice([0.01, 0.1, 9.0])}])
        if "model" in self.fields[route]:
            body["model"] = pick.choice(self.models)
        if pick.random() < 0.1 and body.get("model", self.models[0]) == self.models[0]:  # an adapter is a checkpoint
            body["checkpoint"] = pick.choice(self.checkpoints)
        if route == CHAT and "logprobs" in body:
            body |= {"logprobs": True, "top_logprobs": body["logprobs"]}
        return route, body | {ROUTES[route]: _prompt(route, pick)}

    def conversations(self, n: int, pick: random.Random) -> list[dict]:
        """Bodies of completions whose prompts begin alike, in places that are no cuts of the prefix cache too."""
        prompts, bodies = [[]], []
        longest, n_vocab = self.card["block_size"] - 8, self.card["vocab_size"]
        for i in range(n):
            begin = pick.choice(prompts)
            begin = begin[: pick.choice([len(begin), len(begin), CHUNK, CHUNK + 1, 2 * CHUNK])]
            more = pick.choices(range(min(n_vocab, 50_000)), k=pick.choice([1, 20, CHUNK - 1, CHUNK, CHUNK + 1]))
            prompts.append((begin + more)[:longest])
            params = {"max_tokens": pick.choice([1, 2, 5]), "temperature": pick.choice([0, 1.0]), "seed": i}
            bodies.append({"prompt": prompts[-1], "logprobs": 1} | params)
        return bodies


def _prompt(route: str, pick: random.Random) -> object:
    text = find("shakespeare").files[0].read_text()[: pick.choice([9, 100, 400, 700, 1500])]
    text += pick.choice(["", "\n\nKING:\n", " the", f" {pick.random()}"])
    if route == CHAT:
        return [{"role": "user", "content": text}]
    return [text, "To be"] if route == "/v1/completions" and pick.random() < 0.1 else text


async def texts_of(http: httpx.AsyncClient, route: str, body: dict) -> list[dict]:
    """The texts of an answer, each with "text" and "finish_reason"; unstreamed ones of OpenAI's with more.

    A request comes again when it is told to.

    Raises:
        ValueError: the answer is an error.
    """
    while (response := await http.post(route, json=body)).status_code == 429:
        await asyncio.sleep(float(response.headers["retry-after"]))
    if response.status_code != 200:
        raise ValueError(f"{response.status_code} {response.text[:300]} to {json.dumps(body)[:500]}")
    if not body.get("stream"):
        return _texts(response.json(), body)
    events = [json.loads(line[6:]) for line in response.text.splitlines() if line[:7] == "data: {"]
    for event in events:
        if "error" in event:
            raise ValueError(f"{event['error']['message']} to {json.dumps(body)[:500]}")
    return _joined([text for event in events for text in _texts(event, body)])


def _texts(answer: dict, body: dict) -> list[dict]:
    if "choices" in answer:
        usage = answer.get("usage") or {}
        return [
            {
                "index": choice["index"],
                "text": choice.get("text") or (choice.get("message") or choice.get("delta") or {}).get("content") or "",
                "finish_reason": choice.get("finish_reason"),
                "logprobs": choice.get("logprobs"),
                "tokens": usage.get("completion_tokens"),  # of all texts
            }
            for choice in answer["choices"]
        ]
    if "completed_sentence" in answer:
        if body.get("stream"):  # the last event says again what came before it
            return []
        told = answer.get("completed_sentences", [answer["completed_sentence"]])
        reason = answer["finish_reason"]
        return [{"index": i, "text": text, "finish_reason": reason} for i, text in enumerate(told)]
    return [{"index": answer["index"], "text": answer["text"], "finish_reason": answer.get("finish_reason")}]


def _joined(pieces: list[dict]) -> list[dict]:
    texts: dict[int, dict] = {}
    for piece in pieces:
        text = texts.setdefault(piece["index"], {"index": piece["index"], "text": "", "finish_reason": None})
        text["text"] += piece["text"]
        text["finish_reason"] = piece["finish_reason"] or text["finish_reason"]
    return [texts[index] for index in sorted(texts)]
