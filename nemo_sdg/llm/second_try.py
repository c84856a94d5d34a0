"""What becomes of a request that failed: asked again after a while, by another, or given up. Pure.

The rule itself, when an error is worth another try and how long to wait, stands in
`nemo_sdg.llm.retry`; here it meets the state of endpoint and request.
"""

from __future__ import annotations

from nemo_sdg.errors import RateLimited, RequestError
from nemo_sdg.llm.backlog import Item
from nemo_sdg.llm.limits import Health
from nemo_sdg.llm.retry import TRANSIENT, RetryPolicy


def wait_after(
    item: Item,
    error: RequestError,
    health: Health,
    policy: RetryPolicy,
    *,
    draw: float,
    has_fallback: bool,
) -> float | None:
    """Return the seconds until the request is asked again, None to give it up.

    Counts what the failure means in `item`. A 429 and an outage cost no try. Its last try is
    repeated once while the endpoint is suspect, and once all are used up the fallback is asked.

    Args:
        item: the request; `tries` counts the failed one already.
        error: what it failed with.
        health: of the endpoint that failed it, which knows of the failure.
        policy: tries and waits.
        draw: a number in 0 .. 1, uniform.
        has_fallback: there is an endpoint that is asked when all others have failed.
    """
    if isinstance(error, RateLimited):
        item.tries -= 1
        item.refusals += 1
    elif health.is_down:
        item.tries -= 1  # an outage is not the row's fault
    wait_s = policy.wait_s(error, item.tries, draw, refusals=item.refusals)
    if wait_s is not None:
        return wait_s
    if health.is_suspect and not item.was_spared:
        # The probe decides whether the row or the endpoint is to blame: once, or rows would be
        # asked for ever by an endpoint that answers probes and nothing else.
        item.was_spared = True
        item.tries -= 1
        return 0.0
    if has_fallback and not item.is_for_fallback and isinstance(error, TRANSIENT):
        item.is_for_fallback = True
        item.tries = 0
        return 0.0
    return None
