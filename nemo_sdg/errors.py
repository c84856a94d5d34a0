"""The errors of nemo_sdg: catch a branch to handle everything below it.

    NemoSdgError
    +-- ConfigurationError         the user can mend it; raised before anything is spent (exit 2)
    |   +-- DataError              input: a missing file or column, a broken line, an id twice
    |   +-- RecipeError            recipe or option: unknown key, wrong value; names the place
    |   +-- PromptError            template: unknown or missing placeholder, bad template syntax
    |   +-- TokenizerError         a tokenizer that cannot be loaded, or has no chat template
    |   +-- BackendError           cuDF was asked for where it cannot run
    |   +-- CredentialError        a key that is named but not set, or refused (401, 403)
    |   +-- EndpointError          unknown model, context window too small, no endpoint there
    |   +-- RunFolderError         the folder belongs to another run, or is in use
    +-- RunStopped                 nothing is lost; the same command goes on from here (exit 3)
    |   +-- EndpointDown           no endpoint was usable for longer than the outage limit
    |   +-- TooManyFailures        one reason hits more of the answers than `max_failures` allows
    |   +-- BudgetSpent            a cap on requests, tokens or cost is used up
    |   +-- Interrupted            the user or the cluster asked the run to end
    |       +-- WorkerLeaves       this worker is to go; on Dask its work moves to another
    +-- RowError                   one row failed; its `code` is the reason in the row
        +-- RequestError           no usable answer came (transport, status)
        |   +-- ConnectionFailed   `connection`   refused, reset, closed in mid-body
        |   +-- RequestTimeout     `timeout`
        |   +-- RateLimited        `rate_limited`   429; carries `retry_after_s`
        |   +-- ServerFailure      `server_error`   5xx; 503 carries `retry_after_s`
        |   +-- MalformedReply     `malformed_reply`   a body that is not what the protocol says
        |   +-- BadRequest         `bad_request`   other 4xx: never repeated
        |   +-- ContextExceeded    `context_exceeded`   the prompt does not fit the model
        |   +-- Unauthorized       `unauthorized`   401, 403 before any answer: ends the run
        |   +-- UnknownModel       `unknown_model`   404: ends the run, or the row that chose it
        |   +-- NotFiled           `not_filed`   nothing may be asked, and no answer is filed
        +-- PoisonousRow           `poisonous`   the process died whenever this row was at work
        +-- AnswerError            an answer came and is of no use (the answer stays in the ledger)
            +-- EmptyAnswer        `empty`
            +-- RefusedAnswer      `refused`   a refusal field, or the content filter
            +-- CutAnswer          `length`   the output limit was reached
            +-- RejectedAnswer     `rejected`   `stop_when` says that it is of no use
            +-- RepeatingAnswer    `repeated_lines`   it turns in circles, by `stop_when`
            +-- ParseError         the parser's own code, such as `prefix_missing`

Only a `RowError` is ever stored: its code in the column `<output>_error`, its text in
`dead_letters/`. No message may contain an API key.
"""

from __future__ import annotations

from typing import Any, ClassVar


class NemoSdgError(Exception):
    """Base of every error raised on purpose; anything else that escapes is our defect (exit 1)."""

    exit_code: ClassVar[int] = 1

    def __reduce__(self) -> tuple[Any, ...]:
        # Errors cross process boundaries (Dask, engine): rebuild them without calling __init__.
        return _rebuild, (type(self), self.args, self.__dict__)


def _rebuild(cls: type[NemoSdgError], args: tuple[Any, ...], state: dict[str, Any]) -> NemoSdgError:
    error = cls.__new__(cls)
    error.args = args
    error.__dict__.update(state)
    return error


class ConfigurationError(NemoSdgError):
    """Something the user can mend. The message names the place and the remedy."""

    exit_code = 2


class DataError(ConfigurationError):
    """The input cannot be used as it is."""


class RecipeError(ConfigurationError):
    """A recipe or an option is wrong."""


class PromptError(ConfigurationError):
    """A prompt template does not fit its variables."""


