"""`nemo-sdg check` and `nemo-sdg serve-offline`."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import click

from nemo_sdg.errors import EndpointError

if TYPE_CHECKING:
    from nemo_sdg.pipelines.preflight import CheckReport


@click.command()
@click.option("--endpoint", required=True, metavar="URL|offline", help="The server to look at.")
@click.option("--model", default="", help="Model to ask; default: the first one served.")
@click.option("--api-key-env", metavar="NAME", help="Variable with the API key.")
@click.option("--api-key-file", metavar="FILE", help="File with the API key.")
def check(endpoint: str, model: str, api_key_env: str | None, api_key_file: str | None) -> None:
    """See what an endpoint offers: models, key, context window, a short answer, features.

    Sends five requests of at most 48 tokens.
    """
    from nemo_sdg.llm.endpoint import Endpoint
    from nemo_sdg.pipelines.preflight import check as check_endpoint
    from nemo_sdg.pipelines.recipe import OFFLINE

    with contextlib.ExitStack() as stack:
        if endpoint == OFFLINE:
            from nemo_sdg.pipelines.offline import offline_endpoint

            endpoint = stack.enter_context(offline_endpoint())
        _show(
            check_endpoint(
                Endpoint(
                    url=endpoint, model=model, api_key_env=api_key_env, api_key_file=api_key_file
                )
            )
        )


def _show(report: CheckReport) -> None:
    models = "not listed" if report.models is None else ", ".join(report.models)
    window = "not told" if report.context_tokens is None else f"{report.context_tokens:,} tokens"
    lines = {
        "endpoint": report.url,
        "models": models,
        "asked": report.model,
        "key": report.key,
        "context window": window,
        "answer": " ".join(report.answer.split()),
        "latency": f"{report.latency_s:.3f} s",
        **report.features,
    }
    for name, value in lines.items():
        click.echo(f"{name + ':':<20}{value}")


@click.command(name="serve-offline")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8000,
    show_default=True,
    help="Port to listen on; 0 for any free one.",
)
@click.option("--task-file", metavar="FILE", help="Python file whose tasks it answers too.")
def serve_offline(host: str, port: int, task_file: str | None) -> None:
    """Serve the built-in endpoint until interrupted. It is no language model."""
    from nemo_sdg.llm.offline import OFFLINE_MODEL, OfflineServer
    from nemo_sdg.pipelines.offline import rules_of_tasks
    from nemo_sdg.tasks.registry import load_task_file

    if task_file:
        load_task_file(task_file)
    server = OfflineServer(rules_of_tasks(), host=host, port=port)

    def ready(url: str) -> None:
        click.echo(f"{url}  model {OFFLINE_MODEL}  (rules over the text itself, no language model)")

    try:
        server.serve_forever(on_ready=ready)
    except OSError as error:
        raise EndpointError(
            f"cannot listen on {host}:{port}: {error.strerror or error}; "
            "choose another --port or --host"
        ) from None
