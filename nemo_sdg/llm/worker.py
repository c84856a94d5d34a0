"""The worker's side of the engine: start it, hand it requests, wait for answers.

    engine = get_engine(config)
    engine.admit(len(rows))                     # waits while enough is on its way already
    with engine.session() as session:
        session.submit([(0, request), (1, request)])
        for token, answer in session.wait():    # blocks until at least one is there
            ...                                 # answer: a Reply, or the row's RequestError

One engine serves all threads of a process (of a Dask worker, where several share a process).
"""

from __future__ import annotations

import atexit
import contextlib
import pickle
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from nemo_sdg import errors
from nemo_sdg.errors import NemoSdgError, RequestError, RunStopped
from nemo_sdg.llm.drain import DRAIN_S
from nemo_sdg.llm.ended import note_ended, refuse
from nemo_sdg.llm.engine_config import EngineConfig, of_this_run
from nemo_sdg.llm.engine_process import run_in_loop
from nemo_sdg.llm.frames import receive_frame, write_frame
from nemo_sdg.llm.lease_service import desk_of_this_place
from nemo_sdg.llm.leases import Report
from nemo_sdg.llm.limits import FailureGuard
from nemo_sdg.llm.request import Request
from nemo_sdg.llm.request_form import Filled
from nemo_sdg.llm.session import Answer, Session

__all__ = ["Answer", "EngineHandle", "EngineLost", "Session", "engines", "get_engine", "run_ends"]

ADMIT_FACTOR = 2.5
"""Requests on their way, as a multiple of the slots, up to which a further partition is let in.

Less than 2 starves the slots while a partition is being read; more only holds rows in memory."""

ADMIT_BYTES = 256 << 20
TAIL_AFTER_S = 1.0
"""Without a partition that waits to be let in for so long, all that is to be asked is at hand."""

REPLY_S = 5.0
"""How long an engine may take to say that it has left, once nothing is under way."""

START_TIMEOUT_S = 60.0
"""Without a sign of life; reading a large ledger may take longer, and tells that it goes on."""

FORGET_AFTER_S = 10.0
"""Failures are counted anew once nothing has been open for this long: mending a prompt takes
longer, the way from one partition to the next does not."""


class EngineLost(RunStopped):
    """The engine's process ended unasked; what it had filed is safe."""


