"""The language plan: exact, seeded, the same whatever its partitioning."""

from __future__ import annotations

import itertools
import pickle
import random
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest

from nemo_sdg.errors import ConfigurationError
from nemo_sdg.tasks.plan import MAX_BLOCK, TOPICS, LanguagePlan, largest_remainder

FIVE = ("English", "French", "Italian", "German", "Spanish")
EVEN = LanguagePlan(languages=FIVE)
WEIGHTED = LanguagePlan(languages=FIVE, quota={"English": 0.5, "German": 0.3, "French": 0.2})
DRAWN = LanguagePlan(languages=FIVE, quota={"English": 3, "German": 1}, mode="random")
PLANS = (EVEN, WEIGHTED, DRAWN)

Rows = dict[str, list[Any]]
MakePlan = Callable[[int, int], Rows]  # (total, seed) -> the whole plan


def whole(plan: LanguagePlan, total: int, seed: int = 1) -> Rows:
    return plan.rows(0, total, total=total, seed=seed)


# ------------------------------------------------------------------------------------ fault 22


def predecessor(total: int, seed: int) -> Rows:
    """Draws from the system's random source and forgets the language."""
    drawn = [random.SystemRandom().choice(FIVE) for _ in range(total)]
    return {"text": [f"answer {i}" for i, _ in enumerate(drawn)]}


def unseeded(total: int, seed: int) -> Rows:
    return {"language": [random.SystemRandom().choice(FIVE) for _ in range(total)]}


def ours(total: int, seed: int) -> Rows:
    return whole(EVEN, total, seed)


def the_language_is_recorded(make: MakePlan) -> None:
    assert set(make(20, 1).get("language", ())) == set(FIVE)


def the_same_seed_gives_the_same_plan(make: MakePlan) -> None:
    assert make(100, 1) == make(100, 1)


def the_quota_is_exact(make: MakePlan) -> None:
    assert Counter(make(100, 1).get("language", ())) == dict.fromkeys(FIVE, 20)


@pytest.mark.row("N1")
@pytest.mark.row("M3")
@pytest.mark.fault(22)
@pytest.mark.parametrize(
    ("check", "faulty"),
    [
        (the_language_is_recorded, predecessor),
        (the_same_seed_gives_the_same_plan, unseeded),
        (the_quota_is_exact, unseeded),
    ],
)
def test_a_plan_is_recorded_repeatable_and_exact(
    check: Callable[[MakePlan], None], faulty: MakePlan
) -> None:
    check(ours)
    with pytest.raises(AssertionError):
        check(faulty)


# ---------------------------------------------------------------------------------- partitions


