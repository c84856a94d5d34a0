"""Further servers that a recipe may name beside its endpoint.

replicas:
- http://node1:8000/v1
- {endpoint: http://node2:8000/v1, weight: 2, concurrency: 128}
fallback: {endpoint: https://api.example.com/v1, model: small, api_key_env: EXAMPLE_KEY}
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from nemo_sdg.llm.endpoint import Endpoint
from nemo_sdg.pipelines.task_spec import File, Number, Part, Whole


class Server(Part):
    """An address, and where it differs from the recipe's endpoint."""

    endpoint: str = Field(min_length=1)
    """Address of an OpenAI-compatible server."""
    model: str = Field(default="")
    """Name of the model, where it is another one than the recipe's."""
    endpoint_kind: str | None = None
    """Kind of server; else that of the recipe."""
    api_key_env: str | None = Field(default=None, min_length=1)
    """Name of the variable with its API key; else that of the recipe, for the same host only."""
    api_key_file: File = None
    """File with its API key."""
    weight: Number = Field(default=1.0, gt=0)
    """Share of the requests, against the other servers' weights; the recipe's endpoint has 1."""
    concurrency: Whole | None = Field(default=None, ge=1)
    """Requests in flight; else that of the recipe."""
    price_in: Number | None = Field(default=None, ge=0)
    """Money per million tokens of prompts; else that of the recipe where the model is the same."""
    price_out: Number | None = Field(default=None, ge=0)
    """Money per million tokens of answers."""

    def endpoint_beside(self, main: Endpoint) -> Endpoint:
        """Return the endpoint; what is not said here is as `main` has it.

        A key goes only to the host it was named for, and a price only with the model.
        """
        there = main.replace(url=self.endpoint, weight=self.weight)
        if there.host != main.host or self.api_key_env or self.api_key_file:
            there = there.replace(api_key_env=self.api_key_env, api_key_file=self.api_key_file)
        if there.host != main.host:
            there = there.replace(headers={})
        if self.model and self.model != main.model:
            there = there.replace(model=self.model, price_in=None, price_out=None)
        given = {
            "kind": self.endpoint_kind,
            "concurrency": self.concurrency,
            "price_in": self.price_in,
            "price_out": self.price_out,
        }
        return there.replace(**{k: v for k, v in given.items() if v is not None})


def _address_alone(value: Any) -> Any:
    return {"endpoint": value} if isinstance(value, str) else value


def _addresses_alone(value: Any) -> Any:
    return [_address_alone(one) for one in value] if isinstance(value, list) else value


Servers = Annotated[list[Server], BeforeValidator(_addresses_alone)]
OneServer = Annotated[Server | None, BeforeValidator(_address_alone)]
