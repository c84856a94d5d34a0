"""Where requests go, and that the key is found where DESIGN 6 says and seen nowhere else."""

from __future__ import annotations

import base64
import html
import json
import pickle
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import pytest

from nemo_sdg.errors import ConfigurationError, CredentialError
from nemo_sdg.llm.endpoint import DEFAULT_KEY_ENV, DIALECTS, Endpoint
from nemo_sdg.llm.request import Request, Sampling, chat
from nemo_sdg.llm.transport import AsyncTransport, BlockingTransport
from nemo_sdg.llm.usage import Usage

SECRET = "sk-test-secret"
LOCAL = "http://localhost:8000/v1"


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (DEFAULT_KEY_ENV, "OPENAI_API_KEY", "NVIDIA_API_KEY", "MY_KEY"):
        monkeypatch.delenv(name, raising=False)


# --- addresses ---------------------------------------


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (LOCAL, LOCAL),
        (LOCAL + "/", LOCAL),
        (LOCAL + "/chat/completions", LOCAL),
        (LOCAL + "/completions/", LOCAL),
        (LOCAL + "/embeddings", LOCAL),
        (LOCAL + "/models", LOCAL),
        ("https://gateway.example/team-a/v1", "https://gateway.example/team-a/v1"),
        ("http://[::1]:8000/v1", "http://[::1]:8000/v1"),
    ],
)
def test_an_address_is_brought_to_one_form(given: str, kept: str) -> None:
    endpoint = Endpoint(url=given)
    assert endpoint.url == kept
    assert endpoint == Endpoint(url=kept)
    assert hash(endpoint) == hash(Endpoint(url=kept))


@pytest.mark.parametrize(
    "given",
    ["", "localhost:8000", "ftp://host/v1", "http://", "http://host:99999/v1", "http://[::1/v1"],
)
def test_what_is_no_address_is_told_with_the_remedy(given: str) -> None:
    with pytest.raises(ConfigurationError, match="`offline`"):
        Endpoint(url=given)


def test_a_password_in_the_address_is_refused_and_not_repeated() -> None:
    with pytest.raises(ConfigurationError) as caught:
        Endpoint(url=f"http://user:{SECRET}@host/v1")
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "is_loopback", "is_local", "limit"),
    [
        ("http://localhost/v1", True, True, 256),
        ("http://127.0.0.1:8000/v1", True, True, 256),
        ("http://[::1]:8000/v1", True, True, 256),
        ("http://10.1.2.3/v1", False, True, 256),
        ("http://gpu-node-7:8000/v1", False, True, 256),
        ("http://model.internal/v1", False, True, 256),
        ("https://8.8.8.8/v1", False, False, 32),
        ("https://api.openai.com/v1", False, False, 32),
    ],
)
def test_hosts(url: str, is_loopback: bool, is_local: bool, limit: int) -> None:
    endpoint = Endpoint(url=url)
    assert (endpoint.is_loopback, endpoint.is_local) == (is_loopback, is_local)
    assert endpoint.limit == limit
    assert endpoint.replace(concurrency=7).limit == 7


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="vllm"):
        Endpoint(url=LOCAL, kind="vlm")
    with pytest.raises(ConfigurationError, match="at least 1"):
        Endpoint(url=LOCAL, concurrency=0)


@pytest.mark.parametrize(
    ("url", "kind", "field", "sends_top_k"),
    [
        ("https://api.openai.com/v1", "auto", "max_completion_tokens", False),
        (LOCAL, "auto", "max_tokens", True),
        (LOCAL, "vllm", "max_tokens", True),
        (LOCAL, "nim", "max_tokens", True),
        (LOCAL, "tgi", "max_tokens", False),
        (LOCAL, "openai", "max_completion_tokens", False),
    ],
)
@pytest.mark.fault(9)
@pytest.mark.fault(10)
def test_each_kind_of_server_gets_the_fields_it_knows(
    url: str, kind: str, field: str, sends_top_k: bool
) -> None:
    dialect = Endpoint(url=url, kind=kind).dialect
    assert dialect.max_tokens_field == field
    assert ("top_k" not in dialect.unsupported) is sends_top_k


@pytest.mark.fault(10)
def test_newer_models_get_their_own_name_of_the_limit_and_no_null() -> None:
    def check(body: bytes) -> None:
        assert b'"max_tokens"' not in body
        assert b'"max_completion_tokens":5' in body
        assert b"null" not in body

    sampling = Sampling(max_output_tokens=5, top_p=None)
    request = Request(messages=chat(None, "x"), model="m", sampling=sampling)
    dialect = Endpoint(url="https://api.openai.com/v1").dialect
    check(request.body(max_tokens_field=dialect.max_tokens_field, unsupported=dialect.unsupported))
    with pytest.raises(AssertionError):  # what the predecessor sent to every server
        check(b'{"model":"m","max_tokens":5,"stop":null,"seed":0}')


