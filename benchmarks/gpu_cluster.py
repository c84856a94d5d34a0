"""A whole recipe on LocalCUDACluster and on pandas: are the rows equal, what does it take?

    python benchmarks/gpu_cluster.py [--copies 40] [--folder gpu-run]

Needs a card, cudf, dask-cuda. Prints one JSON line a step; what fails is a line too.
"""

from __future__ import annotations

import argparse
import json
import time
import traceback
from pathlib import Path
from typing import Any

TASKS = ["nemotron-cc"]


def emit(**line: Any) -> None:
    print(json.dumps(line, default=str), flush=True)


def documents(folder: Path, copies: int) -> Path:
    data = Path(__file__).parents[1] / "examples" / "data" / "articles-en.jsonl"
    rows = []
    for line in data.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    rows = [row for row in rows if isinstance(row.get("text"), str) and row["text"]]
    path = folder / "in.jsonl"
    with path.open("w", encoding="utf-8") as out:
        for copy in range(copies):
            for row in rows:
                text = f"Copy {copy}. {row['text']}"
                out.write(json.dumps({"id": f"{row['id']}-{copy}", "text": text}) + "\n")
    return path


def once(folder: Path, source: Path, url: str, device: str, client: Any) -> dict[str, Any]:
    from nemo_sdg.pipelines.recipe import Recipe
    from nemo_sdg.pipelines.run import run

    recipe = Recipe(
        tasks=TASKS,
        input=[str(source)],
        endpoint=url,
        model="offline-extractive",
        tokenizer="bundled",
        device=device,
        concurrency=64,
        partition_size="256KB",
        yes=True,
    )
    began = time.perf_counter()
    result = run(recipe, folder / device, client=client)
    return {"seconds": round(time.perf_counter() - began, 2), "counts": result.counts}


def compare(folder: Path) -> None:
    import pyarrow.dataset as ds

    for task in sorted(p.name for p in (folder / "cpu" / "data").iterdir() if p.is_dir()):
        sides = []
        for device in ("cpu", "gpu"):
            table = ds.dataset(folder / device / "data" / task, format="parquet").to_table()
            keys = [name for name in ("id", "segment_id") if name in table.column_names]
            sides.append(table.sort_by([(key, "ascending") for key in keys]).to_pylist())
        differs = sum(a != b for a, b in zip(*sides, strict=False))
        emit(step="equal", task=task, rows=[len(s) for s in sides], differ=differs)
        if differs:
            first = next((a, b) for a, b in zip(*sides, strict=False) if a != b)
            emit(
                step="first difference", task=task, cpu=str(first[0])[:800], gpu=str(first[1])[:800]
            )


def memory_used() -> int:
    import cupy

    free, total = cupy.cuda.runtime.memGetInfo()
    return int(total - free)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--copies", type=int, default=10)
    parser.add_argument("--folder", type=Path, default=Path("gpu-run"))
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    source = documents(given.folder, given.copies)
    from distributed import Client

    from nemo_sdg.pipelines.offline import offline_endpoint

    with offline_endpoint(None) as url:
        try:
            from distributed import LocalCluster

            with (
                LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster,
                Client(cluster) as client,
            ):
                emit(step="cpu", **once(given.folder, source, url, "cpu", client))
        except Exception:  # noqa: BLE001 - every step tells how it ended
            emit(step="cpu", failed=traceback.format_exc()[-3000:])
        try:
            from dask_cuda import LocalCUDACluster

            with (
                LocalCUDACluster(
                    n_workers=1,
                    threads_per_worker=1,
                    rmm_pool_size="4GB",
                    enable_cudf_spill=True,
                    dashboard_address=None,
                ) as cluster,
                Client(cluster) as client,
            ):
                emit(step="gpu", **once(given.folder, source, url, "gpu", client))
                emit(step="memory", device_bytes=list(client.run(memory_used).values()))
        except Exception:  # noqa: BLE001 - every step tells how it ended
            emit(step="gpu", failed=traceback.format_exc()[-3000:])
    try:
        compare(given.folder)
    except Exception:  # noqa: BLE001
        emit(step="compare", failed=traceback.format_exc()[-2000:])


if __name__ == "__main__":
    main()