class EngineHandle:
    """A running engine. Make one with `get_engine`; safe for threads."""

    def __init__(self, config: EngineConfig, *, place: str = "process") -> None:
        self.config = config
        self.state: dict[str, Any] = {}
        self.was_outage_told = False
        self.counts: dict[str, int] = {}
        dialect = config.endpoint.dialect
        self._body_options: dict[str, Any] = {
            "max_tokens_field": dialect.max_tokens_field,
            "unsupported": dialect.unsupported,
            "stream": config.endpoint.stream,
        }
        self._error: NemoSdgError | None = None
        self.guard = FailureGuard(config.failures)
        self._sessions: dict[int, Session] = {}
        self._sequence = 0
        self._closed_at = 0.0
        self._on_way = 0
        self._bytes_on_way = 0
        self._reserved: dict[int, int] = {}
        self._num_waiting, self._let_in_at = 0, time.monotonic()
        self._slots = config.slots
        self._changed = threading.Condition()
        self._send_lock = threading.Lock()
        self._desk = desk_of_this_place(self._fail)
        self._name = f"{self._desk.worker}-{uuid.uuid4().hex}"
        self._desk.open(self._name, partial(self._send, ["report"]))
        self._book, self._terms = config.book, config.terms
        ours, theirs = socket.socketpair()
        self._connection = ours
        self._child = _start(theirs, place)
        self._send([pickle.dumps(config)])
        ours.settimeout(START_TIMEOUT_S)
        while (first := receive_frame(ours)) is not None and first[0] == "loading":
            pass
        ours.settimeout(None)
        if first is None or first[0] != "ready":
            self.close()
            raise pickle.loads(first[1]) if first else EngineLost("the engine did not start")
        self._reader = threading.Thread(target=self._read, name="nemo-sdg-engine", daemon=True)
        self._reader.start()

    @property
    def is_alive(self) -> bool:
        """False once the engine has stopped for good."""
        return self._error is None

    def admit(self, requests: int, still_wanted: Callable[[], bool] = lambda: True) -> None:
        """Wait until there is room for a partition's first requests; one is always let in.

        Args:
            requests: how many this thread is about to submit; they count from here on.
            still_wanted: asked now and then while waiting; False ends the wait with `Interrupted`.
        """
        me = threading.get_ident()
        with self._changed:
            self._reserved.pop(me, None)  # of a task that was cancelled before it submitted
            self._num_waiting += 1
            try:
                while self._error is None and self._is_full():
                    self._changed.wait(0.2)
                    if not still_wanted():
                        raise errors.Interrupted("the task was cancelled")
            finally:
                self._num_waiting -= 1
            self._reserved[me] = requests
        self._check()

    def _is_full(self) -> bool:
        on_way = self._on_way + sum(self._reserved.values())
        return on_way >= ADMIT_FACTOR * max(1, self._slots) or self._bytes_on_way >= ADMIT_BYTES

    def session(self, label: str = "") -> Session:
        """Open a session for a task (`label`); it goes before sessions opened later."""
        with self._changed:
            idle_s = 0.0 if self._sessions else time.monotonic() - self._closed_at
            if idle_s > FORGET_AFTER_S or (self.guard.is_broken and not self._sessions):
                self.guard.forget()
            self._sequence += 1
            self._let_in_at = time.monotonic()
            session = Session(self, self._sequence, label)
            self._sessions[session.number] = session
        self._check()
        return session

    def record_rows(self, task: str, reasons: Sequence[str | None]) -> None:
        """Count rows that ended; see `limits.FailureGuard`.

        Raises:
            TooManyFailures: one of these rows was one too many.
        """
        with self._changed:
            self.guard.record_all(task, reasons)

    def leave(self) -> None:
        """Ask the engine to start nothing more and to file what is under way."""
        self._send(["drain"])

    def left(self) -> None:
        """Wait until it has done so, and stop it."""
        with self._changed:
            self._changed.wait_for(lambda: self._error is not None, DRAIN_S + REPLY_S)
        self.close()

    def close(self) -> None:
        """Stop the engine: requests on their way are cancelled, what was answered is filed."""
        self._fail(errors.Interrupted("the engine was closed"))
        self._send(["end"])
        self._desk.leave(self._book, self._name)
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()
        if isinstance(self._child, subprocess.Popen):
            try:
                self._child.wait(10)
            except subprocess.TimeoutExpired:
                self._child.kill()
                self._child.wait()
        elif threading.current_thread() is not self._child:
            self._child.join(10)

    # --- for Session -----------------------------------------------------------------------------

    def _submit(
        self, session: Session, items: Iterable[tuple[int, Request | Filled]], stage: int
    ) -> None:
        packed, size = [], 0
        unsendable: list[list[Any]] = []
        for token, request in items:
            try:
                body = request.body(**self._body_options)
            except RequestError as error:  # one bad row does not harm its neighbours
                unsendable.append([token, False, error.code, error.detail, None])
                continue
            size += len(body)
            session._sizes[token] = len(body)
            sampling = request.sampling
            rule = None if sampling.stop_when is None else sampling.stop_when.plain()
            longest, kind, model = sampling.max_output_tokens, request.kind, request.model
            packed.append([token, request.keys(), kind, model, body, longest, rule])
        with self._changed:
            self._reserved.pop(threading.get_ident(), None)
        if unsendable:
            session._inbox.put(unsendable)
        if not packed:
            return
        with self._changed:
            self._on_way += len(packed)
            self._bytes_on_way += size
        self._send(["submit", session.number, stage, session.label, packed])
        self._check()

    def _forget(self, session: Session) -> None:
        with self._changed:
            if self._sessions.pop(session.number, None) is not None:
                self._closed_at = time.monotonic()
            self._on_way -= len(session._sizes)
            self._bytes_on_way -= sum(session._sizes.values())
            unanswered = bool(session._sizes)
            session._sizes.clear()
            self._changed.notify_all()
        if unanswered and self._error is None:
            self._send(["close", session.number])

    def _send(self, value: Any) -> None:
        data = write_frame(value)
        with self._send_lock, contextlib.suppress(OSError):
            self._connection.sendall(data)

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    # --- answers ---------------------------------------------------------------------------------

    def _read(self) -> None:
        lost: NemoSdgError = EngineLost("the engine's process ended; run the same command again")
        try:
            while (frame := receive_frame(self._connection)) is not None:
                self._take(frame)
        except Exception as error:  # noqa: BLE001 - without this thread every task waits for good
            lost = EngineLost(f"what the engine sent was not understood: {error!r}")
        self._fail(lost)
        self._desk.leave(self._book, self._name)  # or what it held would be missing to the others

    def _take(self, frame: list[Any]) -> None:
        match frame:
            case ["done", done]:
                self._hand_out(done)
            case ["state", state, counts, report, sent_s]:
                self.state, self.counts = state, counts
                self._renew(report, sent_s)
            case ["fatal", error]:
                self._fail(pickle.loads(error))

    def _is_tail(self) -> bool:
        """Say whether no partition waits to be let in, and none came for a while."""
        return not self._num_waiting and time.monotonic() - self._let_in_at > TAIL_AFTER_S

    def _renew(self, report: dict[str, Any], sent_s: float) -> None:
        def granted(lease: dict[str, Any]) -> None:
            with self._changed:
                self._slots = sum(lease["slots"].values())
                self._changed.notify_all()
            self._send(["lease", sent_s, lease, self._is_tail()])

        told = Report(holder=self._name, worker=self._desk.worker, **report)
        self._desk.renew(self._book, told, self._terms, granted)

    def _hand_out(self, done: list[list[Any]]) -> None:
        by_session: dict[int, list[list[Any]]] = {}
        for number, *rest in done:
            by_session.setdefault(number, []).append(rest)
        with self._changed:
            for number, answers in by_session.items():
                session = self._sessions.get(number)
                if session is None:
                    continue
                for token, *_ in answers:
                    self._on_way -= 1
                    self._bytes_on_way -= session._sizes.pop(token)
                session._inbox.put(answers)
            self._changed.notify_all()

    def _fail(self, error: NemoSdgError) -> None:
        with self._changed:
            if self._error is None:
                self._error = error
            for session in self._sessions.values():
                session._inbox.put(None)
            self._changed.notify_all()


