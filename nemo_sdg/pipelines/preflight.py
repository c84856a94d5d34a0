"""Is the endpoint what the run needs? Asked before anything is spent.

    preflight(endpoint, tasks, tokenizer)     # raises what the user has to mend
    check(endpoint)                           # what a server offers, for `nemo-sdg check`

`preflight` reads the list of models and sends nothing that costs; `check` sends five short
requests.
"""

from __future__ import annotations

import difflib
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nemo_sdg.errors import (
    AnswerError,
    BadRequest,
    ConnectionFailed,
    CredentialError,
    EndpointError,
    MalformedReply,
    RequestError,
    RequestTimeout,
    Unauthorized,
    UnknownModel,
)
from nemo_sdg.llm.client import Client
from nemo_sdg.llm.endpoint import Endpoint
from nemo_sdg.llm.offers import ServedModel
from nemo_sdg.llm.request import Reply, Request, Sampling, chat
from nemo_sdg.llm.retry import RetryPolicy
from nemo_sdg.tasks.task import FlowTask, Task
from nemo_sdg.text.tokens import Tokenizer

_NO_ROUTE = (404, 405, 501)
_MOST_NAMES = 8


@dataclass(frozen=True, kw_only=True)
class Preflight:
    """What an endpoint says about itself.

    Attributes:
        models: names of the models it serves, None where it does not tell.
        context_tokens: context window of the model, None where it does not tell.
        needed_tokens: the largest window that a task needs.
    """

    models: tuple[str, ...] | None
    context_tokens: int | None
    needed_tokens: int


def preflight(
    endpoint: Endpoint, tasks: Sequence[Task | FlowTask], tokenizer: Tokenizer | None
) -> Preflight:
    """Check address, key, model and context window with one or two requests that cost nothing.

    A server without a list of models, or too busy to send it, is accepted.

    Args:
        endpoint: where the run will ask.
        tasks: what it will ask; none: window and model are looked at by themselves.
        tokenizer: measures the prompts of tasks without a budget; None: they are not looked at.

    Raises:
        CredentialError: a key that is named is not set, or the key is refused.
        EndpointError: nothing answers, the model is not served, its window is too small.
    """
    with Client(endpoint) as client:
        served = _served(client, endpoint)
    needed, neediest = _needed(tasks, tokenizer)
    if served is None:
        return Preflight(models=None, context_tokens=None, needed_tokens=needed)
    names = tuple(model.name for model in served)
    if endpoint.model and names and endpoint.model not in names:
        raise EndpointError(_not_served(endpoint, names))
    lengths = {model.name: model.context_length for model in served}
    window = lengths.get(endpoint.model)
    if window is not None and neediest is not None and window < needed:
        raise EndpointError(
            f"{endpoint.model} at {endpoint.url} has a context window of {window:,} tokens, and "
            f"the task {neediest.name} needs {needed:,} for prompt and answer: "
            f"{_way_to_need_less(neediest)}, or serve the model with a larger window"
        )
    return Preflight(models=names, context_tokens=window, needed_tokens=needed)


def worker_preflight(endpoint: Endpoint) -> None:
    """Look the key up and reach the endpoint from this process; run it on every worker.

    Raises:
        CredentialError: the key is not set where the worker runs, or is refused.
        EndpointError: the endpoint cannot be reached from there.
    """
    try:
        with Client(endpoint) as client:
            _served(client, endpoint)
    except (CredentialError, EndpointError) as error:
        raise type(error)(f"worker on {socket.gethostname()}: {error}") from None


def _served(client: Client, endpoint: Endpoint) -> list[ServedModel] | None:
    """Return the models, None where the server lives and does not tell."""
    try:
        return client.models()
    except Unauthorized as error:
        raise CredentialError(_refused(endpoint, error)) from None
    except (ConnectionFailed, RequestTimeout) as error:
        raise EndpointError(_unreachable(endpoint, error)) from None
    except MalformedReply:
        raise EndpointError(
            f"what answers at {endpoint.url} does not speak the OpenAI protocol: is the address "
            "right, up to and including /v1?"
        ) from None
    except RequestError as error:
        if error.status in _NO_ROUTE and not endpoint.url.endswith("/v1"):
            _look_below(endpoint)
        return None


def _look_below(endpoint: Endpoint) -> None:
    """Raise `EndpointError` when the API stands one level below the address."""
    below = endpoint.replace(url=endpoint.url + "/v1")
    try:
        with Client(below) as client:
            client.models()
    except RequestError:
        return
    raise EndpointError(f"there is no API at {endpoint.url}, but at {below.url}: use that address")


def _refused(endpoint: Endpoint, error: RequestError) -> str:
    if endpoint.api_key_file:
        given = f"the key in {endpoint.api_key_file}"
    elif endpoint.api_key_env:
        given = f"the key in the variable {endpoint.api_key_env}"
    elif endpoint.key():
        given = "the key found in the environment"
    else:
        given = "a request without a key; name the variable that holds one with --api-key-env NAME"
    return f"{endpoint.url} refuses {given} (HTTP {error.status})"


def _unreachable(endpoint: Endpoint, error: RequestError) -> str:
    reason = str(error).rpartition(": ")[2] or type(error).__name__
    return (
        f"nothing answers at {endpoint.url} ({reason}): start the server, mend the address, or use "
        "--endpoint offline, the built-in endpoint"
    )


