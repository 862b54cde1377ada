"""Whether the reward `math` can read the golds of a data set: all of them before a run, not one by one in it."""

import time
from collections.abc import Mapping

from actors.config import UserError
from algorithms.rewards.built_in import gold_fault, parsed_gold
from algorithms.rewards.math_final import gold_text
from algorithms.rewards.math_text import is_plain_number
from algorithms.words import shorten

_PARSE_S = 0.5
"""Longest time that golds are parsed for; the characters of all of them are looked at in any case."""


def check_golds(rows: Mapping[int, Mapping[str, object]], label: str) -> None:
    """Check the column `answer` of every row that has one; `rows` by number.

    Raises UserError: the first row whose gold is not an expression as a whole.
    """
    unsure: dict[str, int] = {}
    for number, row in rows.items():
        if "answer" not in row:
            continue
        answer = row["answer"]
        # Most golds are plain numbers behind a mark, as GSM8K's are: these need no parser.
        line = answer.rpartition("####")[2].strip() if isinstance(answer, str) and "boxed" not in answer else ""
        if is_plain_number(line):
            continue
        if fault := gold_fault(answer):
            raise _problem(label, number, answer, fault)
        if not is_plain_number(gold_text(str(answer))):
            unsure.setdefault(str(answer), number)
    until: float | None = None
    for answer, number in unsure.items():
        try:
            parsed_gold(answer)
        except ValueError as error:
            fault = str(error).removeprefix("the gold answer ").partition(", got ")[0]
            raise _problem(label, number, answer, fault) from None
        until = until or time.monotonic() + _PARSE_S  # the first call imports the parser
        if time.monotonic() > until:
            return


def _problem(label: str, number: int, answer: object, fault: str) -> UserError:
    rule = "answer must be a mathematical expression for the reward math, and"
    return UserError(f"{label}: row {number}: {rule} {fault}, got {shorten(str(answer))}")
