"""Keys, passwords and other secrets: where they stand, what they may look like, and hiding them.

A setting never holds a secret itself but the name of the variable that does: `$NAME`, `${NAME}`,
or in a header `Bearer $NAME`. No error of this module repeats a value.
"""

from __future__ import annotations

import base64
import contextlib
import html
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from urllib.parse import quote, quote_plus, unquote, urlsplit

from nemo_sdg.errors import ConfigurationError, CredentialError

HIDDEN = "[key]"

_VARIABLE = re.compile(r"(?P<scheme>[A-Za-z]+ )?\$(?:\{(?P<braced>\w+)\}|(?P<plain>\w+))")
_SECRET_NAME = re.compile(
    r"auth(?!or$|or[^i])|token(?!s)|secret|cookie|passw|credential|signature|api[-_]?key"
    r"|(?:^|[-_])key$",
    re.IGNORECASE,
)
_KEY = re.compile(r"[!-~]+")
_HEADER_VALUE = re.compile(r"[ -~]*")
LEAST_PIECE = 8
"""Shorter pieces of a malformed key are not hidden: they would be common words."""


def checked_key(found: str, where: str) -> str:
    """Return a key as it can stand in a header.

    Raises:
        CredentialError: it holds white space, control or non-ASCII characters; `where` names it.
    """
    if _KEY.fullmatch(found):
        return found
    if len(found.split()) > 1:
        fault = "more than one word or line: leave the one key there"
    elif not found.isascii():
        fault = "characters that are not ASCII, such as typographic quotes: copy the key again"
    else:
        fault = "control characters: copy the key again"
    raise CredentialError(f"{where} holds {fault}")


def read_key_file(path: str) -> str:
    """Return what a key file holds, without the blanks around it.

    Raises:
        CredentialError: it is not there, is empty, or is no UTF-8 text.
    """
    try:
        found = Path(path).expanduser().read_bytes().decode("utf-8-sig").strip()
    except OSError as error:
        raise CredentialError(
            f"the API key file cannot be read: {error.strerror}: {path}"
        ) from None
    except UnicodeDecodeError:
        raise CredentialError(f"the API key file {path} is no text: save it as UTF-8") from None
    if not found:
        raise CredentialError(f"the API key file {path} is empty")
    return found


def readable_key(host: str) -> str:
    """Return the words for a key that others could read on its way to a host."""
    return (
        f"the key would go to {host} over plain http, where others on the way can read it: use an "
        "https:// address, or a tunnel that ends at 127.0.0.1; in a network that you trust allow "
        "it with --allow-http-key (allow_http_key in a recipe or an Endpoint). A server that needs "
        "no key: unset the variable"
    )


# --- headers --------------------------------------------------------------------------------------


def check_header(name: str, value: str) -> None:
    """Refuse a header that would hold a secret itself, or characters no header can hold.

    Raises:
        ConfigurationError: the remedy is in the message.
    """
    if not _HEADER_VALUE.fullmatch(value):
        raise ConfigurationError(
            f"the header {name} holds a line break or characters that are not ASCII"
        )
    if _SECRET_NAME.search(name) and not _VARIABLE.fullmatch(value):
        raise ConfigurationError(
            f"the header {name} must not hold a key itself: put it into a variable and "
            f"write {name}: $THE_VARIABLE"
        )


def header_value(name: str, value: str) -> str:
    """Return the value to send; `$NAME` is looked up in this process.

    Raises:
        CredentialError: the variable is not set, or cannot be the value of a header.
    """
    match = _VARIABLE.fullmatch(value)
    if match is None:
        return value
    found = _looked_up(match, f"the header {name} reads {value}")
    if not _HEADER_VALUE.fullmatch(found):
        raise CredentialError(
            f"the header {name} reads {value}, which holds a line break or characters that are "
            "not ASCII"
        )
    return (match["scheme"] or "") + found


def _looked_up(match: re.Match[str], reader: str) -> str:
    found = os.environ.get(match["braced"] or match["plain"], "").strip()
    if not found:
        raise CredentialError(f"{reader}, which is not set")
    return found


# --- the proxy ------------------------------------------------------------------------------------