@pytest.mark.row("N1")
@pytest.mark.fault(23)
@pytest.mark.parametrize("plan", PLANS, ids=("even", "weighted", "random"))
@pytest.mark.parametrize("parts", [1, 2, 3, 8, 97])
def test_any_partitioning_gives_the_same_rows(plan: LanguagePlan, parts: int) -> None:
    total = 97
    borders = [total * i // parts for i in range(parts + 1)]
    pieces = [
        plan.rows(start, stop, total=total, seed=5) for start, stop in itertools.pairwise(borders)
    ]
    joined = {name: [v for piece in pieces for v in piece[name]] for name in plan.columns}
    assert joined == whole(plan, total, 5)


def from_global_state(total: int, seed: int) -> Rows:
    return {"language": [random.choice(FIVE) for _ in range(total)]}


def no_global_state_is_read_or_moved(make: MakePlan) -> None:
    random.seed(1)
    first, state = make(50, 1), random.getstate()
    random.seed(2)
    assert make(50, 1) == first
    random.seed(1)
    assert random.getstate() == state


@pytest.mark.fault(26)
def test_a_plan_does_not_touch_the_global_random_state() -> None:
    for plan in PLANS:
        no_global_state_is_read_or_moved(lambda total, seed, plan=plan: whole(plan, total, seed))
    with pytest.raises(AssertionError):
        no_global_state_is_read_or_moved(from_global_state)


@pytest.mark.parametrize("plan", PLANS, ids=("even", "weighted", "random"))
def test_seeds_mix_differently(plan: LanguagePlan) -> None:
    first, second = whole(plan, 60, 1), whole(plan, 60, 2)
    assert first["language"] != second["language"]
    assert first["topic"] != second["topic"]


@pytest.mark.parametrize("total", [0, 1, 3, 4, 5, 7, 10, 11, 99, 1003])
@pytest.mark.parametrize(
    "weights", [(1, 1, 1), (5, 3, 2), (0.5, 0.25, 0.25), (1, 0, 2), (1 / 3, 0.1234, 7)]
)
def test_counts_are_those_of_the_largest_remainder(weights: tuple[float, ...], total: int) -> None:
    names = ("English", "German", "French")
    plan = LanguagePlan(languages=names, quota=dict(zip(names, weights, strict=True)))
    counts = Counter(whole(plan, total)["language"])
    assert sum(counts.values()) == total
    for name, weight in zip(names, weights, strict=True):
        assert abs(counts[name] - weight / sum(weights) * total) < 1 + total / MAX_BLOCK


def test_largest_remainder_by_hand() -> None:
    assert largest_remainder([5, 3, 2], 7, range(3)) == [4, 2, 1]  # 3.5, 2.1, 1.4
    assert largest_remainder([1, 1, 1], 4, [2, 0, 1]) == [1, 1, 2]
    assert largest_remainder([Fraction(1, 3), Fraction(2, 3)], 6, range(2)) == [2, 4]
    plan = LanguagePlan(languages=("a", "b", "c"), quota={"a": 5, "b": 3, "c": 2})
    assert Counter(whole(plan, 7)["language"]) == {"a": 4, "b": 2, "c": 1}
    assert Counter(whole(plan, 27)["language"]) == {"a": 14, "b": 8, "c": 5}


def test_a_larger_total_keeps_what_was_asked() -> None:
    for total in (3, 50, 98):
        assert whole(EVEN, 200)["language"][:total] == whole(EVEN, total)["language"]
        assert whole(EVEN, 200)["topic"][:total] == whole(EVEN, total)["topic"]
    full_blocks = whole(WEIGHTED, 57)["language"][:50]
    assert whole(WEIGHTED, 200)["language"][:50] == full_blocks


def test_languages_are_mixed_and_not_in_runs() -> None:
    languages = whole(EVEN, 100)["language"]
    assert all(set(languages[i : i + 5]) == set(FIVE) for i in range(0, 100, 5))
    assert len({tuple(languages[i : i + 5]) for i in range(0, 100, 5)}) > 10


def test_random_mode_follows_the_weights_roughly() -> None:
    counts = Counter(whole(DRAWN, 4000)["language"])
    assert set(counts) == {"English", "German"}
    assert 2850 < counts["English"] < 3150  # 3000 +- 5.5 standard deviations
    again = DRAWN.rows(100, 200, total=10**9, seed=1)["language"]
    assert again == whole(DRAWN, 4000)["language"][100:200]


# -------------------------------------------------------------------------------------- topics


def test_no_topic_comes_twice_before_all_had_their_turn() -> None:
    assert len(set(TOPICS)) == len(TOPICS) >= 60
    for plan in (EVEN, WEIGHTED):
        seen: dict[str, list[str]] = {}
        rows = whole(plan, 1000)
        for language, topic in zip(rows["language"], rows["topic"], strict=True):
            seen.setdefault(language, []).append(topic)
        for topics in seen.values():
            for i in range(0, len(topics), len(TOPICS)):
                turn = topics[i : i + len(TOPICS)]
                assert len(set(turn)) == len(turn)
    rows = whole(EVEN, 300)
    assert len(set(zip(rows["language"], rows["topic"], strict=True))) == 300


def test_own_topics() -> None:
    plan = LanguagePlan(languages=("English",), topics=("tea", "salt"))
    topics = whole(plan, 6)["topic"]
    assert [set(topics[i : i + 2]) for i in (0, 2, 4)] == [{"tea", "salt"}] * 3


# ------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"languages": ()}, "at least one language"),
        ({"languages": ("English", "English")}, "twice: English"),
        ({"languages": FIVE, "mode": "exact"}, "'exact'"),
        ({"languages": FIVE, "topics": ()}, "topic"),
        ({"languages": FIVE, "quota": {"Germann": 1}}, "did you mean 'German'"),
        ({"languages": FIVE, "quota": {"German": -1}}, "-1"),
        ({"languages": FIVE, "quota": {"German": float("nan")}}, "nan"),
        ({"languages": FIVE, "quota": {"German": "2"}}, "'2'"),
        ({"languages": FIVE, "quota": {"German": 0}}, "weight 0"),
        ({"languages": FIVE, "quota": {}}, "weight 0"),
    ],
)
def test_mistakes_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        LanguagePlan(**options)


def test_a_plan_travels_to_workers() -> None:
    copy = pickle.loads(pickle.dumps(WEIGHTED))
    assert copy == WEIGHTED
    assert whole(copy, 40) == whole(WEIGHTED, 40)
