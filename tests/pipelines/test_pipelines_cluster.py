"""Which cluster a run gets; the one for GPUs is held against a stand-in for dask-cuda."""

from __future__ import annotations

import os
import sys
import threading
from types import ModuleType, SimpleNamespace
from typing import Any

import dask
import pandas as pd
import pyarrow as pa
import pytest
from dask.utils import parse_timedelta
from distributed import Client, LocalCluster
from distributed.core import Status

from nemo_sdg.errors import ConfigurationError
from nemo_sdg.llm.endpoint import Endpoint
from nemo_sdg.pipelines import cluster
from nemo_sdg.pipelines.job import Job
from nemo_sdg.pipelines.recipe import Recipe


@pytest.fixture
def recipe() -> Recipe:
    return Recipe(tasks=["distill"], input="a.jsonl", endpoint="offline", workers=1)


@pytest.fixture
def endpoint() -> Endpoint:
    return Endpoint(url="http://127.0.0.1:9/v1", model="m", concurrency=2)


def stand_in(monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any]) -> None:
    """Put a dask_cuda in place that starts an ordinary cluster and keeps what it was asked for."""

    def made(*, rmm_pool_size, rmm_maximum_pool_size, enable_cudf_spill, **options: Any) -> Any:
        asked.update(
            pool=(rmm_pool_size, rmm_maximum_pool_size), spill=enable_cudf_spill, **options
        )
        return LocalCluster(processes=False, **options)

    module = ModuleType("dask_cuda")
    module.LocalCUDACluster = made  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "dask_cuda", module)
    monkeypatch.setattr(cluster, "gpu_count", lambda: 4)


@pytest.mark.cluster
def test_gpus_get_a_worker_each_with_a_pool_that_spills(monkeypatch, recipe, endpoint):
    asked: dict[str, Any] = {}
    stand_in(monkeypatch, asked)
    monkeypatch.setattr(cluster, "_leave_signals_alone", os.getpid)  # the worker is this process
    with cluster.open_cluster(recipe, endpoint, None, on_gpu=True) as client:
        workers = client.scheduler_info(n_workers=-1)["workers"].values()
    assert asked["pool"] == (cluster.POOL_SHARE, cluster.POOL_MOST)
    assert asked["spill"] is True
    # Four GPUs, but two requests at a time: two workers of one thread.
    assert [worker["nthreads"] for worker in workers] == [1, 1]


def test_a_local_cluster_gives_up_no_worker_that_dies_often(recipe, endpoint):
    """Otherwise the search for a poisonous row may lose them all: it takes a death a second."""

    def patience() -> float:
        given = dask.config.get("distributed.deploy.lost-worker-timeout")
        return parse_timedelta(given)

    with (
        LocalCluster(
            n_workers=1,
            processes=False,
            dashboard_address=None,
            scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},
        ) as local,
        Client(local) as mine,
        Client(local.scheduler_address) as connected,
    ):
        usual = patience()
        with cluster.open_cluster(recipe, endpoint, mine):
            assert patience() >= 3600
        with cluster.open_cluster(recipe, endpoint, connected):
            assert patience() == usual  # whoever started it replaces the workers that are lost
    assert patience() == usual < 60


@pytest.mark.cluster
def test_workers_take_the_memory_of_arrow_from_the_system_or_as_the_user_says(
    monkeypatch, recipe, endpoint
):
    def kind() -> str:
        return pa.default_memory_pool().backend_name

    found = []
    for given in (None, "mimalloc"):
        if given is None:
            monkeypatch.delenv(cluster.ARROW_POOL, raising=False)
        else:
            monkeypatch.setenv(cluster.ARROW_POOL, given)
        with cluster.open_cluster(recipe, endpoint, None) as client:
            found += set(client.run(kind).values())
    assert found == ["system", "mimalloc"]


@pytest.mark.cluster
def test_the_end_waits_for_no_worker_that_its_nanny_has_not_heard_of(recipe, endpoint):
    # As after two deaths in a second; waiting for such a worker has no end.
    async def unheard(nanny: Any) -> None:
        nanny.process.status = Status.starting
        nanny.process.running.clear()

    pids: list[int] = []

    def work() -> None:
        with cluster.open_cluster(recipe, endpoint, None) as client:
            (nanny,) = client.cluster.workers.values()
            pids.append(nanny.pid)
            client.cluster.sync(unheard, nanny)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(timeout=40)
    assert not thread.is_alive()
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)


def test_without_dask_cuda_the_extra_is_named(monkeypatch, recipe, endpoint):
    monkeypatch.setitem(sys.modules, "dask_cuda", None)
    with (
        pytest.raises(ConfigurationError, match="extra cuda12 or cuda13"),
        cluster.open_cluster(recipe, endpoint, None, on_gpu=True),
    ):
        pass


def test_a_client_that_is_given_is_taken_whatever_the_partitions(recipe, endpoint):
    mine = object()
    with cluster.open_cluster(recipe, endpoint, mine, on_gpu=True) as client:
        assert client is mine


def fake_cudf(name: str) -> type:
    return type(name, (), {"__module__": "cudf.core.dataframe"})


@pytest.mark.parametrize(("metas", "is_on_gpu"), [([0], False), ([0, 1], True)])
def test_a_job_is_on_the_gpu_where_a_partition_is(metas, is_on_gpu, recipe):
    kinds = [pd.DataFrame(), fake_cudf("DataFrame")()]
    job = Job(
        recipe=recipe,
        chains=[],
        parts=[SimpleNamespace(meta=kinds[kind]) for kind in metas],  # type: ignore[misc]
        fingerprint="",
        tokenizer=None,  # type: ignore[arg-type]
        ledger="",
        block_bytes=None,
    )
    assert job.is_on_gpu is is_on_gpu


def test_device_memory_is_what_rmm_counted(monkeypatch):
    counted: list[int] = []
    statistics = SimpleNamespace(
        enable_statistics=lambda: counted.append(0),
        get_statistics=lambda: SimpleNamespace(peak_bytes=7) if counted else None,
    )
    monkeypatch.setitem(sys.modules, "rmm", SimpleNamespace(statistics=statistics))
    frame = fake_cudf("DataFrame")()
    assert cluster.device_memory(frame) == {"device_bytes": 0}
    cluster.watch_device(frame)
    assert cluster.device_memory(frame) == {"device_bytes": 7}
    cluster.watch_device(pd.DataFrame())
    assert counted == [0]
    assert cluster.device_memory(pd.DataFrame()) == {}
