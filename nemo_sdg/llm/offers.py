"""What an endpoint offers beside answers: models, token counts, embeddings. Values, no I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from nemo_sdg.errors import BadRequest, EndpointError, MalformedReply, UnknownModel
from nemo_sdg.llm.endpoint import Endpoint
from nemo_sdg.llm.request import Reply, Request, Sampling

EMBEDDINGS_PER_REQUEST = 128
_CONTEXT_FIELDS = ("max_model_len", "context_length", "max_context_length", "context_window")
_GREEDY = Sampling(temperature=0.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class ServedModel:
    """A model that an endpoint offers; `context_length` in tokens, None where it does not say."""

    name: str
    context_length: int | None = None


def only_model(models: Sequence[ServedModel], endpoint: Endpoint) -> str:
    """Return the name of the one model there is; raise `EndpointError` where there are others."""
    if len(models) == 1:
        return models[0].name
    names = ", ".join(m.name for m in models[:5]) or "none"
    raise EndpointError(f"name the model: {endpoint.url} offers {len(models)} ({names})")


def embedding_requests(texts: Sequence[str]) -> list[Request]:
    """Return the requests for the embeddings of these texts, in order."""
    step = EMBEDDINGS_PER_REQUEST
    return [
        Request(
            messages=tuple({"role": "user", "content": text} for text in texts[i : i + step]),
            sampling=_GREEDY,
            kind="embedding",
        )
        for i in range(0, len(texts), step)
    ]


def read_models(body: Any) -> list[ServedModel]:
    """Read the answer of `/models`."""
    data = body.get("data") if isinstance(body, Mapping) else body
    if not isinstance(data, list) or not all(isinstance(m, Mapping) for m in data):
        raise MalformedReply("the list of models cannot be read")
    found = []
    for model in data:
        lengths = (model.get(name) for name in _CONTEXT_FIELDS)
        length = next((n for n in lengths if isinstance(n, int)), None)
        found.append(ServedModel(name=str(model.get("id", "")), context_length=length))
    return found


def tokenize_bodies(text: str, model: str) -> list[bytes]:
    """Return the question in vLLM's form and in TGI's."""
    return [
        orjson.dumps({"model": model, "prompt": text, "add_special_tokens": False}),
        orjson.dumps({"inputs": text}),
    ]


def has_no_route(error: BadRequest) -> bool:
    """Tell whether the server has no tokenize route at all."""
    return isinstance(error, UnknownModel) or error.status == 405


def read_count(body: Any) -> int | None:
    """Read the answer of `/tokenize`, None where it is of neither form."""
    if isinstance(body, Mapping) and isinstance(body.get("count"), int):
        return int(body["count"])
    if isinstance(body, list):  # TGI; its begin and end marks cover no text
        spans = [(t.get("start", 0), t.get("stop", 0)) for t in body if isinstance(t, Mapping)]
        if len(spans) == len(body) and all(isinstance(n, int) for span in spans for n in span):
            return sum(1 for start, stop in spans if stop > start)
    return None


def vectors_of(replies: Sequence[Reply], count: int) -> list[tuple[float, ...]]:
    """Return the vectors of all replies; raise `MalformedReply` unless there are `count`."""
    vectors = [vector for reply in replies for vector in reply.embeddings]
    if len(vectors) != count:
        raise MalformedReply(f"{count} embeddings were asked for, {len(vectors)} came")
    return vectors
