"""Which jobs rows fit, by the names of their columns and by what the first of them hold, and how each would read them.

What is known of columns is asked of those who read them: `algorithms.data.conventions`, `algorithms.encoder.rows`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from actors.config import UserError
from algorithms.config import DataConfig
from algorithms.data.conventions import (
    PAIR_CONVENTIONS,
    RL_CONVENTIONS,
    SFT_CONVENTIONS,
    UNPAIRED_CONVENTIONS,
    Convention,
    Use,
    read_examples,
)
from algorithms.data.sources import Row
from algorithms.rewards.math_final import gold_text
from algorithms.rewards.math_golds import check_golds
from algorithms.rewards.math_text import is_plain_number

REWARDED = ("grpo", "ppo")
"""Jobs that need a reward."""
_LOOKED_AT = 200
"""Rows whose values are read."""
_SHORT = 40
"""Characters of an answer that a model may be asked to give to the letter."""
_ASKS = ("problem", "question", "query", "instruction", "input", "user")
_ANSWERS = ("response", "answer", "output", "solution", "target", "reply", "assistant")
_ALSO_CALLED: dict[str, tuple[str, ...]] = {
    "prompt": _ASKS,
    "completion": _ANSWERS,
    "answer": ("final_answer", "expected_answer", "ground_truth", "gold", "reference_answer", *_ANSWERS, "completion"),
    "messages": ("conversation", "dialog", "dialogue", "chat"),
    "conversations": ("conversation",),
    "instruction": (),
    "output": _ANSWERS,
    "text": ("content", "document"),
    "chosen": ("preferred", "accepted", "better", "response_chosen", "chosen_response"),
    "rejected": ("dispreferred", "worse", "response_rejected", "rejected_response"),
    "label": ("desirable", "good", "thumbs_up"),
    "query": ("question", "title", "instruction"),  # not prompt, which is a query's own instruction
    "pos": ("answer", "context", "passage", "document", "response", "completion", "text", "body"),
    "sentence1": ("premise", "first", "text_a"),
    "sentence2": ("hypothesis", "second", "text_b"),
    "score": ("similarity", "similarity_score"),
    "documents": ("candidates", "texts"),
}
"""Column that is read -> what others call it, the likeliest name first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFit:
    """How a job would read the rows."""

    columns: dict[str, str] = field(default_factory=dict)
    """Of `data.columns`."""
    loss: str | None = None
    """Of `algorithm.loss`, where it is not the job's first one."""
    reads: tuple[str, ...]
    """Names in the data of what is read."""


def fits(rows: Sequence[Row]) -> dict[str, DataFit]:
    """Job -> how it would read these rows, for all jobs that could."""
    some = list(rows[:_LOOKED_AT])
    uses: dict[str, tuple[Use, tuple[Convention, ...]]] = {
        "sft": ("sft", SFT_CONVENTIONS),
        "grpo": ("rl", RL_CONVENTIONS),
        "ppo": ("rl", RL_CONVENTIONS),
        "dpo": ("pairs", PAIR_CONVENTIONS),
        "reward": ("pairs", PAIR_CONVENTIONS),
    }
    found = {job: _by_convention(some, use, conventions) for job, (use, conventions) in uses.items()}
    found["dpo"] = found["dpo"] or _by_convention(some, "unpaired", UNPAIRED_CONVENTIONS, loss="kto")
    found["embedding"] = _for_embedding(some)
    found["reranker"] = _for_reranker(some)
    return {job: fit for job, fit in found.items() if fit}


def likeliest(rows: Sequence[Row], found: dict[str, DataFit]) -> str:
    """Of the jobs that rows fit, the one that asks most of their columns: those were probably made for it."""
    if "dpo" in found:
        return "dpo"
    if "grpo" in found and reward_of(rows, found["grpo"])[0] == "math":
        return "grpo"
    texts = [job for job in ("embedding", "reranker") if job in found and not found[job].columns]
    if texts == ["embedding", "reranker"] and found["embedding"].loss:  # passages with labels, more than pairs
        return "reranker"
    return [*texts, *found][0]