def test_own_exceptions_add_to_those_of_the_kind() -> None:
    endpoint = Endpoint(url=LOCAL, kind="openai", unsupported=frozenset({"seed"}))
    assert {"seed", "top_k"} <= endpoint.dialect.unsupported
    assert set(DIALECTS) >= {"generic", "vllm", "nim", "tgi", "openai"}


def test_cost_is_unknown_without_both_prices() -> None:
    usage = Usage(input_tokens=1_000_000, output_tokens=500_000)
    assert Endpoint(url=LOCAL).cost(usage) is None
    assert Endpoint(url=LOCAL, price_in=1.0).cost(usage) is None
    assert Endpoint(url=LOCAL, price_in=1.0, price_out=4.0).cost(usage) == pytest.approx(3.0)


# --- the key ---------------------------------------


@pytest.mark.row("M15")
@pytest.mark.row("M14")
def test_no_key_is_fine_until_the_server_says_otherwise() -> None:
    endpoint = Endpoint(url=LOCAL)
    assert endpoint.key() is None
    assert "Authorization" not in endpoint.request_headers()


@pytest.mark.row("M15")
def test_a_variable_that_was_named_must_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def check(make_key: Any) -> None:
        with pytest.raises(CredentialError, match="MY_KEY"):
            make_key()

    endpoint = Endpoint(url=LOCAL, api_key_env="MY_KEY")
    monkeypatch.setenv(DEFAULT_KEY_ENV, "the-default-one")
    check(endpoint.key)
    monkeypatch.setenv("MY_KEY", "  ")
    check(endpoint.key)
    # A client that falls back silently would send another key than the one that was named.
    with pytest.raises(pytest.fail.Exception):
        check(lambda: "the-default-one")
    monkeypatch.setenv("MY_KEY", f" {SECRET}\n")
    assert endpoint.key() == SECRET
    assert endpoint.request_headers()["Authorization"] == f"Bearer {SECRET}"


@pytest.mark.row("M15")
def test_order_of_the_keys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("from-the-file\n")
    for name in (DEFAULT_KEY_ENV, "OPENAI_API_KEY", "MY_KEY"):
        monkeypatch.setenv(name, name)
    host = "https://api.openai.com/v1"
    assert Endpoint(url=host, api_key_file=str(file), api_key_env="MY_KEY").key() == "from-the-file"
    assert Endpoint(url=host, api_key_env="MY_KEY").key() == "MY_KEY"
    assert Endpoint(url=host).key() == DEFAULT_KEY_ENV
    monkeypatch.delenv(DEFAULT_KEY_ENV)
    assert Endpoint(url=host).key() == "OPENAI_API_KEY"


@pytest.mark.parametrize(
    ("url", "key"),
    [
        ("https://api.openai.com/v1", "openai"),
        ("https://integrate.api.nvidia.com/v1", "nvidia"),
        ("https://openai.com.evil.example/v1", None),
        ("https://notapi.openai.com/v1", None),
        ("https://evilnvidia.com/v1", None),
        ("https://openrouter.ai/api/v1", None),
        (LOCAL, None),
    ],
)
@pytest.mark.row("M15")
def test_a_vendors_key_goes_to_the_vendor_alone(
    url: str, key: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "openai")
    monkeypatch.setenv("NVIDIA_API_KEY", "nvidia")
    assert Endpoint(url=url).key() == key


def test_a_key_file_that_is_missing_or_empty_is_told(tmp_path: Path) -> None:
    with pytest.raises(CredentialError, match="cannot be read"):
        Endpoint(url=LOCAL, api_key_file=str(tmp_path / "none")).key()
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(CredentialError, match="empty"):
        Endpoint(url=LOCAL, api_key_file=str(tmp_path / "empty")).key()


def test_headers_are_read_from_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = Endpoint(url=LOCAL, headers={"x-team": "red", "x-api-key": "$MY_KEY"})
    with pytest.raises(CredentialError, match="x-api-key"):
        endpoint.request_headers()
    monkeypatch.setenv("MY_KEY", SECRET)
    headers = endpoint.request_headers()
    assert (headers["x-team"], headers["x-api-key"]) == ("red", SECRET)
    assert endpoint.replace(model="m").headers == endpoint.headers


