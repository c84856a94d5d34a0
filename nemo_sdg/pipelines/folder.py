"""The run folder: what a run leaves behind, and how it is found again.

    data/part-*            with several tasks data/<task>/part-*
    dead_letters/          rows that failed: id, segment_id, task, reason, detail, raw, attempts
    dropped/               what filters removed: id, segment_id, task, filter, score, text
    provenance/            one row an answer: model, hashes, seed, tokens, latency, cost, outcome
    tries/                 one line a request that was sent, answered or not
    ledger/                every answer paid for
    state/                 one file a finished part: a rerun skips these
    recipe.yaml  run.json  as resolved; what happened and what it cost
    report.html            the same to look at

Folders are 0700, files 0600. `owner.json` keeps a second run out (`nemo_sdg.pipelines.owner`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from nemo_sdg.data.backend import Dtype
from nemo_sdg.data.parts import (
    Part,
    PartFormat,
    Sync,
    begin_folder,
    finish_folder,
    make_folder,
    write_file,
    write_part,
)
from nemo_sdg.errors import RunFolderError
from nemo_sdg.stages.base import DEAD_COLUMNS, DROPPED_COLUMNS, PROVENANCE_COLUMNS, table

TABLES: Mapping[str, Mapping[str, Dtype]] = {
    "dropped": DROPPED_COLUMNS,
    "dead_letters": DEAD_COLUMNS,
    "provenance": PROVENANCE_COLUMNS,
}

_WRITTEN = orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS | orjson.OPT_APPEND_NEWLINE


@dataclass(frozen=True)
class RunFolder:
    """Paths and files of a run. A plain value: it travels to the workers."""

    path: Path
    file_format: PartFormat = "parquet"

    @classmethod
    def at(cls, output: str | Path, file_format: PartFormat) -> RunFolder:
        """Return the run folder at a path as a user gives it.

        Raises:
            RunFolderError: it is an address.
        """
        if "://" in str(output):
            raise RunFolderError(
                f"--output {output} is an address, and a run folder lies on a disk, where it can "
                "be locked and appended to: name a local or mounted folder, and copy data/ "
                "afterwards"
            )
        return cls(Path(output).expanduser().resolve(), file_format)

    @property
    def ledger(self) -> str:
        """Where answers are filed."""
        return str(self.path / "ledger")

    @property
    def tries(self) -> str:
        """Where every request is noted: what was paid for."""
        return str(self.path / "tries")

    def data(self, task: str, *, is_only: bool) -> Path:
        """Where the rows of a task go."""
        return self.path / "data" if is_only else self.path / "data" / task

    def make(self) -> None:
        """Make the folder, private to its owner."""
        try:
            make_folder(self.path)
            for name in ("data", "state", "ledger", "tries"):
                make_folder(self.path / name)
        except OSError as error:
            raise RunFolderError(
                f"the output folder {self.path} cannot be made: {error.strerror}"
            ) from None

    # --- small files -----------------------------------------------------------------------------

    def write_json(self, name: str, value: Any, *, sync: Sync = "place") -> None:
        """Write a file aside and rename it into its place; see `data.parts.write_file`."""
        data = orjson.dumps(value, default=str, option=_WRITTEN)
        write_file(self.path / name, lambda stream: stream.write(data), sync=sync)

    def read_json(self, name: str) -> Any:
        """Return a file's content, None where there is none."""
        try:
            return orjson.loads((self.path / name).read_bytes())
        except FileNotFoundError:
            return None
        except PermissionError:
            raise RunFolderError(
                f"{self.path} is the run folder of another user and may not be read: choose "
                "another --output"
            ) from None
        except orjson.JSONDecodeError:
            raise RunFolderError(
                f"{self.path / name} is damaged; remove it and run again: answers are in ledger/"
            ) from None

    def write_text(self, name: str, text: str) -> None:
        """Write a text file aside and rename it into its place."""
        write_file(self.path / name, lambda stream: stream.write(text.encode()))

    # --- parts -----------------------------------------------------------------------------------

    def finished(self, task: str, number: int, fingerprint: str) -> dict[str, Any] | None:
        """Return the summary of a part that was finished under the same settings, or None.

        A part whose files are gone since is not finished: it is made anew, from the ledger.
        """
        found = self.read_json(_state_name(task, number))
        if found is None or found["fingerprint"] != fingerprint:
            return None
        for name, part in found["parts"].items():
            file = Path(part["path"]).name  # the folder may have been moved
            places = (self.path / name / file, self.path / name / task / file)
            if not any(place.exists() for place in places):
                return None
        return dict(found)

    def write_part(
        self,
        task: str,
        number: int,
        data: Any,
        tables: Mapping[str, list[dict[str, Any]]],
        *,
        schema: Any,
        is_only: bool,
        summary: Mapping[str, Any],
    ) -> dict[str, Any]:
        """Write all that a part consists of, its summary last: then it counts as finished."""
        parts: dict[str, Part] = {}
        for name, columns in TABLES.items():
            rows = tables[name]
            if rows:
                stem = f"part-{number:05d}-{task}"
                parts[name] = write_part(self.path / name, stem, table(rows, columns))
        parts["data"] = write_part(
            self.data(task, is_only=is_only),
            number,
            data,
            file_format=self.file_format,
            schema=schema,
        )
        whole = {**summary, "parts": parts}
        # If it is lost with the machine, the part is made again, of answers that are filed.
        self.write_json(_state_name(task, number), whole, sync="content")
        return whole

    def begin(self, folders: list[Path]) -> None:
        """Mark the folders of parts as unfinished."""
        for folder in (*folders, *(self.path / name for name in TABLES)):
            begin_folder(folder, "keep")

    def finish(self, data: Mapping[Path, tuple[list[Part], Any]]) -> None:
        """Place the manifests and remove parts that an earlier plan left behind."""
        found: dict[str, list[Part]] = {name: [] for name in TABLES}
        for state in sorted((self.path / "state").rglob("part-*.json")):
            for name, part in orjson.loads(state.read_bytes())["parts"].items():
                if name != "data":
                    found[name].append(part)
        for name, parts in found.items():
            if not parts:
                parts = [write_part(self.path / name, 0, table([], TABLES[name]))]
            _remove_others(self.path / name, parts)
            finish_folder(self.path / name, parts, table_schema(name))
        for folder, (parts, schema) in data.items():
            _remove_others(folder, parts)
            finish_folder(folder, parts, schema)

    def forget_parts(self, task: str, keep: int) -> None:
        """Remove the summaries of parts with numbers from `keep` on: an earlier, finer plan."""
        for state in (self.path / "state" / task).glob("part-*.json"):
            if int(state.stem.removeprefix("part-")) >= keep:
                state.unlink()


def table_schema(name: str) -> Any:
    """Return the Arrow schema of one of the side tables."""
    return table([], TABLES[name]).schema


def _state_name(task: str, number: int) -> str:
    return f"state/{task}/part-{number:05d}.json"


def _remove_others(folder: Path, parts: list[Part]) -> None:
    wanted = {Path(part["path"]).name for part in parts}
    for path in folder.glob("part-*"):
        if path.name not in wanted:
            path.unlink()
