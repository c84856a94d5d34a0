"""Totals from a few rows, with their confidence, and the time all of them take."""

from __future__ import annotations

import heapq
import random
from collections.abc import Sequence

import numpy as np
import pytest

from nemo_sdg.pipelines.predict import Band, Total, span_s, spread, student, together, total


def schedule(latencies: Sequence[float], slots: int) -> float:
    """The greedy schedule: each request starts as soon as a slot is free."""
    free = [0.0] * slots
    for latency in latencies:
        heapq.heapreplace(free, free[0] + latency)
    return max(free)


def population(seed: int, number: int = 3000) -> tuple[np.ndarray, np.ndarray]:
    """Sizes of prompts, heavy-tailed, and answers that follow them with scatter and a floor."""
    draw = np.random.default_rng(seed)
    size = draw.lognormal(6.0, 0.8, number)
    return size, np.minimum(30 + 0.4 * size * draw.lognormal(0, 0.3, number), 1200)


# --- which rows -----------------------------------------------------------------------------------


def test_rows_are_spread_and_the_same_every_time() -> None:
    chosen = spread(1000, 20, 7)
    assert chosen == spread(1000, 20, 7) != spread(1000, 20, 8)
    assert [number // 50 for number in chosen] == list(range(20)), "one of every fifty"
    assert spread(5, 20, 0) == list(range(5)) and spread(0, 20, 0) == []
    # Every second row is long: a fixed step would meet only one kind.
    assert {number % 2 for number in spread(100, 10, 0)} == {0, 1}


# --- totals ---------------------------------------------------------------------------------------


def test_what_is_a_line_is_foretold_exactly() -> None:
    size = np.arange(1, 401, dtype="float64") ** 1.5
    made = 17 + 0.3 * size
    chosen = spread(400, 12, 1)
    found = total(size[chosen], made[chosen], num_rows=400, sum_sizes=size.sum())
    assert found.value == pytest.approx(made.sum()) and found.error == pytest.approx(0, abs=1e-6)
    few = spread(400, 5, 1)  # too few for a line: in proportion to the prompts
    rough = total(size[few], 0.3 * size[few], num_rows=400, sum_sizes=size.sum())
    assert rough.value == pytest.approx(0.3 * size.sum())


def test_the_sizes_of_all_rows_make_it_better() -> None:
    errors = []
    for seed in range(40):
        size, made = population(seed)
        chosen = spread(len(size), 40, seed)
        found = total(size[chosen], made[chosen], num_rows=len(size), sum_sizes=size.sum())
        plain = made[chosen].mean() * len(size)
        errors.append((abs(found.value / made.sum() - 1), abs(plain / made.sum() - 1)))
    ours, without = np.array(errors).T
    assert np.quantile(ours, 0.9) < 0.1 and np.mean(ours) < 0.6 * np.mean(without)


def test_the_band_holds_as_often_as_it_says() -> None:
    held = []
    for seed in range(200):
        size, made = population(seed)
        chosen = spread(len(size), 30, seed)
        band = total(size[chosen], made[chosen], num_rows=3000, sum_sizes=size.sum()).band()
        assert band.low is not None and band.high is not None
        held.append(band.low <= made.sum() <= band.high)
    assert 0.88 < np.mean(held) <= 1.0


def test_few_rows_tell_no_error_and_all_rows_have_none() -> None:
    assert total([3.0, 4.0], [6.0, 8.0], num_rows=10, sum_sizes=35.0) == Total(70.0, None)
    assert total([3.0, 4.0], [6.0, 9.0], num_rows=2, sum_sizes=7.0).band() == Band(15.0, 15.0, 15.0)
    assert total([], [], num_rows=0, sum_sizes=0.0).band() == Band(0.0, 0.0, 0.0)
    unknown = total([], [], num_rows=4, sum_sizes=9.0).band()
    assert (unknown.low, unknown.high, unknown.error) == (None, None, None)
    # What was asked is part of the whole.
    assert total([9.0], [50.0], num_rows=3, sum_sizes=9.1).value >= 50.0


def test_independent_errors_add_up_by_their_squares() -> None:
    assert together([Total(10.0, 3.0, 5), Total(20.0, 4.0, 9)]) == Total(30.0, 5.0, 5)
    assert together([Total(10.0, 3.0, 5), Total(20.0, None)]) == Total(30.0, None)
    assert together([Total(10.0, 3.0, 5), Total(20.0, 0.0)]) == Total(30.0, 3.0, 5)


@pytest.mark.parametrize(
    ("freedom", "quantile"), [(1, 12.706), (5, 2.571), (10, 2.228), (40, 2.021)]
)
def test_quantiles_are_those_of_the_tables(freedom: int, quantile: float) -> None:
    assert student(freedom) == pytest.approx(quantile, rel=0.01)


def test_the_error_of_a_band_is_half_of_it() -> None:
    assert Band(1.0, 2.0, 3.0).error == 0.5 and Band(None, 2.0, 3.0).error is None


# --- time -----------------------------------------------------------------------------------------


@pytest.mark.row("I1")
@pytest.mark.parametrize("slots", [1, 16, 64])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_time_is_that_of_the_schedule(slots: int, seed: int) -> None:
    """Latency grows with the answer; 60 of 3,000 rows are asked; the whole is within 10 %."""
    size, made = population(seed)
    latency = 0.05 + made / 100
    chosen = spread(len(size), 60, seed)
    seconds = total(size[chosen], latency[chosen], num_rows=len(size), sum_sizes=size.sum())
    foretold = span_s(latency[chosen].tolist(), seconds.value / len(size), len(size), slots)
    assert foretold == pytest.approx(schedule(latency.tolist(), slots), rel=0.1)


def test_few_requests_take_as_long_as_the_longest_and_many_are_not_scheduled_one_by_one() -> None:
    assert span_s([2.0], 2.0, 10, 64) == 2.0
    assert span_s([2.0], 3.0, 10, 1) == 30.0, "the mean of all, not of those that were asked"
    assert span_s([1.0], 1.0, 1_000_000, 100) == pytest.approx(10_000)
    assert span_s([1.0], 1.0, 4, 64, least_s=3.0) == 3.0
    assert span_s([], 1.0, 5, 2) == span_s([1.0], 1.0, 0, 2) == 0.0
    draw = random.Random(5)
    latencies = [draw.lognormvariate(0, 1) for _ in range(50_000)]
    mean = sum(latencies) / len(latencies)
    assert span_s(latencies, mean, 50_000, 32) == pytest.approx(schedule(latencies, 32), rel=0.03)