def test_a_key_written_into_a_header_is_refused() -> None:
    with pytest.raises(ConfigurationError) as caught:
        Endpoint(url=LOCAL, headers={"Authorization": f"Bearer {SECRET}"})
    assert SECRET not in str(caught.value)


@pytest.mark.row("F1")
@pytest.mark.row("M15")
def test_the_key_is_nowhere_but_in_the_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", SECRET)
    endpoint = Endpoint(url=LOCAL, api_key_env="MY_KEY", headers={"x-api-key": "$MY_KEY"})
    endpoint.request_headers()

    def check(made: Any) -> None:
        assert SECRET not in repr(made)
        assert SECRET.encode() not in pickle.dumps(made)

    check(endpoint)
    with pytest.raises(AssertionError):  # a client object that holds its key
        check({"base_url": LOCAL, "api_key": SECRET})
    assert pickle.loads(pickle.dumps(endpoint)).key() == SECRET


def test_scrub_takes_out_every_secret_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", SECRET)
    monkeypatch.setenv("OTHER", "other-secret")
    monkeypatch.setenv("ed", "harmless")
    endpoint = Endpoint(url=LOCAL, api_key_env="MY_KEY", headers={"a": "$OTHER", "b": "red"})
    text = f"Bearer {SECRET} and other-secret, harmless"
    assert endpoint.scrub(text) == "Bearer [key] and [key], harmless"
    monkeypatch.delenv("MY_KEY")
    assert "other-secret" not in endpoint.scrub(text)


# --- what cannot be a key, and secrets that are no key ---------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        f"{SECRET}-1\n{SECRET}-2\n".encode(),
        f"{SECRET}-1 {SECRET}-2".encode(),
        f"\u201c{SECRET}\u201d".encode(),
        f"{SECRET}\x07".encode(),
        f"{SECRET}\x00{SECRET}".encode(),
        SECRET.encode("utf-16"),
        b"\xe9" + SECRET.encode(),
    ],
)
@pytest.mark.row("F1")
@pytest.mark.row("M15")
def test_what_cannot_be_a_key_is_refused_and_not_shown(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_bytes(content)
    endpoint = Endpoint(url=LOCAL, api_key_file=str(file))

    def check(headers: Any) -> None:
        with pytest.raises(CredentialError) as caught:
            headers()
        assert str(file) in str(caught.value)
        error: BaseException | None = caught.value
        while error is not None:
            assert "test-secret" not in f"{error} {error!r} {vars(error)}"
            error = None if error.__suppress_context__ else error.__cause__ or error.__context__

    def stripping() -> dict[str, str]:
        return {"Authorization": f"Bearer {file.read_bytes().strip()!r}"}

    check(endpoint.request_headers)
    check(lambda: BlockingTransport(endpoint))
    with pytest.raises(pytest.fail.Exception):
        check(stripping)
    told = f"Illegal header value {b'Bearer ' + content.strip()!r}"
    assert content.isascii() is False or "test-secret" not in endpoint.scrub(told)


def test_a_mark_before_the_key_is_no_part_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "key").write_bytes(f"\ufeff{SECRET}\r\n".encode())
    assert Endpoint(url=LOCAL, api_key_file=str(tmp_path / "key")).key() == SECRET
    monkeypatch.setenv("MY_KEY", f"\u2018{SECRET}\u2019")
    with pytest.raises(CredentialError, match=r"MY_KEY holds .*typographic quotes"):
        Endpoint(url=LOCAL, api_key_env="MY_KEY").key()