def reward_of(rows: Sequence[Row], fit: DataFit) -> tuple[str | None, DataFit]:
    """The reward function that the rows' answers ask for, None where nothing tells, and the fit with the answers' name.

    Numbers and what is written behind a mark as GSM8K's are mathematics; short texts are compared as they are.
    """
    some = rows[:_LOOKED_AT]
    names = ("answer", *_ALSO_CALLED["answer"])
    there = (name for name in names if name != fit.reads[0] and all(name in row for row in some))
    if (given := next(there, None)) is None:
        return None, fit
    columns = fit.columns if given == "answer" else {**fit.columns, "answer": given}
    fit = replace(fit, columns=columns, reads=tuple(dict.fromkeys((*fit.reads, given))))
    answers = [row[given] for row in some]
    if _are_mathematics(answers):
        return "math", fit
    short = all(isinstance(answer, str) and len(answer) <= _SHORT and "\n" not in answer for answer in answers)
    return ("exact_match" if short else None), fit


def _are_mathematics(answers: Sequence[object]) -> bool:
    # A word is an expression, too, to a parser of mathematics: the product of its letters. So most must be numbers.
    numbers = sum(is_plain_number(gold_text(str(answer))) for answer in answers)
    if numbers < len(answers) / 2:
        return False
    try:
        check_golds({number: {"answer": answer} for number, answer in enumerate(answers, start=1)}, "data.train")
    except UserError:
        return False
    return True


def _by_convention(
    rows: list[Row], use: Use, conventions: Sequence[Convention], loss: str | None = None
) -> DataFit | None:
    """By the first way of reading the rows that their values allow."""
    for columns in ({}, *_renamings(rows[0], conventions)):
        try:
            convention, *_ = read_examples(rows, DataConfig(train="rows", columns=columns), use, "data.train")
        except UserError:
            continue
        return DataFit(columns=columns, loss=loss, reads=_named(columns, convention.columns))
    return None


def _renamings(row: Row, conventions: Sequence[Convention]) -> Iterator[dict[str, str]]:
    """Settings of data.columns: those that choose a convention among several, then those that rename."""
    for convention in conventions:
        if row.keys() >= set(convention.columns):
            yield {convention.columns[0]: convention.columns[0]}
    for convention in conventions:
        if columns := _renamed_to(row, convention.columns):
            yield columns


def _renamed_to(row: Row, wanted: Sequence[str]) -> dict[str, str]:
    """Which columns of a row stand for those that it lacks; nothing where not all are found."""
    columns: dict[str, str] = {}
    for name in wanted:
        if name in row:
            continue
        taken = {*columns.values(), *wanted}
        given = next((other for other in _ALSO_CALLED.get(name, ()) if other in row and other not in taken), None)
        if given is None:
            return {}
        columns[name] = given
    return columns


def _named(columns: dict[str, str], names: Sequence[str]) -> tuple[str, ...]:
    return tuple(columns.get(name, name) for name in names)


def _for_embedding(rows: list[Row]) -> DataFit | None:
    from algorithms.encoder.rows import rankings, scored_pairs

    for columns in ({}, _renamed_to(rows[0], ("query", "pos"))):
        try:
            rankings(rows, DataConfig(train="rows", columns=columns), "data.train")
        except UserError:
            continue
        return DataFit(columns=columns, reads=_read_names(rows[0], columns, "ranking"))
    for columns in ({}, _renamed_to(rows[0], ("sentence1", "sentence2", "score"))):
        try:
            scored_pairs(rows, DataConfig(train="rows", columns=columns), "data.train")
        except UserError:
            continue
        return DataFit(columns=columns, loss="cosent", reads=_read_names(rows[0], columns, "pair"))
    return None


def _for_reranker(rows: list[Row]) -> DataFit | None:
    from algorithms.encoder.rows import gradeds

    for columns in ({}, _renamed_to(rows[0], ("query", "pos")), _renamed_to(rows[0], ("query", "documents", "labels"))):
        try:
            found = gradeds(rows, DataConfig(train="rows", columns=columns), "data.train", targets="labels")
        except UserError:
            continue
        # From passages that all have one label, nothing is learned.
        if len({label for row in found for label in row.labels}) > 1:
            lists = all(sorted(set(row.labels)) == [0, 1] and sum(row.labels) == 1 for row in found)
            loss = "cross_entropy" if lists else None
            return DataFit(columns=columns, loss=loss, reads=_read_names(rows[0], columns, "graded"))
    return None


def _read_names(row: Row, columns: dict[str, str], use: str) -> tuple[str, ...]:
    from algorithms.encoder.columns import choose_columns

    renamed = row | {name: row[given] for name, given in columns.items()}
    assert use in ("ranking", "pair", "graded")
    chosen = choose_columns(renamed, DataConfig(train="rows", columns=columns), use, scores=False)
    return tuple(dict.fromkeys(columns.get(name, name) for names in chosen.values() for name in names))
