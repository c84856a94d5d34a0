"""How long does a run take around its requests, beyond what a bare Dask cluster takes?

    python benchmarks/start_stop.py [--quick]

`run()` of 100 rows on two workers that it starts and stops itself, against a server that answers
at once; beside it a `LocalCluster` of two workers with a client, started and stopped. One line:
medians of the run's time without that from the first request to the last, and of the bare cluster.
"""

from __future__ import annotations

import time

from rig import work
from rig.raw_server import raw_server, seen
from rig.report import emit, median, options, repeats

from nemo_sdg.pipelines.run import run

ROWS = 100
WORKERS = 2


def main() -> None:
    given = options(__doc__)
    bare, around = [], []
    with raw_server() as url, work.folder() as folder:
        source = work.write_documents(folder / "in.jsonl", work.prompts(ROWS))
        recipe = work.recipe(
            source, url, rows=ROWS // WORKERS, slots=64, workers=WORKERS, model="raw"
        )
        for number in range(repeats(given.quick)):
            began = time.monotonic()
            with work.cluster(WORKERS):
                pass
            bare.append(time.monotonic() - began)
            seen(url)
            began = time.monotonic()
            assert run(recipe, folder / f"run-{number}").exit_code == 0
            ended = time.monotonic()
            log = seen(url)
            around.append(ended - began - (log["last"] - log["first"]))
    beyond_s = median(around, 2) - median(bare, 2)
    emit(
        "start_stop",
        met={"at most 4 s beyond the bare cluster": beyond_s <= 4.0},
        rows=ROWS,
        workers=WORKERS,
        repeats=len(bare),
        run_s=median(around, 2),
        bare_cluster_s=median(bare, 2),
        beyond_s=round(beyond_s, 2),
    )


if __name__ == "__main__":
    main()