def _start(connection: socket.socket, place: str) -> subprocess.Popen[bytes] | threading.Thread:
    """Start an engine on its end of the socket: a child process, or a thread for comparison."""
    if place == "thread":
        thread = threading.Thread(target=run_in_loop, args=(connection,), daemon=True)
        thread.start()
        return thread
    with connection:
        number = connection.fileno()
        # A plain child, not multiprocessing: Dask's workers are daemons and may have none of those.
        return subprocess.Popen(
            [sys.executable, "-m", "nemo_sdg.llm.engine_process", str(number)],
            pass_fds=(number,),
            stdin=subprocess.DEVNULL,
        )


_engines: dict[tuple[str, EngineConfig], EngineHandle] = {}
_engines_lock = threading.Lock()
_starting: dict[tuple[str, EngineConfig], threading.Lock] = {}


def get_engine(config: EngineConfig) -> EngineHandle:
    """Return the engine of this worker for a configuration, started if there is none alive.

    Raises:
        CredentialError: the key that the endpoint names is not set on this worker.
        Interrupted: the run has ended (`run_ends`), or the worker is about to leave.
    """
    worker = _worker_name()
    config = of_this_run(config)
    place = worker, config
    with _engines_lock:
        starting = _starting.setdefault(place, threading.Lock())
    # Not under the lock of all: to read a large ledger takes long, and a run must be able to end.
    with starting:
        with _engines_lock:
            refuse(worker, config.run)
            engine = _engines.get(place)
            if engine is not None and engine.is_alive:
                return engine
        if engine is not None:
            engine.close()
        engine = EngineHandle(config)
        try:
            with _engines_lock:
                refuse(worker, config.run)
                _engines[place] = engine
        except errors.Interrupted:
            engine.close()
            raise
        return engine


@atexit.register
def close_engines() -> None:
    """Stop every engine of this process."""
    with _engines_lock:
        while _engines:
            _engines.popitem()[1].close()


def run_ends(run: str) -> None:
    """Stop the engines of a run; cancelled tasks that are late start no new one."""
    with _engines_lock:
        note_ended(run)
        for place in [place for place in _engines if place[1].run == run]:
            _engines.pop(place).close()
        for place in [place for place in _starting if place[1].run == run]:
            del _starting[place]


def engines(worker: str | None = None) -> list[EngineHandle]:
    """Return the engines that run in this process, or those of one Dask worker in it."""
    with _engines_lock:
        return [e for place, e in _engines.items() if worker is None or place[0] == worker]


def _worker_name() -> str:
    """Return the address of the Dask worker this thread belongs to, "" outside of any."""
    if "distributed" not in sys.modules:
        return ""
    from distributed import get_worker

    try:
        return str(get_worker().address)
    except ValueError:
        return ""
