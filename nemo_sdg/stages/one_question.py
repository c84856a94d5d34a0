"""Rows that ask one question each: no flow is started for a row whose first answer is of use.

A `OneQuestion` is a `Crowd`. Where a first answer is of no use, the row's flow is started after
all and handed that answer: second tries, repairs and halvings, reasons and seeds are the flow's
affair, here as everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nemo_sdg.errors import AnswerError, RowError
from nemo_sdg.llm.drive import Crowd
from nemo_sdg.llm.request import Reply, Request
from nemo_sdg.llm.request_form import Filled, Form, derive_seeds, form_of
from nemo_sdg.tasks.task import Task, stamp_of


class OneQuestion(Crowd):
    """Tokens below 0 are rows without a flow: `~token` is the number of the row.

    Args:
        task: what is asked.
        model: who is asked.
        seed: of the run.
        ids: of the rows.
        columns: values of the prompt, by name of the placeholder.
        form: see `form_of_task`.
    """

    def __init__(
        self,
        task: Task,
        *,
        model: str,
        seed: int,
        ids: Sequence[int | str],
        columns: Mapping[str, Sequence[Any]],
        form: Form,
    ) -> None:
        super().__init__()
        self._task, self._model, self._seed = task, model, seed
        self._ids, self._columns, self._form = ids, columns, form

    def start_all(self, rows: Sequence[int]) -> list[tuple[int, Request | Filled]]:
        """Return the first requests of these rows."""
        # A flow's first request has the path (0,), see `Stamp`.
        seeds = derive_seeds(
            (self._seed,), [self._ids[row] for row in rows], (self._task.name, (0,))
        )
        texts = self._task.template.render_columns(self._columns, rows)
        asked: list[tuple[int, Request | Filled]] = []
        for row, text, seed in zip(rows, texts, seeds, strict=True):
            try:
                asked.append((~row, self._form.filled(text, seed)))
            except TypeError:  # half a surrogate pair: the row fails as every such request does
                asked.extend(self._start_flow(row))
        return asked

    def deliver(self, token: int, answer: Reply | RowError) -> list[tuple[int, Request]]:
        """Hand an answer to the row that waits for it; return what follows from it."""
        if token >= 0:
            return super().deliver(token, answer)
        row = ~token
        # Neither more samples than were asked for nor none have a plain value.
        if isinstance(answer, Reply) and len(answer.choices) == 1:
            values = self._values(row) if self._task.check is not None else {}
            try:
                value = self._task.read(answer.choices[0].usable_text(), values)
            except AnswerError:
                pass
            except Exception:  # noqa: BLE001 - the flow meets it again, and names it
                pass
            else:
                self._ended.append((row, value, answer))
                return []
        ((token, _),) = self._start_flow(row)
        return super().deliver(token, answer)

    def row_of(self, token: int) -> int:
        """Return the row that waits for this token."""
        return ~token if token < 0 else super().row_of(token)

    def _start_flow(self, row: int) -> list[tuple[int, Request]]:
        stamp = stamp_of(self._task.name, model=self._model, seed=self._seed, row_id=self._ids[row])
        return self.start(row, self._task.flow(self._values(row)), stamp)

    def _values(self, row: int) -> dict[str, Any]:
        return {name: column[row] for name, column in self._columns.items()}


def form_of_task(task: Any, model: str) -> Form | None:
    """Return the form of a task's requests; None where they differ in more than the user's text."""
    if not isinstance(task, Task) or (task.system_template and task.system_template.variables):
        return None
    asked = task.request(dict.fromkeys(task.variables, ""))
    if not asked.messages or asked.messages[-1].get("role") != "user":
        return None

    def make(text: str) -> Request:
        messages = (*asked.messages[:-1], {**asked.messages[-1], "content": text})
        return Request(
            model=asked.model or model,
            messages=messages,
            sampling=asked.sampling,
            kind=asked.kind,
        )

    return form_of(make)
