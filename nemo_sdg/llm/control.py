"""How many requests should be in flight at an endpoint: found by goodput, with time handed in.

    control = Concurrency(endpoint.limit)            # or Concurrency.fixed(64)
    while queue and control.wait_s(now()) == 0:      # inf: until something ends
        ticket = control.started(now())              # ... send ...
    control.ended(now(), ticket, tokens=usage.output_tokens, error=None)

Why it does what it does:

- **What is measured.** Goodput is tokens per second, but counting tokens per window is noisy: with
  answers of very unequal length a window of one latency is 10 to 20 % off. So each request is
  charged its fair share of the endpoint's time, the integral of dt / (requests in flight) over its
  life, and goodput is the sum of tokens over the sum of shares. By Little's law that is the same,
  but where a long answer takes long its noise cancels. The scatter of the requests says how sure
  a comparison is; it waits for more of them while it is not.
- **Ramp.** Each answer lets one more in, which doubles the limit per latency, for as long as an
  octave more in flight brings more goodput. Then back to the smallest level near the best.
- **Cruise.** Rest at a level, try a higher one, rest, sometimes try a lower one. A higher level
  stays if it brings goodput, a lower one if it costs none: an endpoint that queues without bound
  must not be filled up for nothing. Each try is compared with the rest just before it, so a change
  of the endpoint's speed misleads one comparison at most. Latency decides nothing.
- **Refusals by slots** lower the limit at once to what is in flight without the refused one, which
  is what the endpoint holds: a jump too high costs as many refusals as it was too high and no more.
  The next tries go one step above that level, then two, four, and only after some hundred answers.
  A limit that fell far is doubled again once answers come: a storm of 429 is soon forgotten.
- **Refusals by a rate** are answered by a pace (`nemo_sdg.llm.rates`): no number in flight fits a
  rate for long. Which is which, and refusals that depend on neither: `nemo_sdg.llm.refusals`.
- **Time-outs** and late first tokens lower the limit by a twentieth each.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from nemo_sdg.errors import RequestError, RequestTimeout
from nemo_sdg.llm.rates import Pace
from nemo_sdg.llm.refusals import STORM, Hold, Recently, RefusalWindow, Verdict, is_refusal
from nemo_sdg.llm.search import RECOVERY, START, Phase, Search


@dataclass(slots=True)
class Ticket:
    """What is known about a request when it starts; handed back when it ends."""

    started_s: float
    share: float
    in_flight: int
    is_at_limit: bool


class Concurrency:
    """See the module's text. One per endpoint and engine; not for several threads.

    Args:
        maximum: the limit never exceeds it (`Endpoint.limit`, or this engine's share of it).
        start: the first limit.
        first_token_bound_s: a first token later than this counts like a time-out; None: never.
    """

    def __init__(
        self, maximum: int, *, start: int = START, first_token_bound_s: float | None = None
    ) -> None:
        self._first_token_bound_s = first_token_bound_s
        self._is_fixed = False
        self._search = Search(maximum, start)
        self._hold, self._recently, self._window = Hold(), Recently(), RefusalWindow()
        self._pace = Pace()
        self._num_unlike = 0
        self._home_unpaced = self._search.home
        self._stepped_s = -math.inf  # the last step down
        # The integral of dt / in_flight, and when it was last brought up to date.
        self._share, self._now_s = 0.0, 0.0

    @classmethod
    def fixed(cls, limit: int) -> Concurrency:
        """Return one that stays at `limit`; only refusals, while they last, hold back starts."""
        control = cls(limit, start=limit)
        control._is_fixed = True
        return control

    @property
    def limit(self) -> int:
        """Requests that may be in flight now, from 1 to the maximum."""
        return self._search.limit

    @property
    def in_flight(self) -> int:
        """Requests that were started and have not ended."""
        return self._search.in_flight

    @property
    def phase(self) -> Phase:
        """What the controller is about, for reports."""
        return self._search.phase

    @property
    def requests_per_s(self) -> float | None:
        """The pace at which requests are started, None where nothing but the limit bounds it."""
        return self._pace.per_s

    @property
    def maximum(self) -> int:
        """What the limit never exceeds. Set it when a lease changes."""
        return self._search.maximum

    @maximum.setter
    def maximum(self, maximum: int) -> None:
        self._search.maximum = maximum
        if self._is_fixed:
            self._search.rest(home=float(maximum))

    def wait_s(self, now: float) -> float:
        """Return the seconds until a request may start: 0: now; inf: when one in flight ends."""
        if self._search.in_flight >= self._search.limit:
            return math.inf
        return max(self._hold.wait_s(now), self._pace.wait_s(now))

    def started(self, now: float) -> Ticket:
        """A request was sent."""
        self._advance(now)
        self._pace.started(now)
        self._recently.started()
        search = self._search
        search.in_flight = in_flight = search.in_flight + 1
        is_at_limit = in_flight >= min(search.limit - 1, 0.9 * search.limit)
        return Ticket(now, self._share, in_flight, is_at_limit)

    def abandoned(self, now: float) -> None:
        """A request was cancelled by us: that says nothing about the endpoint."""
        self._advance(now)
        self._search.in_flight -= 1

    def ended(
        self,
        now: float,
        ticket: Ticket,
        *,
        tokens: int | None = None,
        error: RequestError | None = None,
        first_token_s: float | None = None,
    ) -> None:
        """A request ended.

        Args:
            now: seconds, on the clock of `started`.
            ticket: what `started` returned for it.
            tokens: output tokens of the answer (for embeddings: of the input); None or 0: not
                told, then the mean of those told, or else 1.
            error: what it ended with, None for an answer. Errors that say nothing about the load
                (400, 500, a broken connection) change nothing.
            first_token_s: seconds to the first token, where answers are streamed.
        """
        self._advance(now)
        self._search.in_flight -= 1
        if error is None:
            bound = self._first_token_bound_s
            is_late = bound is not None and first_token_s is not None and first_token_s > bound
            self._hold.answered(ticket.started_s)
            if self._is_fixed:
                search = self._search
                if search.level < search.goal:
                    search.level = min(search.goal, search.level + 4 * RECOVERY)
            elif is_late:
                self._shrink(self._search.level * 0.95)
            else:
                self._answered(now, ticket, tokens)
        elif is_refusal(error):
            self._refused(now, ticket, error.retry_after_s)
        elif isinstance(error, RequestTimeout) and not self._is_fixed:
            self._shrink(self._search.level * 0.95)

    def _advance(self, now: float) -> None:
        in_flight = self._search.in_flight
        if in_flight and now > self._now_s:
            self._share += (now - self._now_s) / in_flight
        self._now_s = now

    def _answered(self, now: float, ticket: Ticket, tokens: int | None) -> None:
        self._window.observe(refused=False, limit=self.limit)
        self._recently.answered(
            now,
            started_s=ticket.started_s,
            at_start=ticket.in_flight,
            in_flight=self.in_flight,
            limit=self.limit,
        )
        self._judge(refused=False)
        share_s, latency_s = self._share - ticket.share, now - ticket.started_s
        if not ticket.is_at_limit or share_s <= 0 or latency_s <= 0:
            return  # there was less to send than was allowed
        is_ramp = self.phase is Phase.RAMP
        self._search.lately = self._window.lately - self._window.background
        back = RECOVERY + 2 * self._window.background
        self._search.answered(tokens, share_s=share_s, latency_s=latency_s, back=back)
        if self.phase is Phase.RAMP and not is_ramp:
            self._window.begin()

    def _refused(self, now: float, ticket: Ticket, retry_after_s: float | None) -> None:
        search = self._search
        self._hold.refused(now, ticket.started_s, retry_after_s, self.in_flight)
        # Not below three quarters: few in flight may be all there was to send.
        level = max(self.in_flight, 0.75 * search.level)
        if self._is_fixed:
            search.lower(level)
            return
        self._recently.refused(now, is_first=search.calm >= self.limit)
        self._window.observe(refused=True, limit=self.limit)
        if self._is_by_rate(now):
            return
        if ticket.started_s < self._stepped_s:
            search.calm = 0  # sent before the last step down, which answers for it
            search.lower(level)
            search.home = search.goal = min(search.home, search.level)
            self._recently.held = min(self._recently.held, search.home)
        else:
            self._shrink(level)

    def _is_by_rate(self, now: float) -> bool:
        """Say whether a refusal is the pace's affair; begin or end to pace."""
        if self._pace.per_s is None:
            if not self._recently.looks_like_rate(self.in_flight):
                return False
            self._pace.begin(now, self._recently.accepted_per_s(now))
            self._num_unlike = 0
            self._home_unpaced = self._search.home
            self._search.is_gentle = True
            self._search.rest(home=min(float(self.maximum), max(2.0, 2 * self._recently.usual)))
            return True
        is_unlike = self.in_flight >= 0.95 * self._recently.held
        self._num_unlike = self._num_unlike + 1 if is_unlike else 0
        if self._num_unlike >= 8:  # always as many in flight: slots
            self._pace.end()
            self._step_down(float(self.in_flight))
            return False
        self._pace.refused(now)
        if self._pace.is_in_vain:  # whatever the rate: the endpoint's own
            self._pace.end()
            if self._window.lately < STORM:
                self._window.learn(self._window.lately)
                self._search.level = self._home_unpaced
            self._step_down(min(self._search.home, self._home_unpaced))
        return True

    def _shrink(self, level: float) -> None:
        """Lower the limit after a refusal or time-out, and judge how many there are."""
        search = self._search
        search.lower(level)
        search.calm = 0
        search.refusals += 1
        self._judge(refused=True)
        allowed = 1 + 2 * self._window.background * (search.outcomes + 20)
        if search.phase is Phase.UP and search.refusals > allowed:
            self._stepped_s = self._now_s
            search.turn_back()

    def _judge(self, *, refused: bool) -> None:
        search, window = self._search, self._window
        is_ramp = search.phase is Phase.RAMP
        verdict = window.count(refused=refused, limit=self.limit, home=search.home, is_ramp=is_ramp)
        # The level can fall too low for a moment; what was in flight lately can be held.
        level = max(search.level, self._recently.usual)
        if verdict is Verdict.STORM:
            self._step_down(min(search.home, level))
        elif verdict is Verdict.MANY:
            self._step_down(min(search.home * window.step_down, level))
        elif verdict is Verdict.OWN:
            search.level = window.before
            self._step_down(window.before)

    def _step_down(self, home: float) -> None:
        self._window.begin()
        self._stepped_s = self._now_s
        self._search.step_down(home)
