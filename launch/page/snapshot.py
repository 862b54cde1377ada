"""The API's answers for a report without a server: all of a run's curves, thinned, and a chosen part of its samples."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from launch.page.answers import Answers
from launch.page.rows import encoded

POINTS = 1500
"""Most points of a curve."""
_DIGITS = 7
"""Significant ones of a curve's values, which is what float32 has."""
_OF_SAMPLES, _OF_HELD_OUT = 0.6, 0.25
"""Shares of the budget; the rest is for tokens."""
_LOG = "driver.log"
_UNESCAPED = "!~*'()"
"""What encodeURIComponent leaves as it is, beside letters, digits, and - _ ."""

Answer = dict[str, Any]


def snapshot(directory: Path, ids: Sequence[str], budget_bytes: int) -> dict[str, Answer]:
    """The answers to what a page asks about these runs, by path and query as `answer_key` writes them.

    Args:
        directory: that the runs lie in.
        ids: of the runs.
        budget_bytes: for samples, held-out prompts and tokens as JSON, of all runs together. Of steps, the first and
            the last one are chosen, and between them as many as there is room for, evenly spaced.

    Raises:
        FileNotFoundError: there is no such run.
    """
    answers = Answers(directory)
    found: dict[str, Answer] = {}
    for name in ids:
        found |= _of_run(answers, name, budget_bytes // len(ids))
    for name in ids:
        others = [other for other in ids if other != name]
        found |= {answer_key("config", id=name, other=other): answers.config(name, other) for other in others}
    listed = answers.runs()
    wanted = [entry for entry in listed["runs"] if entry["id"] in ids]
    return found | {answer_key("runs"): listed | {"runs": wanted}}


def answer_key(question: str, **words: object) -> str:
    """Path and query of a question. Example: answer_key("run", id="a/b", other=3) is "/api/run?id=a%2Fb&other=3"."""
    query = "&".join(f"{word}={quote(str(value), safe=_UNESCAPED)}" for word, value in words.items())
    return f"/api/{question}?{query}" if query else f"/api/{question}"


def _of_run(answers: Answers, name: str, budget: int) -> dict[str, Answer]:
    samples = _samples(answers, name, int(budget * _OF_SAMPLES))
    held_out = _held_out(answers, name, int(budget * _OF_HELD_OUT))
    tokens = _tokens(answers, name, samples, budget - int(budget * (_OF_SAMPLES + _OF_HELD_OUT)))
    run = answers.run(name)
    logs = [log for log in run["logs"] if log == _LOG]
    has = run["has"] | {"samples": bool(samples), "eval_samples": bool(held_out), "tokens": bool(tokens)}
    steps = [{"step": each["step"], "samples": _count(each)} for each in samples.values()]
    return {
        answer_key("run", id=name): run | {"logs": logs, "has": has, "can_stop": False},
        **_curves(answers, name),
        answer_key("config", id=name): answers.config(name),
        answer_key("samples", id=name): {"steps": steps},
        **{answer_key("log", id=name, name=log): answers.log(name, log) for log in logs},
        **samples,
        **held_out,
        **tokens,
    }


def _curves(answers: Answers, name: str) -> dict[str, Answer]:
    """All metrics, and of more steps than a curve has points the means of each stretch beside them."""
    run = answers.opened(name)
    with run.lock:
        is_long = run.table.rows > POINTS
    found = {answer_key("metrics", id=name): _rounded(answers.metrics(name, most=POINTS))}
    means = answer_key("metrics", id=name, mean=1)
    return found | ({means: _rounded(answers.metrics(name, most=POINTS, mean=True))} if is_long else {})


def _samples(answers: Answers, name: str, budget: int) -> dict[str, Answer]:
    """Groups of as many steps as fit."""
    run = answers.opened(name)
    with run.rows_lock:
        run.samples.read()
        sizes = {step: run.samples.size(step) for step in run.samples.steps}
    steps = evenly_chosen(list(sizes), lambda some: sum(sizes[step] for step in some) <= budget)
    return {answer_key("groups", id=name, step=step): answers.groups(name, step) for step in steps}


def evenly_chosen(steps: Sequence[int], fits: Callable[[list[int]], bool]) -> list[int]:
    """As many of some steps as fit, evenly spaced from the first to the last one; the last one alone where no two do,
    and none where it does not either."""
    few, many = 0, len(steps) + 1  # so many fit, and so many do not
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (middle, many) if fits(_spread(steps, middle)) else (few, middle)
    return _spread(steps, few)


def _spread(steps: Sequence[int], count: int) -> list[int]:
    if count < 2:
        return list(steps[len(steps) - count :])
    return [steps[round(place * (len(steps) - 1) / (count - 1))] for place in range(count)]


def _held_out(answers: Answers, name: str, budget: int) -> dict[str, Answer]:
    """The first held-out prompts, as many as fit."""
    found: dict[str, Answer] = {}
    kept: list[Answer] = []
    for prompt in answers.held_out(name)["prompts"]:
        answer = answers.held_out(name, prompt["number"])
        budget -= len(encoded(answer))
        if budget < 0:
            break
        found[answer_key("heldout", id=name, prompt=prompt["number"])] = answer
        kept.append(prompt)
    return found | ({answer_key("heldout", id=name): {"prompts": kept}} if kept else {})


def _tokens(answers: Answers, name: str, samples: dict[str, Answer], budget: int) -> dict[str, Answer]:
    """The tokens of the samples that are shown, the last ones first; those that there is no room for are said to have
    none."""
    found: dict[str, Answer] = {}
    for groups in reversed(samples.values()):
        for sample in _with_tokens(groups):
            answer = answers.tokens(name, groups["step"], sample["index"])
            size = len(encoded(answer))
            sample["tokens"] = size <= budget
            if sample["tokens"]:
                budget -= size
                found[answer_key("tokens", id=name, step=groups["step"], index=sample["index"])] = answer
    return found


def _with_tokens(groups: Answer) -> Iterator[Answer]:
    return (sample for group in groups["groups"] for sample in group["samples"] if sample["tokens"])


def _count(groups: Answer) -> int:
    return sum(len(group["samples"]) for group in groups["groups"])


def _rounded(metrics: Answer) -> Answer:
    values = {
        name: [value if value is None else float(f"{value:.{_DIGITS}g}") for value in column]
        for name, column in metrics["values"].items()
    }
    return metrics | {"values": values}
