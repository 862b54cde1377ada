"""How large the numbers of a mathematical text are, told from its characters: before a library evaluates them.

A model in training writes towers of powers, and whoever scores them must not spend time or memory on their digits.
"""

import math
import re

MOST_DIGITS = 100_000
"""Digits of the largest number that is evaluated."""
_DEEPEST = 100
"""Brackets that may stand in each other."""
_TOKEN = re.compile(r"factorial|binomial|\d[\d_]*(?:[.,]\d+)*(?:[eE][+-]?\d+)?|\*\*|\\[A-Za-z]+|\s+|.", re.DOTALL)
_MAY_BE_LARGE = re.compile(r"\^|\*\*|factorial|binom|\d{15}|\d[eE][+-]?\d{3}")
"""What a text without brackets in brackets must hold for a large number."""
_OPENING, _CLOSING = "({[", ")}]"
_SEPARATING = {"+", "-", "=", "<", ">", ",", ";", "&", "\\neq", "\\leq", "\\geq", "\\to"}
_SKIPPED = {"\\left", "\\right", "\\big", "\\Big", "\\bigl", "\\bigr", "\\,", "$", "\\displaystyle"}
_FUNCTIONS = ("factorial", "binomial", "\\binom", "\\dbinom", "\\tbinom")
_SYMBOL = 1.0
"""Decimal logarithm that a letter or an unknown command counts with: powers of sums are large, too."""


class _TooLarge(Exception):
    pass


def is_too_large(text: str) -> bool:
    """Whether a text holds a power or factorial of more than `MOST_DIGITS` digits, or brackets in brackets without end.

    What a number is about to be is estimated from above, and never computed. Takes time linear in the text. Factorials
    are read as sympy writes them, factorial(5): in a text, "it is 5!!!" is mostly a shout.
    """
    if not _MAY_BE_LARGE.search(text) and sum(map(text.count, _OPENING)) <= _DEEPEST:
        return False
    tokens = [token for token in _TOKEN.findall(text) if not token.isspace() and token not in _SKIPPED]
    try:
        at = 0
        while at < len(tokens):  # closing brackets without an opening one end a group early
            _, at = _group(tokens, at, 0)
            at += 1
    except _TooLarge:
        return True
    return False


def _group(tokens: list[str], at: int, depth: int) -> tuple[float, int]:
    """Decimal logarithm of what stands from `at` to the bracket that closes it, and where that is."""
    if depth > _DEEPEST:
        raise _TooLarge
    # In logarithms: a product adds up, and a sum is at most its largest term times the number of terms.
    largest, product, terms = 0.0, 0.0, 1
    while at < len(tokens) and tokens[at] not in _CLOSING:
        if tokens[at] in _SEPARATING:
            largest, product, terms = max(largest, product), 0.0, terms + 1
            at += 1
            continue
        size, at = _factor(tokens, at, depth)
        product += max(0.0, size)
    return max(largest, product) + math.log10(terms), at


def _factor(tokens: list[str], at: int, depth: int) -> tuple[float, int]:
    """That of an atom with its powers."""
    size, at = _atom(tokens, at, depth)
    if at < len(tokens) and tokens[at] in ("^", "**"):
        at += 1
        while at < len(tokens) and tokens[at] in "+-":  # from above: a negative power counts as a positive one
            at += 1
        if depth > _DEEPEST:
            raise _TooLarge
        exponent, at = _factor(tokens, at, depth + 1) if at < len(tokens) else (0.0, at)
        size = _checked(_times(exponent, size))
    return size, at


def _atom(tokens: list[str], at: int, depth: int) -> tuple[float, int]:
    token = tokens[at]
    if token in _FUNCTIONS and at + 1 < len(tokens) and tokens[at + 1] in _OPENING:
        size, end = _atom(tokens, at + 1, depth)
        return _checked(_times(size, size if token == "factorial" else math.log10(2))), end  # below n^n, and 2^n
    if token in _OPENING:
        size, end = _group(tokens, at + 1, depth + 1)
        return size, end + 1
    if token[0].isdigit():
        return _checked(_of_number(token)), at + 1
    if token in _CLOSING:  # a power of nothing
        return 0.0, at
    return (_SYMBOL if token[0].isalpha() or token[0] == "\\" else 0.0), at + 1


def _of_number(token: str) -> float:
    digits, _, exponent = token.lower().partition("e")
    whole = re.sub(r"[,_]", "", digits.partition(".")[0]).lstrip("0")
    # Of the first digits: converting all of them would be the work that this saves.
    leading = math.log10(int(whole[:15])) if whole[:15] else 0.0
    size = leading + max(0, len(whole) - 15)
    return size + (int(exponent[:9]) if len(exponent) <= 10 and exponent else 10.0**9 if exponent else 0)


def _times(exponent: float, size: float) -> float:
    """Logarithm of a power: 10^exponent times the base's own."""
    return size and (math.inf if exponent > 9 else 10**exponent * size)


def _checked(size: float) -> float:
    if not size <= MOST_DIGITS:
        raise _TooLarge
    return size
