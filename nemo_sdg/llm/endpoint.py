"""An endpoint: where requests go, what it understands, and where its key is found.

    Endpoint(url="http://localhost:8000/v1", model="llama-3.1-8b", api_key_env="MY_KEY")

An `Endpoint` is plain data that travels in task graphs, so it holds the name of the variable or
file with the API key, never the key. Each process looks the key up for itself.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

from nemo_sdg.checks import check_fields
from nemo_sdg.errors import ConfigurationError, CredentialError
from nemo_sdg.llm import credentials
from nemo_sdg.llm.usage import Usage

DEFAULT_KEY_ENV = "NEMO_SDG_API_KEY"
VENDOR_KEY_ENV = {"api.openai.com": "OPENAI_API_KEY", "nvidia.com": "NVIDIA_API_KEY"}
"""Vendor variables are read for the vendor's own hosts (and their subdomains) only."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Dialect:
    """How a kind of server differs from the plain protocol. A new kind is a new value below."""

    max_tokens_field: str = "max_tokens"
    unsupported: frozenset[str] = frozenset()


DIALECTS: Mapping[str, Dialect] = {
    "generic": Dialect(),
    "vllm": Dialect(),
    "nim": Dialect(),
    "tgi": Dialect(unsupported=frozenset({"top_k"})),
    "openai": Dialect(
        max_tokens_field="max_completion_tokens",
        unsupported=frozenset({"top_k", "min_p", "repetition_penalty", "chat_template_kwargs"}),
    ),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Timeouts:
    """Seconds. Time that a request waits on our side counts for none of them."""

    connect_s: float = 10.0
    first_byte_s: float = 120.0
    between_bytes_s: float = 60.0
    total_s: float = 600.0

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """An OpenAI-compatible server.

    Attributes:
        url: base address up to and including `/v1`; the part `/chat/completions` is cut off.
        model: the model asked where a task or row names none.
        kind: a key of `DIALECTS`, or "auto": by host, else generic.
        api_key_env, api_key_file: where the key stands; an unset variable is an error.
        concurrency: requests in flight over all workers, fixed; None: found by goodput.
        max_concurrency: the most that is tried where it is found; None: 256, 32 on the internet.
        requests_per_minute, tokens_per_minute: what the endpoint allows over all workers; tokens
            of input and output together, by its own count. None: any number.
        weight: share of the requests where several endpoints serve the same model.
        headers: sent with every request; a value `$NAME` or `Bearer $NAME` is read from the
            environment. One whose name looks like a secret (token, key, cookie) must be.
        unsupported: further body fields never to be sent (such as `seed`).
        stream: ask for streamed answers; they are put together again.
        hedge: share of the requests of a run that may be sent twice, of the last stragglers those
            that take longer than 95 % did; 0: none. Of several replicas that of the first counts.
        group_prefixes: send requests whose first so many bytes (of the prompt: system prompt,
            beginning of the user's) are equal next to one another, and to the same of several
            replicas; 0: do not. That of the first counts as well.
        proxy: address of an HTTP proxy; None: the usual variables, for hosts beyond loopback.
            A password, or the whole address, is read from the environment: `$NAME`.
        ca_file: certificates of a private authority; TLS is always verified.
        price_in, price_out: money per million tokens; None: unknown, never 0.
        allow_http_key: send a key over plain http to a host beyond loopback, where others on the
            way can read it.
    """

    url: str
    model: str = ""
    kind: str = "auto"
    api_key_env: str | None = None
    api_key_file: str | None = None
    concurrency: int | None = None
    max_concurrency: int | None = None
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    weight: float = 1.0
    headers: Mapping[str, str] | tuple[tuple[str, str], ...] = ()
    unsupported: frozenset[str] = frozenset()
    stream: bool = False
    hedge: float = 0.0
    group_prefixes: int = 0
    timeouts: Timeouts = Timeouts()
    proxy: str | None = None
    ca_file: str | None = None
    price_in: float | None = None
    price_out: float | None = None
    allow_http_key: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        try:
            parts = urlsplit(self.url)
            is_address = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:  # a port that is no number, a bracket that is not closed
            is_address = None
        if not is_address:
            raise ConfigurationError(
                f"{self.url!r} is no address such as http://localhost:8000/v1; "
                "without a server use `offline`, the built-in endpoint"
            )
        if parts.username or parts.password:
            raise ConfigurationError("an endpoint address must not carry a password; use a key")
        if parts.query or parts.fragment:
            raise ConfigurationError(
                "an endpoint address ends with its path: what stands from `?` or `#` on cannot be "
                "sent along. Azure needs no api-version at https://NAME.openai.azure.com/openai/v1"
            )
        path = parts.path.rstrip("/")
        for tail in ("/chat/completions", "/completions", "/embeddings", "/models"):
            path = path.removesuffix(tail)
        object.__setattr__(self, "url", f"{parts.scheme}://{parts.netloc}{path}")
        if self.kind != "auto" and self.kind not in DIALECTS:
            raise ConfigurationError(
                f"endpoint kind {self.kind!r} is unknown; known are auto, {', '.join(DIALECTS)}"
            )
        object.__setattr__(self, "headers", tuple(dict(self.headers).items()))  # hashable
        object.__setattr__(self, "unsupported", frozenset(self.unsupported))
        for name, value in dict(self.headers).items():
            credentials.check_header(name, value)
        if self.proxy is not None:
            credentials.check_proxy(self.proxy)
        for name in ("concurrency", "max_concurrency"):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise ConfigurationError(f"{name} must be at least 1, not {number}")
        if not 0 <= self.hedge <= 1:
            raise ConfigurationError(f"hedge must be a share from 0 to 1, not {self.hedge}")
        if self.group_prefixes < 0:
            raise ConfigurationError(f"group_prefixes must not be below 0: {self.group_prefixes}")
        for name in ("requests_per_minute", "tokens_per_minute", "weight"):
            number = getattr(self, name)
            if number is not None and not number > 0:
                raise ConfigurationError(f"{name} must be above 0, not {number}")

    def replace(self, **changes: Any) -> Endpoint:
        """Return a copy with these fields changed."""
        return replace(self, **changes)

    @property
    def host(self) -> str:
        """The host name, without port."""
        return urlsplit(self.url).hostname or ""

    @property
    def is_loopback(self) -> bool:
        """True where requests never leave this machine."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def is_readable(self) -> bool:
        """True where others could read what is sent, and nobody has allowed a key to go there."""
        is_plain = urlsplit(self.url).scheme == "http"
        return is_plain and not self.is_loopback and not self.allow_http_key

    @property
    def is_local(self) -> bool:
        """True for loopback, private addresses and names without a public domain."""
        try:
            return ipaddress.ip_address(self.host).is_private
        except ValueError:
            return "." not in self.host or self.host.endswith((".local", ".internal", ".lan"))

    @property
    def dialect(self) -> Dialect:
        """What the kind of server understands, with this endpoint's own exceptions."""
        kind = self.kind
        if kind == "auto":
            kind = "openai" if self.host == "api.openai.com" else "generic"
        known = DIALECTS[kind]
        return replace(known, unsupported=known.unsupported | self.unsupported)

    @property
    def limit(self) -> int:
        """The most requests in flight over all workers together."""
        return self.concurrency or self.max_concurrency or (256 if self.is_local else 32)

    @property
    def is_priced(self) -> bool:
        """True where it is known what a call costs."""
        return self.price_in is not None and self.price_out is not None

    def cost(self, usage: Usage) -> float | None:
        """Return the price of a call, None where a price is not known (never 0)."""
        if self.price_in is None or self.price_out is None:
            return None
        return (usage.input_tokens * self.price_in + usage.output_tokens * self.price_out) / 1e6

    def key(self) -> str | None:
        """Look the API key up in this process; None where none is configured.

        Raises:
            CredentialError: the variable or file that was named is not there, is empty, or holds
                what cannot be a key: several words or lines, characters beyond ASCII.
        """
        found, where = self._found_key()
        return None if found is None else credentials.checked_key(found, where)

    def _found_key(self) -> tuple[str | None, str]:
        """Return the key as it stands there, and in words where that is."""
        if self.api_key_file:
            where = f"the API key file {self.api_key_file}"
            return credentials.read_key_file(self.api_key_file), where
        if self.api_key_env:
            found = os.environ.get(self.api_key_env, "").strip()
            if not found:
                raise CredentialError(
                    f"the variable {self.api_key_env} was named for the API key and is not set; "
                    f"export it where the workers start, or leave the option out"
                )
            return found, f"the variable {self.api_key_env}"
        names = [v for k, v in VENDOR_KEY_ENV.items() if ("." + self.host).endswith("." + k)]
        for name in (DEFAULT_KEY_ENV, *names):
            if found := os.environ.get(name, "").strip():
                return found, f"the variable {name}"
        return None, ""

    def request_headers(self) -> dict[str, str]:
        """Return the headers of a request, the key among them: never to be logged.

        Raises:
            CredentialError: as `key`; a variable that a header names is not set; or a secret would
                go over plain http to a host beyond loopback.
        """
        headers = {"Content-Type": "application/json", "User-Agent": "nemo-sdg"}
        if key := self.key():
            headers["Authorization"] = f"Bearer {key}"
        for name, value in dict(self.headers).items():
            headers[name] = credentials.header_value(name, value)
        if (key or any(credentials.secrets_of_headers(dict(self.headers)))) and self.is_readable:
            raise CredentialError(credentials.readable_key(self.host))
        return headers

    def proxy_address(self) -> str | None:
        """Return the proxy with its password looked up in this process: never to be logged."""
        return None if self.proxy is None else credentials.proxy_address(self.proxy)

    def scrub(self, text: str) -> str:
        """Return the text without key, secret header values and proxy passwords, also escaped."""
        secrets = list(credentials.secrets_of_headers(dict(self.headers)))
        secrets += credentials.secrets_of_proxies(self.proxy)
        with contextlib.suppress(CredentialError):  # no key, nothing to hide
            # As it stands there: a key that is refused must not be shown either.
            secrets.append(self._found_key()[0] or "")
        return credentials.scrubbed(text, secrets)
