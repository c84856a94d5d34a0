"""Whole recipes on a card: the same rows as on pandas, how much memory, and is it given back?

    python benchmarks/gpu_cluster.py [--copies 8] [--folder gpu-run] [--only equal leak spill]

It needs a card, cudf and dask-cuda; answers come from the built-in endpoint. The clusters are
those that `nemo-sdg run --device cpu` and `--device gpu` start. Prints one JSON line a step; what
fails is a line too.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

TASKS = ["nemotron-cc", "multilingual_qa"]
HELD, HELD_ROWS = 24, 10_000


def emit(**line: Any) -> None:
    print(json.dumps(line, default=str), flush=True)


def documents(folder: Path, copies: int) -> Path:
    rows = []
    for data in sorted((Path(__file__).parents[1] / "examples" / "data").glob("*.jsonl")):
        for line in data.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            if isinstance(row.get("text"), str) and row["text"]:
                rows.append(row)
    path = folder / "in.jsonl"
    with path.open("w", encoding="utf-8") as out:
        for copy in range(copies):
            for row in rows:
                made = {"id": f"{row['id']}-{copy}", "text": f"Copy {copy}. {row['text']}"}
                out.write(json.dumps(made) + "\n")
    return path


def recipe(source: Path, url: str, device: str, seed: int = 0, **options: Any) -> Any:
    from nemo_sdg.pipelines.recipe import Recipe

    return Recipe(
        tasks=options.pop("tasks", TASKS),
        input=[str(source)],
        endpoint=url,
        model="offline-extractive",
        tokenizer="bundled",
        device=device,
        concurrency=64,
        num_samples=40,
        seed=seed,
        yes=True,
        **options,
    )


def once(folder: Path, made: Any, client: Any = None) -> dict[str, Any]:
    from nemo_sdg.pipelines.run import run

    began = time.perf_counter()
    result = run(made, folder, client=client)
    report = json.loads((folder / "run.json").read_text())
    parts = [json.loads(p.read_text()) for p in (folder / "state").rglob("part-*.json")]
    edges = sorted(edge for part in parts for edge in ((part["started"], 1), (part["ended"], -1)))
    at_once = most = 0
    for _, change in edges:
        at_once += change
        most = max(most, at_once)
    return {
        "seconds": round(time.perf_counter() - began, 2),
        "task_seconds": report["task_seconds"],
        "device_bytes": report.get("device_bytes"),
        "counting": report.get("counting"),
        "parts": len(parts),
        "parts_at_once": most,
        "rows": {task: counts["rows"] for task, counts in result.counts.items()},
    }


def equal(folder: Path, source: Path, url: str) -> None:
    """Run the recipe on pandas and on cuDF, each on the cluster that a run starts by itself."""
    emit(step="cpu", **once(folder / "cpu", recipe(source, url, "cpu", workers=8)))
    emit(step="gpu", **once(folder / "gpu", recipe(source, url, "gpu", partition_size="48KB")))
    compare(folder)


def compare(folder: Path) -> None:
    import pyarrow.dataset as ds

    for task in sorted(p.name for p in (folder / "cpu" / "data").iterdir() if p.is_dir()):
        sides, schemas = [], []
        for device in ("cpu", "gpu"):
            data = ds.dataset(folder / device / "data" / task, format="parquet").to_table()
            schemas.append(data.schema)
            rows = data.to_pylist()
            sides.append(sorted(rows, key=lambda row: (str(row["id"]), row.get("segment_id", 0))))
        pairs = [(a, b) for a, b in zip(*sides, strict=False) if a != b]
        emit(
            step="equal",
            task=task,
            rows=[len(side) for side in sides],
            differ=len(pairs),
            same_schema=schemas[0].equals(schemas[1]),
        )
        for a, b in pairs[:1]:
            odd = {k: [str(a[k])[:300], str(b.get(k))[:300]] for k in a if a[k] != b.get(k)}
            emit(step="first difference", task=task, columns=odd)
        if not schemas[0].equals(schemas[1]):
            emit(step="schemas", task=task, cpu=str(schemas[0]), gpu=str(schemas[1]))


def memory() -> dict[str, Any]:
    """Return what a worker holds on its device."""
    import cupy
    from cudf.core.buffer.spill_manager import get_global_manager
    from rmm import statistics

    gc.collect()
    free, total = cupy.cuda.runtime.memGetInfo()
    found, manager = statistics.get_statistics(), get_global_manager()
    return {
        "device_used": int(total - free),
        "in_use": found and found.current_bytes,
        "peak": found and found.peak_bytes,
        "allocations": found and found.total_count,
        "spilled": None if manager is None else str(dict(manager.statistics.spill_totals)),
        "spillable": None if manager is None else sum(b.size for b in manager.buffers()),
    }


def leak(folder: Path, source: Path, url: str) -> None:
    """Run twice, over 20 partitions each, on one worker: what does it hold after each?"""
    from nemo_sdg.llm.endpoint import Endpoint
    from nemo_sdg.pipelines.cluster import open_cluster

    endpoint = Endpoint(url=url, model="offline-extractive", concurrency=64)
    first = recipe(source, url, "gpu", partition_size="48KB", tasks=["distill"])
    with open_cluster(first, endpoint, None, on_gpu=True) as client:
        for seed in (1, 2, 3):
            made = recipe(source, url, "gpu", seed=seed, partition_size="24KB", tasks=["distill"])
            told = once(folder / f"leak{seed}", made, client)
            emit(step="leak", seed=seed, **told, memory=list(client.run(memory).values()))


def hold(number: int) -> tuple[list[int], list[int], dict[str, Any]]:
    """Make a frame, count it, leave the thread as a stage does that waits, and read it again.

    Returns:
        Characters and tokens as found (before and after the wait), as they must be, and where
        tokens were counted.
    """
    import cudf

    from nemo_sdg.stages.waiting import thread_given_back
    from nemo_sdg.text.counted import counting
    from nemo_sdg.text.tokens import load_tokenizer

    tokenizer = load_tokenizer("bundled")
    texts = cudf.Series([f"{number} é"]).repeat(HELD_ROWS).reset_index(drop=True)
    frame = cudf.DataFrame({"text": texts.str.repeat(1000)})
    text = f"{number} é" * 1000
    tokens = HELD_ROWS * int(tokenizer.count([text])[0])
    with counting() as counted:
        before = int(tokenizer.count_column(frame["text"]).sum())
        with thread_given_back():
            time.sleep(6)
        after = int(tokenizer.count_column(frame["text"]).sum())
    characters = int(frame["text"].str.len().sum())
    wanted = [HELD_ROWS * len(text), tokens, tokens]
    return [characters, before, after], wanted, counted.plain()


def spill(folder: Path, source: Path, url: str) -> None:
    """Hold more frames in flight than the pool has room for: are they spilled, and right?"""
    import cudf
    from dask_cuda import LocalCUDACluster
    from distributed import Client

    from nemo_sdg.pipelines.counting import KEY, in_all

    size = HELD_ROWS * 1000 * 4 * HELD
    with (
        LocalCUDACluster(
            n_workers=1,
            threads_per_worker=1,
            rmm_pool_size="256MB",
            rmm_maximum_pool_size="512MB",
            enable_cudf_spill=True,
            cudf_spill_stats=1,
            dashboard_address=None,
        ) as cluster,
        Client(cluster) as client,
    ):
        began = time.perf_counter()
        found = client.gather(client.map(hold, range(HELD), pure=False))
        emit(
            step="spill",
            cudf=cudf.__version__,
            frames=HELD,
            bytes_about=size,
            right=sum(made == wanted for made, wanted, _ in found),
            counted=in_all({KEY: counted} for _, _, counted in found if counted),
            seconds=round(time.perf_counter() - began, 2),
            memory=list(client.run(memory).values()),
        )


STEPS: dict[str, Callable[[Path, Path, str], None]] = {
    "equal": equal,
    "leak": leak,
    "spill": spill,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--copies", type=int, default=8)
    parser.add_argument("--folder", type=Path, default=Path("gpu-run"))
    parser.add_argument("--only", nargs="*", choices=STEPS, default=list(STEPS))
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    source = documents(given.folder, given.copies)
    from nemo_sdg.pipelines.offline import offline_endpoint

    with offline_endpoint(None) as url:
        for name in given.only:
            began = time.perf_counter()
            try:
                STEPS[name](given.folder, source, url)
            except Exception:  # noqa: BLE001 - every step tells how it ended
                emit(step=name, failed=traceback.format_exc()[-3500:])
            emit(step=f"end of {name}", took_s=round(time.perf_counter() - began, 1))


if __name__ == "__main__":
    main()