class TokenizerError(ConfigurationError):
    """A tokenizer cannot be loaded or cannot do what is asked of it."""


class BackendError(ConfigurationError):
    """The data-frame library asked for cannot run here."""


class CredentialError(ConfigurationError):
    """An API key is missing where one was named, or the endpoint refuses it."""


class EndpointError(ConfigurationError):
    """The endpoint does not offer what the run needs."""


class RunFolderError(ConfigurationError):
    """The run folder belongs to a different run, or is in use."""


class RunStopped(NemoSdgError):
    """The run ended early without harm: started again, it goes on where it stopped."""

    exit_code = 3


class EndpointDown(RunStopped):
    """No endpoint was usable for longer than the outage limit."""


class TooManyFailures(RunStopped):
    """One reason makes more of the answers useless than the run allows."""


class BudgetSpent(RunStopped):
    """A cap of `--max-requests`, `--max-tokens` or `--max-cost` is used up."""


class Interrupted(RunStopped):
    """The user or the cluster asked the run to end."""


class WorkerLeaves(Interrupted):
    """The worker was asked to leave: it starts nothing, and what was under way is filed."""


class RowError(NemoSdgError):
    """One row failed. `code` is the stable reason, `str(error)` the detail for a person."""

    code: str = "error"

    def __init__(self, detail: str = "") -> None:
        super().__init__(detail or self.code)

    @property
    def detail(self) -> str:
        """What happened, in words; empty when the code says it all."""
        return "" if str(self) == self.code else str(self)


class RequestError(RowError):
    """No usable answer came back. `status` is the HTTP status, None where none was received."""

    code = "request_failed"

    def __init__(
        self, detail: str = "", *, status: int | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.retry_after_s = retry_after_s


class ConnectionFailed(RequestError):
    """The connection was refused, reset, or closed before the answer was complete."""

    code = "connection"


class RequestTimeout(RequestError):
    """A time-out of the transport; which one stands in the detail."""

    code = "timeout"


class RateLimited(RequestError):
    """The endpoint asked for a pause (429)."""

    code = "rate_limited"


class ServerFailure(RequestError):
    """The endpoint failed (5xx)."""

    code = "server_error"


class MalformedReply(RequestError):
    """The body is not what the protocol says: broken JSON, no choices."""

    code = "malformed_reply"


class BadRequest(RequestError):
    """The endpoint does not take this request (4xx): repeating it is of no use."""

    code = "bad_request"


class ContextExceeded(BadRequest):
    """Prompt and output limit together exceed the model's context window."""

    code = "context_exceeded"


class Unauthorized(BadRequest):
    """The key is refused (401, 403): the whole run cannot go on."""

    code = "unauthorized"


class UnknownModel(BadRequest):
    """The endpoint does not serve this model (404): the whole run cannot go on."""

    code = "unknown_model"


class NotFiled(RequestError):
    """The answer does not stand in the ledger, and a replay asks nothing."""

    code = "not_filed"


class PoisonousRow(RowError):
    """Every process that worked on this row died; its neighbours are done without it."""

    code = "poisonous"

    def __init__(self, detail: str = "every process that worked on it died") -> None:
        super().__init__(detail)


class AnswerError(RowError):
    """An answer came, is filed, and is of no use as it stands."""

    code = "unusable_answer"


class EmptyAnswer(AnswerError):
    """The answer is null or blank."""

    code = "empty"


class RefusedAnswer(AnswerError):
    """The model declined, or the content filter cut in."""

    code = "refused"


class CutAnswer(AnswerError):
    """The answer reached the output limit and is not complete."""

    code = "length"


class RejectedAnswer(AnswerError):
    """A pattern of `stop_when` says that the answer is of no use; the rest was not awaited."""

    code = "rejected"


class RepeatingAnswer(AnswerError):
    """The answer repeats more of its lines than `stop_when` allows; the rest was not awaited."""

    code = "repeated_lines"


class ParseError(AnswerError):
    """The answer breaks its format. `code` names how; parsers choose it."""

    def __init__(self, code: str, detail: str = "") -> None:
        self.code = code
        super().__init__(detail)
