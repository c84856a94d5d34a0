"""A key goes nowhere where others could read it, however an endpoint is asked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import openai
import pandas as pd
import pytest

from nemo_sdg.errors import CredentialError
from nemo_sdg.llm.client import AsyncClient, Client
from nemo_sdg.llm.endpoint import DEFAULT_KEY_ENV, Endpoint
from nemo_sdg.llm.request import Request, chat
from nemo_sdg.pipelines.preflight import check as check_endpoint
from nemo_sdg.stages.generate import Generate
from nemo_sdg.tasks.task import Task

SECRET = "sk-test-secret"


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (DEFAULT_KEY_ENV, "MY_KEY"):
        monkeypatch.delenv(name, raising=False)


def asks(endpoint: Endpoint) -> dict[str, Callable[[], Any]]:
    """Every way to ask an endpoint, each as one call."""
    request = Request(model="m", messages=chat(None, "hi"))
    frame = pd.DataFrame({"text": ["One. Two."]})
    task = Task(name="own", output="own", prompt="Sum up: {document}", doc="Sum up.")

    async def waited() -> Any:
        async with AsyncClient(endpoint) as client:
            return await client.complete(request)

    def blocking() -> Any:
        with Client(endpoint) as client:
            return client.complete(request)

    return {
        "Client": blocking,
        "AsyncClient": lambda: asyncio.run(waited()),
        "check": lambda: check_endpoint(endpoint),
        "Generate": lambda: Generate(task, endpoint)(frame),
    }


@pytest.mark.row("M15")
@pytest.mark.parametrize("way", ["Client", "AsyncClient", "check", "Generate"])
def test_a_key_does_not_leave_the_machine_in_plain_http(
    way: str, scripted: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", SECRET)
    server = scripted(models=["m"], api_key=SECRET)
    # Linux takes 0.0.0.0 to this machine, and it is no loopback address.
    url = server.url.replace("127.0.0.1", "0.0.0.0")
    for given in ({"api_key_env": "MY_KEY"}, {"headers": {"x-api-key": "$MY_KEY"}}):
        endpoint = Endpoint(url=url, model="m", **given)
        with pytest.raises(CredentialError, match="--allow-http-key") as caught:
            asks(endpoint)[way]()
        assert SECRET not in str(caught.value)
    assert server.log.entries == []
    asks(Endpoint(url=url, model="m", api_key_env="MY_KEY", allow_http_key=True))[way]()
    assert server.log.entries and all(entry.authorized for entry in server.log.entries)


@pytest.mark.parametrize(
    ("url", "is_refused"),
    [
        ("http://gpu-node-7:8000/v1", True),
        ("http://10.1.2.3/v1", True),
        ("https://gpu-node-7:8000/v1", False),
        ("http://localhost:8000/v1", False),
        ("http://[::1]:8000/v1", False),
    ],
)
def test_where_a_key_may_go(url: str, is_refused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "Authorization" not in Endpoint(url=url).request_headers()
    monkeypatch.setenv(DEFAULT_KEY_ENV, SECRET)
    if is_refused:
        with pytest.raises(CredentialError, match=Endpoint(url=url).host):
            Endpoint(url=url).request_headers()
    assert "Authorization" in Endpoint(url=url, allow_http_key=True).request_headers()


def test_an_openai_object_carries_its_key_no_further() -> None:
    url = "http://gpu-node-7:8000/v1"
    for make, client in ((openai.OpenAI, Client), (openai.AsyncOpenAI, AsyncClient)):
        with pytest.raises(CredentialError, match="gpu-node-7"):
            client(make(base_url=url, api_key=SECRET), model="m")
        assert client(make(base_url=url, api_key="EMPTY"), model="m").endpoint.url == url
