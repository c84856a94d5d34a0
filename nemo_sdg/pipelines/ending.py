"""How work in a run folder ends: noted in `run.json` and the report, early or not."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from nemo_sdg.pipelines.folder import RunFolder
from nemo_sdg.pipelines.report import write_report
from nemo_sdg.pipelines.result import as_known, note_end


@contextlib.contextmanager
def ends_noted(folder: RunFolder, fingerprint: str, *, is_priced: bool) -> Iterator[None]:
    """Write the report when the work ends; where it ends early, note why and raise what to tell."""
    try:
        yield
    except BaseException as error:
        known = as_known(error)
        note_end(folder, fingerprint, known, is_priced=is_priced)
        with contextlib.suppress(Exception):  # its own error matters more
            write_report(folder)
        if known is error:
            raise
        raise known from error
    write_report(folder)
