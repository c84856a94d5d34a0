"""Make synthetic training text with language models on Dask data frames.

    from nemo_sdg import DocumentDataset, Endpoint, Generate, get_task

    dataset = DocumentDataset.read_json("articles/*.jsonl").with_ids()
    endpoint = Endpoint(url="http://localhost:8000/v1", model="llama-3.1-8b")
    Generate(get_task("distill"), endpoint)(dataset).to_parquet("distilled")

Public names are imported when they are first used: `import nemo_sdg` itself loads next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nemo_sdg.data.dataset import DocumentDataset
    from nemo_sdg.llm.client import AsyncClient, Client
    from nemo_sdg.llm.endpoint import Endpoint, Timeouts
    from nemo_sdg.llm.offline import serve_offline
    from nemo_sdg.llm.request import Reply, Request, Sampling, chat
    from nemo_sdg.llm.scripted import ScriptedEndpoint
    from nemo_sdg.llm.stop_when import StopWhen
    from nemo_sdg.llm.usage import Usage
    from nemo_sdg.pipelines.clean import clean
    from nemo_sdg.pipelines.plan import RunPlan, plan
    from nemo_sdg.pipelines.recipe import Recipe, load_recipe
    from nemo_sdg.pipelines.replay import replay
    from nemo_sdg.pipelines.retry import retry
    from nemo_sdg.pipelines.run import RunResult, preview, run
    from nemo_sdg.stages.base import Sequential, Stage
    from nemo_sdg.stages.generate import Generate
    from nemo_sdg.stages.reshape import Join, Segment
    from nemo_sdg.stages.select import Filter, Modify, Score, ScoreFilter
    from nemo_sdg.tasks.registry import all_tasks, get_task, load_task_file, register
    from nemo_sdg.tasks.task import Budget, FlowTask, Task, flow
    from nemo_sdg.text.tokens import Tokenizer, load_tokenizer

__version__ = "0.1.0"

_PLACES = {
    "nemo_sdg.data.dataset": ("DocumentDataset",),
    "nemo_sdg.llm.client": ("AsyncClient", "Client"),
    "nemo_sdg.llm.endpoint": ("Endpoint", "Timeouts"),
    "nemo_sdg.llm.offline": ("serve_offline",),
    "nemo_sdg.llm.request": ("Reply", "Request", "Sampling", "chat"),
    "nemo_sdg.llm.scripted": ("ScriptedEndpoint",),
    "nemo_sdg.llm.stop_when": ("StopWhen",),
    "nemo_sdg.llm.usage": ("Usage",),
    "nemo_sdg.pipelines.clean": ("clean",),
    "nemo_sdg.pipelines.plan": ("RunPlan", "plan"),
    "nemo_sdg.pipelines.recipe": ("Recipe", "load_recipe"),
    "nemo_sdg.pipelines.replay": ("replay",),
    "nemo_sdg.pipelines.retry": ("retry",),
    "nemo_sdg.pipelines.run": ("RunResult", "preview", "run"),
    "nemo_sdg.stages.base": ("Sequential", "Stage"),
    "nemo_sdg.stages.generate": ("Generate",),
    "nemo_sdg.stages.reshape": ("Join", "Segment"),
    "nemo_sdg.stages.select": ("Filter", "Modify", "Score", "ScoreFilter"),
    "nemo_sdg.tasks.registry": ("all_tasks", "get_task", "load_task_file", "register"),
    "nemo_sdg.tasks.task": ("Budget", "FlowTask", "Task", "flow"),
    "nemo_sdg.text.tokens": ("Tokenizer", "load_tokenizer"),
}
_PLACE_OF = {name: module for module, names in _PLACES.items() for name in names}

__all__ = [
    "AsyncClient",
    "Budget",
    "Client",
    "DocumentDataset",
    "Endpoint",
    "Filter",
    "FlowTask",
    "Generate",
    "Join",
    "Modify",
    "Recipe",
    "Reply",
    "Request",
    "RunPlan",
    "RunResult",
    "Sampling",
    "Score",
    "ScoreFilter",
    "ScriptedEndpoint",
    "Segment",
    "Sequential",
    "Stage",
    "StopWhen",
    "Task",
    "Timeouts",
    "Tokenizer",
    "Usage",
    "all_tasks",
    "chat",
    "clean",
    "flow",
    "get_task",
    "load_recipe",
    "load_task_file",
    "load_tokenizer",
    "plan",
    "preview",
    "register",
    "replay",
    "retry",
    "run",
    "serve_offline",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PLACE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
