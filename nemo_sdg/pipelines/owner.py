"""One process at a time works in a run folder.

`owner.json` names the process that holds it and is written anew as a heartbeat. It is placed by a
hard link, which succeeds for one of several starters only, and it is believed dead when its
heartbeat is old, or when its process is gone from this machine.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from nemo_sdg.data.parts import write_file
from nemo_sdg.errors import RunFolderError

OWNER_FILE = "owner.json"
HEARTBEAT_S = 5.0
STALE_S = 30.0
_TRIES = 5


class Lease:
    """The right to work in a folder, until `owned` ends. Ask `check` now and then."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / OWNER_FILE
        self._who = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "token": secrets.token_hex(8),
        }
        self._is_lost = False

    def check(self) -> None:
        """Raise `RunFolderError` when another process has taken the folder over.

        That happens to a process that was suspended for longer than a heartbeat is believed.
        """
        if self._is_lost:
            raise RunFolderError(
                f"another process took over {self._path.parent} while this one gave no sign of "
                "life; what this one had filed is safe"
            )

    def take(self) -> None:
        """Place the owner file, or raise `RunFolderError` where a living process has placed one."""
        claim = self._path.with_name(f".{OWNER_FILE}.{self._who['token']}")
        write_file(claim, lambda stream: stream.write(self._content()))
        try:
            # One starter at a time looks and takes over. Where files cannot be locked the link
            # still lets one through; only two that find a dead owner at once could then collide,
            # and the first of them notices at its next heartbeat.
            with _locked(self._path.parent):
                for _ in range(_TRIES):
                    try:
                        _place(claim, self._path)
                    except FileExistsError:
                        self._remove_dead()
                    else:
                        return
            raise RunFolderError(f"{self._path} cannot be taken: others try at the same time")
        finally:
            claim.unlink(missing_ok=True)

    def beat(self) -> None:
        """Say that this process is alive; notice when the folder is another's."""
        if self._is_mine():
            write_file(self._path, lambda stream: stream.write(self._content()))
        else:
            self._is_lost = True

    def release(self) -> None:
        """Give the folder back, if it is still this process's."""
        if self._is_mine():
            self._path.unlink(missing_ok=True)

    def _content(self) -> bytes:
        return json.dumps(self._who | {"at": time.time()}).encode() + b"\n"

    def _is_mine(self) -> bool:
        owner = _read(self._path)
        return owner is not None and owner.get("token") == self._who["token"]

    def _remove_dead(self) -> None:
        owner = _read(self._path)
        if owner is not None and _seems_alive(owner):
            raise RunFolderError(
                f"{self._path.parent} is in use by process {owner.get('pid')} on "
                f"{owner.get('host')}; wait for it, stop it, or choose another output folder"
            )
        # Renaming succeeds for one starter; the others find nothing and try again.
        dead = self._path.with_name(f".{OWNER_FILE}.dead-{self._who['token']}")
        with contextlib.suppress(FileNotFoundError):
            os.rename(self._path, dead)
            dead.unlink()


@contextlib.contextmanager
def owned(folder: Path) -> Iterator[Lease]:
    """Hold a folder for this process while the context lasts.

    Raises:
        RunFolderError: another process that seems alive holds it.
    """
    lease = Lease(folder)
    lease.take()
    stop = threading.Event()
    thread = threading.Thread(target=_every, args=(HEARTBEAT_S, stop, lease.beat), daemon=True)
    thread.start()
    try:
        yield lease
    finally:
        stop.set()
        thread.join()
        with contextlib.suppress(OSError):
            lease.release()


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold an advisory lock on the folder itself; without one where the file system has none."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _place(claim: Path, path: Path) -> None:
    """Give the claim its second name; where there are no hard links, make the file exclusively."""
    try:
        os.link(claim, path)
    except FileExistsError:
        raise
    except OSError:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(handle, "wb") as file:
            file.write(claim.read_bytes())


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _seems_alive(owner: dict[str, Any]) -> bool:
    is_recent = time.time() - float(owner.get("at", 0)) <= STALE_S
    return is_recent and not has_ended(owner)


def has_ended(process: dict[str, Any]) -> bool:
    """Say whether a process of this machine, given as "host" and "pid", is there no more."""
    if process.get("host") != socket.gethostname():
        return False
    try:
        os.kill(int(process["pid"]), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _every(seconds: float, stop: threading.Event, call: Callable[[], None]) -> None:
    while not stop.wait(seconds):
        with contextlib.suppress(OSError):  # a full disk must not end the heartbeat for good
            call()
