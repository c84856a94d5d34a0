"""Find the rows that no process outlives, and make their part without them.

A part that was started three times and never ended is a suspect. Suspects are made alone, one at a
time in a worker, so that no other part is blamed. One that takes its worker along even then is cut
in halves, and these again, until single rows are left: documents, and of a document that can be
split its segments. Answers come from the ledger: of what was filed nothing is asked again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from nemo_sdg.data.backend import to_values
from nemo_sdg.errors import RunStopped
from nemo_sdg.llm.engine_config import in_run
from nemo_sdg.pipelines.attempts import Attempt
from nemo_sdg.pipelines.chain import Chain
from nemo_sdg.pipelines.job import Part
from nemo_sdg.pipelines.known_rows import note_poisonous
from nemo_sdg.pipelines.part import Making, make_here, started_mark
from nemo_sdg.pipelines.watch import DIED, Died, Watch
from nemo_sdg.stages.base import Record
from nemo_sdg.stages.known import Place
from nemo_sdg.stages.waiting import staying

_one_at_a_time = threading.Lock()


def made_alone(
    watch: Watch, suspects: Sequence[Part], making: Making, schemas: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """Make suspects, without their poisonous rows, and yield the summaries.

    Raises:
        RunStopped: a worker dies of a part, and of none of its rows.
    """
    deadly = []
    for part, summary in _made(watch, suspects, making, schemas):
        if isinstance(summary, Died):
            deadly.append(part)
        else:
            yield summary
    for part in deadly:
        task = part.chain.task.name
        search = _Search(watch, part, making)
        places = search.poisonous()
        note_poisonous(making.folder, task, making.settings[task], places)
        if places:
            watch.observer.note(
                f"{task}: {len(places)} rows take every process along that works on them; they "
                "become dead letters (poisonous)"
            )
        search.clear()
    for part, summary in _made(watch, deadly, making, schemas):
        if isinstance(summary, Died):
            raise RunStopped(
                f"workers die of part {part.number} of {part.chain.task.name}, and of none of its "
                "rows alone: give workers more memory or take smaller partitions, and run the same "
                "command again; answers are filed"
            )
        yield summary


def _made(
    watch: Watch, parts: Sequence[Part], making: Making, schemas: dict[str, Any]
) -> Iterator[tuple[Part, Any]]:
    by_place = {(part.chain.task.name, part.number): part for part in parts}

    def attempt(key: tuple[str, int]) -> Attempt:
        return _attempt(by_place[key], making, "alone")

    def make(key: tuple[str, int]) -> Any:
        part = by_place[key]
        work = partial(
            _whole,
            number=part.number,
            fingerprint=part.fingerprint,
            schema=schemas[key[0]],
            making=making,
        )
        return _lazily(part, attempt(key), work, making)

    for key, summary in watch.results(by_place, make, lambda key: attempt(key).is_deadly):
        if not isinstance(summary, Died):
            started_mark(making, key[0], key[1], by_place[key].fingerprint).clear()
        yield by_place[key], summary


def _attempt(part: Part, making: Making, name: str) -> Attempt:
    return Attempt(
        folder=making.folder,
        name=f"{part.chain.task.name}/{name}-{part.number:05d}",
        fingerprint=part.fingerprint,
        run=making.run,
    )


@dataclass(frozen=True)
class _Probe:
    """Rows `start` to `stop` of a part; of a single document maybe some segments only."""

    start: int
    stop: int
    segments: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return self.stop - self.start if self.segments is None else len(self.segments)

    def __str__(self) -> str:
        some = "" if self.segments is None else f"-{self.segments[0]}-{self.segments[-1]}"
        return f"{self.start}-{self.stop}{some}"

    def halves(self) -> list[_Probe]:
        middle = len(self) // 2
        if self.segments is None:
            middle += self.start
            return [_Probe(self.start, middle), _Probe(middle, self.stop)]
        cut = self.segments
        return [_Probe(self.start, self.stop, half) for half in (cut[:middle], cut[middle:])]


class _Search:
    """The search for the poisonous rows of one part."""

    def __init__(self, watch: Watch, part: Part, making: Making) -> None:
        self._watch, self._part, self._making = watch, part, making

    def poisonous(self) -> list[Place]:
        """Return the rows without which the part can be made; none where no row alone is deadly."""
        ((_, ids),) = self._watch.results(["ids"], lambda _: self._ids())
        if isinstance(ids, Died):
            return []
        documents = self._bisected(_Probe(0, len(ids)))
        places: list[Place] = []
        for one, segments in self._probed(documents, _segments).items():
            row_id = ids[one.start]
            if isinstance(segments, Died) or not segments or segments[0] is None:
                places.append((row_id, None))
                continue
            found = self._bisected(replace(one, segments=tuple(segments)))
            guilty = [one.segments[0] for one in found if one.segments] or segments
            places += [(row_id, segment) for segment in guilty]
        return places

    def _ids(self) -> Any:
        from dask.delayed import delayed

        return delayed(_ids_of, pure=False)(self._part.frame, self._part.chain.id_field)

    def _bisected(self, deadly: _Probe) -> list[_Probe]:
        """Return the single rows of which a worker dies, of a piece that is known to be deadly."""
        single: list[_Probe] = []
        pieces = [deadly]
        while pieces:
            single += [piece for piece in pieces if len(piece) == 1]
            halves = [half for piece in pieces if len(piece) > 1 for half in piece.halves()]
            outcomes = self._probed(halves, _survives)
            pieces = [half for half, outcome in outcomes.items() if isinstance(outcome, Died)]
        return single

    def _probed(self, probes: list[_Probe], work: Callable[..., Any]) -> dict[_Probe, Any]:
        def attempt(probe: _Probe) -> Attempt:
            return _attempt(self._part, self._making, f"probe-{work.__name__[1:]}-{probe}")

        def make(probe: _Probe) -> Any:
            bound = partial(work, probe=probe, making=self._making)
            return _lazily(self._part, attempt(probe), bound, self._making)

        return dict(self._watch.results(probes, make, lambda probe: attempt(probe).is_deadly))

    def clear(self) -> None:
        """Take all marks of the part away."""
        state = self._making.folder.path / "state" / self._part.chain.task.name
        for kind in ("alone", "probe-*"):
            for path in state.glob(f"{kind}-{self._part.number:05d}.json"):
                path.unlink()


# --- on a worker ----------------------------------------------------------------------------------


def _lazily(part: Part, attempt: Attempt, work: Callable[..., Any], making: Making) -> Any:
    from dask.delayed import delayed

    return delayed(_alone, pure=False)(part.chain, part.frame, attempt, work, making)


def _alone(
    chain: Chain, frame: Any, attempt: Attempt, work: Callable[..., Any], making: Making
) -> Any:
    """Do a piece of work while this process does nothing else; not if a process has died of it."""
    with _one_at_a_time, staying(), in_run(making.run):
        if attempt.is_deadly:
            return DIED
        with attempt:
            return work(making.chain(chain), frame)


def _whole(
    chain: Chain, frame: Any, *, number: int, fingerprint: str, schema: Any, making: Making
) -> dict[str, Any]:
    # All first questions before anything is read: what is in flight when a process dies is lost.
    if not making.replays:
        known = making.known(chain.task.name)
        chain.generate.file(chain.prepare(chain.touchable(frame, known)[0]), known)
    return make_here(chain, frame, number, fingerprint=fingerprint, schema=schema, making=making)


def _survives(chain: Chain, frame: Any, *, probe: _Probe, making: Making) -> bool:
    known = making.known(chain.task.name)
    piece = frame.iloc[probe.start : probe.stop]
    if probe.segments is not None:
        spared = frozenset(
            place for place in _places(chain, piece) if place[1] not in probe.segments
        )
        known = replace(known, poisonous=known.poisonous | spared)
    chain.run(piece, known)
    return True


def _segments(chain: Chain, frame: Any, *, probe: _Probe, making: Making) -> list[int | None]:
    return [segment for _, segment in _places(chain, frame.iloc[probe.start : probe.stop])]


def _places(chain: Chain, frame: Any) -> list[Place]:
    return Record(id_field=chain.id_field).places(chain.prepare(frame))


def _ids_of(frame: Any, id_field: str) -> list[str]:
    return [str(i) for i in to_values(frame[id_field])]
