"""The reward functions that come with Tandem. Runs without torch and ray."""

import importlib
import threading
from collections.abc import Callable

from algorithms.rewards.math_final import gold_text, stated_answer
from algorithms.rewards.math_size import is_too_large
from algorithms.rewards.math_text import fault_in
from algorithms.words import noun_of, shorten

MATH_TIMEOUT_S = 5


def exact_match(completion: str, answer: object) -> float:
    """1.0 if completion and answer are the same text, white space around them aside; else 0.0."""
    return float(completion.strip() == str(answer).strip())


def math_answer(completion: str, answer: object) -> float:
    r"""1.0 if the completion's final answer equals the gold answer as a mathematical expression; else 0.0.

    What a completion answers with is the content of its last \boxed{}; else the line after its last ####; else the
    last number or formula of its last sentence with one (`algorithms.rewards.math_final`). "18 or 20" answers nothing.
    A percentage is equal to its hundredth, and to the number before the sign. A completion that cannot be evaluated
    within MATH_TIMEOUT_S is wrong, and so is at once one whose answer is a number of more than 100,000 digits, or text
    of more than 2,000 characters. Raises ValueError where `parsed_gold` does.
    """
    math_verify = importlib.import_module("math_verify")  # imports sympy, which `check` should not wait for
    gold = parsed_gold(answer)
    given = stated_answer(completion)
    if given is None or is_too_large(given):
        return 0.0
    expressions = _parsed(given)
    # Parsing computes nothing yet.
    if not expressions or any(is_too_large(str(expression)) for expression in expressions):
        return 0.0
    return float(math_verify.verify(gold, expressions, timeout_seconds=_time_limit()))


def gold_fault(answer: object) -> str | None:
    """Why a gold answer cannot be read whole, as far as its characters tell; None if it may be."""
    if isinstance(answer, bool) or not isinstance(answer, str | int | float):
        return f"is {noun_of(answer)}"
    text = gold_text(str(answer))
    if is_too_large(text):
        return "is a number too large to compare"
    return fault_in(text)


def parsed_gold(answer: object) -> list[object]:
    """A gold answer as math-verify's expressions, parsed whole.

    Raises ValueError: it holds no expression, more than one expression, or a number too large to compare.
    """
    fault = gold_fault(answer)
    expressions = [] if fault else _parsed(gold_text(str(answer)))
    if fault or not expressions:
        fault = fault or "is no mathematical expression as a whole"
        raise ValueError(f"the gold answer {fault}, got {shorten(str(answer))}")
    return expressions


def _parsed(text: str) -> list[object]:
    """A normalised answer as expressions; none if it is not an expression from its first to its last character."""
    math_verify = importlib.import_module("math_verify")
    # In a box, which is read from its first to its last character: in a plain text the likeliest part would be taken.
    return math_verify.parse(
        rf"\boxed{{{text}}}",
        extraction_config=[math_verify.LatexExtractionConfig(boxed_match_priority=0)],
        fallback_mode="no_fallback",  # else the text itself would be an expression
        parsing_timeout=_time_limit(),
    )


def _time_limit() -> int | None:
    # math-verify measures time by signals, which only the main thread receives; elsewhere the caller's deadline holds.
    return MATH_TIMEOUT_S if threading.current_thread() is threading.main_thread() else None


BUILT_IN: dict[str, Callable[..., object]] = {"exact_match": exact_match, "math": math_answer}