def _not_served(endpoint: Endpoint, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(endpoint.model, names, n=_MOST_NAMES, cutoff=0.0)
    more = f", and {len(names) - len(near)} more" if len(names) > len(near) else ""
    return (
        f"{endpoint.url} does not serve the model {endpoint.model!r}; it serves "
        f"{', '.join(near)}{more}"
    )


def _needed(
    tasks: Sequence[Task | FlowTask], tokenizer: Tokenizer | None
) -> tuple[int, Task | FlowTask | None]:
    """Return the largest window that a task needs, and the task."""
    sizes = [(_window(task, tokenizer), task) for task in tasks]
    return max(sizes, key=lambda size: size[0], default=(0, None))


def _way_to_need_less(task: Task | FlowTask) -> str:
    own = task.sampling.max_output_tokens if isinstance(task, Task) else None
    if task.budget is not None and (own or 0) <= task.budget.max_output_tokens:
        return "lower its budget (max_input_tokens, max_output_tokens)"
    ways = ["lower max_input_tokens of its budget"] if task.budget else []
    ways += [f"lower max_output_tokens of its sampling ({own:,})"] if own else []
    ways += [] if task.budget else ["shorten its prompt"]
    return ", ".join(ways)


def _window(task: Task | FlowTask, tokenizer: Tokenizer | None) -> int:
    output = task.budget.max_output_tokens if task.budget else 0
    if isinstance(task, Task):
        output = max(output, task.full_sampling.max_output_tokens or 0)
    if task.budget is not None:
        return task.budget.max_input_tokens + output
    if tokenizer is None or not isinstance(task, Task):
        return output
    bare = task.request(dict.fromkeys(task.variables, ""))
    return tokenizer.chat_tokens(list(bare.messages)) + output


# --- what a server offers -------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """What `check` found. Features are "yes", "no: why" or "ignored"."""

    url: str
    models: tuple[str, ...] | None
    model: str
    context_tokens: int | None
    key: str
    answer: str
    latency_s: float
    features: dict[str, str]


_QUESTION = "Answer with one short sentence: what is a river?"
_SHORT = Sampling(temperature=0.5, top_p=None, max_output_tokens=48)
_SCHEMA = {
    "type": "object",
    "properties": {"word": {"type": "string"}},
    "required": ["word"],
    "additionalProperties": False,
}


def check(endpoint: Endpoint) -> CheckReport:
    """Ask a server what it can do: five requests of at most 48 tokens.

    Without a model in `endpoint` the first one served is asked.

    Raises:
        CredentialError, EndpointError: as `preflight`; or it gives no answer at all.
    """
    with Client(endpoint, retry=RetryPolicy(max_tries=2)) as client:
        served = _served(client, endpoint)
        names = None if served is None else tuple(m.name for m in served)
        model = endpoint.model or (names[0] if names else "")
        if not model:
            raise EndpointError(f"{endpoint.url} does not list its models: name one with --model")
        if names and model not in names:
            raise EndpointError(_not_served(endpoint, names))
        plain = Request(model=model, messages=chat(None, _QUESTION), sampling=_SHORT)
        started = time.perf_counter()
        answer = _answer(client, endpoint, plain)
        latency_s = time.perf_counter() - started
        counts = _counts(client.endpoint.replace(model=model))
        features = {
            "seed": _try(client, plain.stamped(model=model, seed=7), lambda reply: True),
            "log-probabilities": _try(client, _with(plain, logprobs=1), _has_logprobs),
            "JSON schema": _try(client, _with(plain, schema=_SCHEMA), _fits_schema),
            "token counts": counts,
        }
    with Client(endpoint.replace(stream=True), retry=RetryPolicy(max_tries=2)) as streaming:
        features["streaming"] = _try(streaming, plain, lambda reply: bool(reply.choices))
    lengths = {m.name: m.context_length for m in served or ()}
    return CheckReport(
        url=endpoint.url,
        models=names,
        model=model,
        context_tokens=lengths.get(model),
        key="accepted" if endpoint.key() else "none given, none asked for",
        answer=_text(answer),
        latency_s=latency_s,
        features=features,
    )


def _answer(client: Client, endpoint: Endpoint, request: Request) -> Reply:
    try:
        return client.complete(request)
    except Unauthorized as error:
        raise CredentialError(_refused(endpoint, error)) from None
    except UnknownModel as error:
        raise EndpointError(
            f"{endpoint.url} does not know the model {request.model!r}, or the address is not "
            f"the API's ({error})"
        ) from None
    except RequestError as error:
        raise EndpointError(f"{endpoint.url} gives no answer: {error}") from None


def _text(reply: Reply) -> str:
    try:
        return reply.text
    except AnswerError as error:
        return f"({error})"


def _with(request: Request, **changes: Any) -> Request:
    return Request(
        model=request.model,
        messages=request.messages,
        sampling=request.sampling.replace(**changes),
    )


def _try(client: Client, request: Request, shows: Any) -> str:
    """Tell whether a server takes a request, and whether the answer shows what was asked for."""
    try:
        reply = client.complete(request)
    except BadRequest as error:
        return f"no: {error}"
    except RequestError as error:
        return f"unclear: {error}"
    return "yes" if shows(reply) else "ignored"


def _has_logprobs(reply: Reply) -> bool:
    return reply.choices[0].logprobs is not None


def _fits_schema(reply: Reply) -> bool:
    import json

    try:
        found = json.loads(reply.choices[0].text)
    except ValueError:
        return reply.choices[0].finish_reason == "length"  # JSON that was cut is JSON
    return isinstance(found, dict) and isinstance(found.get("word"), str)


def _counts(endpoint: Endpoint) -> str:
    try:
        with Client(endpoint) as client:
            return "no" if client.tokenize_counts(["a"]) is None else "yes"
    except RequestError as error:
        return f"no: {error}"
