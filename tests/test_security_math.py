"""Numbers too large to compute cost the reward `math` no time; prose and usual answers are read as before."""

import time

import pytest

from algorithms.rewards.built_in import math_answer
from algorithms.rewards.math_size import is_too_large

LARGE = [
    "9**9**9**9",
    "9 ^ 9 ^ 9",
    "9^-9^9",
    r"\boxed{9^{9^{9^{9}}}}",
    r"$9^{\left(9^9\right)}$",
    r"\frac{1}{9^{9^9}}",
    r"(2^{100})^{100000000}",
    r"(x+1)^{1000000}",
    r"\sum_{i=1}^{10000000} i",
    r"\binom{10000000}{5000000}",
    "1e999999999",
    "9" * 200_000,
    "factorial(factorial(factorial(9)))",
    "(" * 3000 + "1" + ")" * 3000,
    "2^" * 5000 + "2",
    "{" * 100_000,
]
USUAL = [
    r"\boxed{\frac{3}{4}}",
    r"2^{2^{10}}",
    "10^{100}",
    "x^{2} + 3x^{3}",
    "1,000,000",
    "it is 5!!! Really, 3 > 2!",
    r"\sum_{i=1}^{100} i",
    r"\binom{10}{5}",
    "binomial(1000, 500)",
    "[0,1) " * 90,
    "so 12 x 4 = 48, then (2 + 3) * 7 = 35. " * 500,
]


@pytest.mark.parametrize("text", LARGE, ids=range(len(LARGE)))
def test_large_numbers_are_known_without_computing_them(text: str) -> None:
    started = time.process_time()
    assert is_too_large(text)
    assert time.process_time() - started < 0.5


@pytest.mark.parametrize("text", USUAL, ids=range(len(USUAL)))
def test_usual_text_is_none(text: str) -> None:
    assert not is_too_large(text)


def test_the_reward_of_towers_costs_no_time() -> None:
    assert math_answer("5", "5") == 1.0  # sympy is imported
    started = time.process_time()
    for completion in (*LARGE, "$9!!!!$", r"\boxed{99999999!}", r"\boxed{(10^9)!}"):
        assert math_answer(completion, "18") == 0.0
    assert time.process_time() - started < 2.0


def test_an_answer_after_a_tower_counts() -> None:
    assert math_answer(r"As 9^{9^{9^9}} is large, the answer is \boxed{18}", "18") == 1.0
    assert math_answer("It is 18!!!!", "18") == 1.0
    assert math_answer(r"\boxed{2^{10}}", "1024") == 1.0
    assert math_answer(f"{'word ' * 20_000} so \\boxed{{18}}", "18") == 1.0


def test_a_gold_answer_that_is_too_large_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="the gold answer is a number too large to compare, got '9\\^9\\^9\\^9'"):
        math_answer("18", "9^9^9^9")