def check_proxy(proxy: str) -> None:
    """Refuse a proxy address that holds a password itself, or is no address.

    Raises:
        ConfigurationError: the remedy is in the message, the address is not.
    """
    if _VARIABLE.fullmatch(proxy):
        return
    try:
        parts = urlsplit(proxy)
        is_address = parts.scheme and parts.hostname and parts.port != 0
    except ValueError:
        is_address = None
    secret = (
        parts.password or (parts.username if parts.password is None else "") if is_address else ""
    )
    if secret and not _VARIABLE.fullmatch(secret):
        raise ConfigurationError(
            "the proxy address must not hold a password itself: put it into a variable and write "
            "http://user:$THE_VARIABLE@host:port, or the whole address as $THE_VARIABLE"
        )
    if not is_address or (not secret and "@" in proxy):
        raise ConfigurationError(
            "the proxy is no address such as http://host:3128; with a password write "
            "http://user:$THE_VARIABLE@host:3128"
        )


def proxy_address(proxy: str) -> str:
    """Return the proxy's address with its variables looked up: never to be logged.

    Raises:
        CredentialError: a variable is not set, or holds no address.
    """
    if match := _VARIABLE.fullmatch(proxy):
        found = _looked_up(match, f"the proxy reads {proxy}")
        try:
            is_address = bool(urlsplit(found).hostname) and urlsplit(found).port != 0
        except ValueError:
            is_address = False
        if not is_address:
            raise CredentialError(
                f"the proxy reads {proxy}, which holds no address such as http://host:3128"
            )
        return found
    parts = urlsplit(proxy)
    if parts.username is None:
        return proxy
    named = (parts.username, parts.password)
    login = ":".join(_login_part(part) for part in named if part is not None)
    return parts._replace(netloc=f"{login}@{parts.netloc.rpartition('@')[2]}").geturl()


def _login_part(part: str) -> str:
    match = _VARIABLE.fullmatch(part)
    return quote(_looked_up(match, f"the proxy reads {part}"), safe="") if match else part


# --- hiding ---------------------------------------------------------------------------------------


def secrets_of_headers(headers: Mapping[str, str]) -> Iterator[str]:
    """Yield the secrets that headers read from variables."""
    for value in headers.values():
        if match := _VARIABLE.fullmatch(value):
            yield os.environ.get(match["braced"] or match["plain"], "").strip()


def secrets_of_proxies(proxy: str | None) -> Iterator[str]:
    """Yield the passwords of this proxy and of those in the usual variables."""
    given = [v for name, v in os.environ.items() if name.lower().endswith("_proxy")]
    if proxy is not None:
        with contextlib.suppress(CredentialError):  # nothing there to hide
            given.append(proxy_address(proxy))
    for address in given:
        try:
            parts = urlsplit(address)
        except ValueError:
            continue
        user, password = unquote(parts.username or ""), unquote(parts.password or "")
        if password or user:
            yield password or user
            yield base64.b64encode(f"{user}:{password}".encode()).decode()


def scrubbed(text: str, secrets: Iterable[str]) -> str:
    """Return the text without these secrets, however they are escaped there.

    Of a secret of several lines or words each longer piece is hidden too.
    """
    forms: set[str] = set()
    for secret in secrets:
        pieces = [p for p in secret.split() if len(p) >= LEAST_PIECE]
        for piece in filter(None, {secret, *pieces}):
            forms |= _forms(piece)
    for form in sorted(forms, key=len, reverse=True):
        text = text.replace(form, HIDDEN)
    return text


def _forms(secret: str) -> set[str]:
    """Return a secret as it stands in reprs, JSON (also twice over), addresses and HTML."""
    once = json.dumps(secret)[1:-1]
    forms = {secret, once, json.dumps(once)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1]}
    forms |= {repr(secret)[1:-1], repr(secret.encode("utf-8", "surrogateescape"))[2:-1]}
    forms |= {once.replace("/", r"\/"), html.escape(secret), html.escape(secret, quote=False)}
    for safe in ("", "/"):
        for escape in (quote, quote_plus):
            escaped = escape(secret, safe=safe, errors="surrogateescape")
            forms |= {escaped, re.sub(r"%..", lambda m: m[0].lower(), escaped)}
    return forms