@pytest.mark.row("F1")
def test_scrub_knows_a_secret_in_every_form(monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "sk/te+st=\"sec\\ret'&<x>"
    monkeypatch.setenv("MY_KEY", secret)
    scrub = Endpoint(url=LOCAL, api_key_env="MY_KEY").scrub

    def check(hide: Any) -> None:
        for text in (
            repr(f"Bearer {secret}"),
            repr(f"Bearer {secret}".encode()),
            json.dumps({"key": secret}),
            json.dumps({"body": json.dumps({"key": secret})}),
            json.dumps(secret).replace("/", r"\/"),
            quote(secret),
            quote_plus(secret),
            quote(secret, safe="").lower(),
            html.escape(secret),
        ):
            assert "ret" not in hide(text)

    check(scrub)
    with pytest.raises(AssertionError):
        check(lambda text: text.replace(secret, "[key]"))


@pytest.mark.parametrize(
    "name",
    ["X-Auth-Token", "Cookie", "api-key", "Ocp-Apim-Subscription-Key", "x-client-secret",
     "Proxy-Authorization", "X-Password", "AUTHORIZATION"],
)  # fmt: skip
def test_a_secret_in_any_header_comes_from_a_variable(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigurationError, match=rf"{name}: \$THE_VARIABLE") as caught:
        Endpoint(url=LOCAL, headers={name: SECRET})
    assert SECRET not in str(caught.value)
    monkeypatch.setenv("MY_KEY", SECRET)
    for value, sent in (
        ("$MY_KEY", SECRET),
        ("${MY_KEY}", SECRET),
        ("Bearer $MY_KEY", f"Bearer {SECRET}"),
    ):
        endpoint = Endpoint(url=LOCAL, headers={name: value})
        assert endpoint.request_headers()[name] == sent
        assert SECRET not in repr(endpoint) and SECRET not in endpoint.scrub(f"{name}: {sent}")
    monkeypatch.setenv("MY_KEY", f"{SECRET}\r\nX-More: 1")
    with pytest.raises(CredentialError, match=name) as refused:
        Endpoint(url=LOCAL, headers={name: "$MY_KEY"}).request_headers()
    assert SECRET not in str(refused.value)


def test_a_header_that_is_no_secret_may_stand_there() -> None:
    headers = {"X-Author": "me", "X-Team": "red team", "X-Max-Tokens": "5", "X-Price": "$5.00"}
    assert headers.items() <= Endpoint(url=LOCAL, headers=headers).request_headers().items()
    with pytest.raises(ConfigurationError, match="X-Team"):
        Endpoint(url=LOCAL, headers={"X-Team": "red\r\nHost: b"})


@pytest.mark.parametrize(
    "proxy",
    [f"http://u:{SECRET}@proxy:3128", f"http://{SECRET}@proxy:3128", f"http://u:{SECRET}#a@p:1",
     f"u:{SECRET}@proxy:3128", f"http://u:{SECRET}$MY_KEY@proxy:3128", "proxy:3128"],
)  # fmt: skip
@pytest.mark.row("F1")
def test_a_password_in_the_proxy_address_is_refused_and_not_shown(proxy: str) -> None:
    with pytest.raises(ConfigurationError, match="proxy") as caught:
        Endpoint(url=LOCAL, proxy=proxy)
    assert SECRET not in str(caught.value)


@pytest.mark.row("F1")
def test_the_proxys_password_comes_from_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "p@ss/word#1"
    for given, value in (
        ("http://u:$MY_KEY@proxy:3128", secret),
        ("http://u:${MY_KEY}@proxy:3128", secret),
        ("$MY_KEY", f"http://u:{quote(secret, safe='')}@proxy:3128"),
    ):
        endpoint = Endpoint(url="http://host/v1", proxy=given)
        monkeypatch.delenv("MY_KEY", raising=False)
        with pytest.raises(CredentialError, match="MY_KEY"):
            BlockingTransport(endpoint)
        monkeypatch.setenv("MY_KEY", value)
        assert endpoint.proxy_address() == f"http://u:{quote(secret, safe='')}@proxy:3128"
        for transport in (BlockingTransport, AsyncTransport):
            transport(endpoint)
        login = base64.b64encode(f"u:{secret}".encode()).decode()
        text = f"{endpoint!r} {pickle.dumps(endpoint)!r} " + endpoint.scrub(
            f"{endpoint.proxy_address()} Basic {login} {secret!r}"
        )
        assert secret not in text and quote(secret) not in text and login not in text
    monkeypatch.setenv("MY_KEY", f"http://u:{SECRET}@proxy:port")
    with pytest.raises(CredentialError) as caught:
        Endpoint(url=LOCAL, proxy="$MY_KEY").proxy_address()
    assert SECRET not in str(caught.value)
    assert Endpoint(url=LOCAL, proxy="http://proxy:3128").proxy_address() == "http://proxy:3128"


def test_what_follows_the_path_of_an_address_is_not_cut_off_silently() -> None:
    for tail in ("?api-version=2025", "#x"):
        with pytest.raises(ConfigurationError, match="/openai/v1"):
            Endpoint(url=f"https://x.openai.azure.com/openai/v1{tail}")


def test_the_password_of_the_usual_proxy_variables_is_hidden(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", f"http://u:{SECRET}@proxy:3128")
    monkeypatch.setenv("NO_PROXY", "localhost,[::1")
    assert Endpoint(url=LOCAL).scrub(f"no way to u:{SECRET}@proxy") == "no way to u:[key]@proxy"
