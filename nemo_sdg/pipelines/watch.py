"""Wait for tasks of a cluster, while folder, workers and progress are looked after."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from nemo_sdg.errors import Interrupted, RunStopped
from nemo_sdg.llm.drain import DRAIN_S
from nemo_sdg.llm.leaving import drained
from nemo_sdg.pipelines.owner import Lease
from nemo_sdg.pipelines.progress import Gathered, Observer
from nemo_sdg.pipelines.sigterm import is_asked_to_leave

NO_WORKERS_S = 60.0
"""Without any worker for this long the run stops, resumable, instead of waiting for ever."""

_POLL_S = 0.25
_Key = TypeVar("_Key", bound=Hashable)


class Died:
    """In place of a result: the worker died whenever this was at work."""


DIED = Died()


@dataclass(frozen=True)
class Watch:
    """What a run looks after while its tasks are at work; `run` is the id of its engines."""

    cluster: Any
    lease: Lease
    observer: Observer
    gathered: Gathered
    run: str = ""

    def results(
        self,
        keys: Iterable[_Key],
        make: Callable[[_Key], Any],
        is_guilty: Callable[[_Key], bool] = lambda key: True,
    ) -> Iterator[tuple[_Key, Any]]:
        """Compute what `make` returns for each key (a `Delayed`), and yield results as they come.

        Dask blames every task of a worker that dies. One that is blamed too often gives `DIED`
        where `is_guilty` says so, and is computed again otherwise.
        """
        chosen = list(keys)
        # Nothing else holds the futures: what was taken from one is let go of everywhere.
        waiting = dict(
            zip(chosen, self.cluster.compute([make(key) for key in chosen]), strict=True)
        )
        seen = time.monotonic()
        try:
            while waiting:
                time.sleep(_POLL_S)
                self.lease.check()
                if is_asked_to_leave():
                    self._leave()
                seen = self._seen(seen)
                for key in [key for key, future in waiting.items() if future.done()]:
                    if not _was_blamed(waiting[key]):
                        yield key, waiting.pop(key).result()
                    elif is_guilty(key):
                        del waiting[key]
                        yield key, DIED
                    else:
                        waiting[key] = self.cluster.compute(make(key))
                self.observer.progress(self.gathered.state())
        except BaseException:
            self.cluster.cancel(list(waiting.values()))
            raise

    def _leave(self) -> None:
        """Have what is under way filed, and end."""
        self.observer.note(
            f"SIGTERM: nothing more is sent, what is under way is filed (at most {DRAIN_S:g} s)"
        )
        self.cluster.run(drained, self.run, on_error="ignore")
        raise Interrupted(
            "asked to end (SIGTERM); what was under way is filed: run the same command again to go "
            "on"
        )

    def _seen(self, before: float) -> float:
        """Return when a worker was last there; stop the run after too long without any."""
        now = time.monotonic()
        if self.cluster.scheduler_info(n_workers=1)["workers"]:
            return now
        if now - before > NO_WORKERS_S:
            raise RunStopped(
                f"the cluster has had no worker for {NO_WORKERS_S:g} s; what is filed is safe: "
                "run the same command again when it has some"
            )
        return before


def _was_blamed(future: Any) -> bool:
    from distributed.scheduler import KilledWorker

    return future.status == "error" and isinstance(future.exception(), KilledWorker)
