"""Reward sources: how functions, HTTP endpoints and reward models make one reward, and what is a failure.

Functions and endpoints are asked in the reward processes. Reward models are groups of their own, whose scores the
training loop adds. Runs without torch and ray.
"""

import functools
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Literal
from urllib.parse import urlsplit

from actors.config import UserError
from actors.episodes import Episode, Prompt
from actors.user.confined import forget
from algorithms.config import RewardConfig
from algorithms.rewards.calls import LoadedFunction, Outcome, Samples, load_reward_function
from algorithms.rewards.endpoint import LoadedEndpoint, load_endpoint
from algorithms.words import shorten

LoadedSource = LoadedFunction | LoadedEndpoint
_TAKEN_LABELS = {"mean", "std", "min", "max", "zero_variance_fraction", "failed", "turns", "shaped_mean"}
_TAKEN_LABELS |= {"kl_per_response", "kl_coef"}
"""Metrics of all rewards, `reward/<name>`, beside which those of the sources stand."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """The reward of one sample, or why there is none.

    Example: Score(reward=0.7, parts={"exact_match": 1.0, "length": -0.6}, status="ok")
    """

    reward: float
    """Weighted sum over the sources that did not abstain; NaN unless ok, for which one must have a weight."""
    parts: dict[str, float]
    """Unweighted value of each source that gave one, by its label."""
    status: Literal["ok", "abstained", "failed"]
    """abstained: no source with a weight has given a value yet, and reward models are still to come (`add_scores`)."""
    error: str | None = None
    """When failed, one line: source, cause, sample."""
    cause: str | None = None
    """When failed, `error` without the sample, to count distinct causes."""


def load_sources(config: RewardConfig, *, confined: bool = False) -> list[LoadedSource]:
    """The functions, then the endpoints: what a reward process calls.

    `confined`: once the endpoints have read their headers' variables, these leave this process's environment, except
    those of reward.pass_env, before a function is imported.

    Raises UserError like `resolve` and `load_endpoint`, with the problems of all of them.
    """
    functions, _, endpoints = sources_labels(config)
    # First: they take their secrets, which are gone before a function is imported.
    services, faults = _loaded(
        functools.partial(load_endpoint, endpoint, index, label, config.deadline_s)
        for index, (endpoint, label) in enumerate(zip(config.endpoints, endpoints, strict=True))
    )
    if confined:
        forget(config.kept_variables - {*config.pass_env})
    sources, problems = _loaded(
        functools.partial(load_reward_function, function, index, label)
        for index, (function, label) in enumerate(zip(config.functions, functions, strict=True))
    )
    if problems or faults:  # all of them, not one a try
        raise UserError(*problems, *faults)
    return [*sources, *services]


def _loaded(loads: Iterable[Callable[[], LoadedSource]]) -> tuple[list[LoadedSource], list[str]]:
    """What can be loaded, and what is wrong with the rest."""
    sources: list[LoadedSource] = []
    problems: list[str] = []
    for load in loads:
        try:
            sources.append(load())
        except UserError as error:
            problems += error.problems
    return sources, problems


def sources_labels(config: RewardConfig) -> tuple[list[str], list[str], list[str]]:
    """Short names, unique over all of them, of the functions, models and endpoints: keys of Score.parts and of metrics.

    Example: a.py:score, outputs/rm/export and http://host:8000/score give ["score"], ["rm"], ["score_2"].
    """
    taken = set(_TAKEN_LABELS)
    functions = [_unique(function.name.rpartition(":")[2], taken) for function in config.functions]
    models = [_unique(_model_base(model.path), taken) for model in config.models]
    endpoints = [_unique(_endpoint_base(endpoint.url), taken) for endpoint in config.endpoints]
    return functions, models, endpoints


def load_scorer(config: RewardConfig) -> Callable[[Prompt, list[Episode], float], list[Score]]:
    """What a reward worker runs: a callable from a prompt and its rollouts to their scores, in order.

    Its third argument is the time, on time.monotonic(), at which endpoints must have answered.
    """
    sources = load_sources(config, confined=True)
    return functools.partial(score_rollouts, sources, models=any(model.weight for model in config.models))


def score_rollouts(
    sources: list[LoadedSource],
    prompt: Prompt,
    rollouts: list[Episode],
    until: float | None = None,
    *,
    models: bool = False,
) -> list[Score]:
    """Score the rollouts of one prompt; one that failed to be generated is failed here too, and no source sees it."""
    whole = [rollout for rollout in rollouts if rollout.status != "failed"]
    asked = any(isinstance(source, LoadedFunction) and source.asks_for_ids for source in sources)
    marked = [rollout.text if rollout.marked_text is None else rollout.marked_text for rollout in whole]
    samples = Samples(
        prompts=[prompt.text] * len(whole),
        completions=[rollout.text for rollout in whole],
        columns={name: [value] * len(whole) for name, value in prompt.row.items()},
        marked=marked,
        completion_ids=[rollout.turns[-1].sampled_token_ids.tolist() for rollout in whole] if asked else None,
    )
    scores = iter(score_batch(sources, samples, until, models=models))
    return [
        failed_score(f"the rollout failed ({rollout.turns[-1].finish_reason})", prompt.text, rollout.text)
        if rollout.status == "failed"
        else next(scores)
        for rollout in rollouts
    ]


def score_batch(
    sources: list[LoadedSource], samples: Samples, until: float | None = None, *, models: bool = False
) -> list[Score]:
    """Score every sample with every source; a source's mistakes end up in the Score, never as an exception.

    Endpoints must answer by `until` (on time.monotonic()). A sample on which all sources with a weight abstain has
    failed, unless reward models that have one score it later (`models`).
    """
    if not samples.completions:
        return []
    outcomes = [
        source.evaluate(samples) if isinstance(source, LoadedFunction) else source.evaluate(samples, until)
        for source in sources
    ]
    texts = zip(samples.prompts, samples.completions, strict=True)
    return [
        _combine(sources, values, prompt, completion, models)
        for values, (prompt, completion) in zip(zip(*outcomes, strict=True), texts, strict=True)
    ]


def empty_scores(count: int) -> list[Score]:
    """What `add_scores` starts from when reward models are the only sources."""
    return [Score(reward=math.nan, parts={}, status="abstained") for _ in range(count)]


def add_scores(
    score: Score,
    parts: dict[str, float],
    weights: dict[str, float],
    prompt: str | None = None,
    completion: str | None = None,
) -> Score:
    """`score` with the values of further sources in `parts`, by label, each times its entry of `weights`.

    A failed score stays as it is. Failed is also the result of a value or sum that is not finite, and of no value with
    a weight: what is only reported makes no reward. `prompt` and `completion`, when given, are named in the error.
    """
    if score.status == "failed":
        return score
    for label, value in parts.items():
        if not math.isfinite(value):
            return failed_score(f"{label}: returned {value}, not a finite number", prompt, completion)
    if score.status == "abstained" and not any(weights[label] for label in parts):
        which = "every reward source with a weight" if parts or score.parts else "every reward source"
        return failed_score(f"{which} abstained (gave no value)", prompt, completion)
    before = score.reward if score.status == "ok" else 0.0  # NaN while all have abstained
    reward = before + sum(weights[label] * value for label, value in parts.items())
    if not math.isfinite(reward):
        return failed_score(f"the weighted sum of the rewards is {reward}, not a finite number", prompt, completion)
    return Score(reward=reward, parts={**score.parts, **parts}, status="ok")


def failed_score(cause: str, prompt: str | None, completion: str | None) -> Score:
    """A Score without a reward, whose error names the cause and what is known of the sample."""
    texts = {"prompt": prompt, "completion": completion}
    sample = ", ".join(f"{name} {shorten(text)}" for name, text in texts.items() if text is not None)
    error = f"{cause}; {sample}" if sample else cause
    return Score(reward=math.nan, parts={}, status="failed", error=error, cause=cause)


def _model_base(path: str) -> str:
    parts = [part for part in PurePosixPath(path).parts if part not in ("/", "..")]  # neither tells models apart
    # Every job exports into a directory of this name; the one above it tells runs apart.
    return parts[-2] if parts[-1:] == ["export"] and len(parts) > 1 else (parts or ["model"])[-1]


def _endpoint_base(url: str) -> str:
    try:
        parts = urlsplit(url)
    except ValueError:  # `check_endpoint` will say so
        return "endpoint"
    return PurePosixPath(parts.path).name or parts.hostname or "endpoint"


def _unique(base: str, taken: set[str]) -> str:
    """`base` as part of a metric's name, with a number from 2 when it is taken; added to `taken`."""
    base = re.sub(r"[^\w.-]+", "_", base)
    label, number = base, 1
    while label in taken:
        number += 1
        label = f"{base}_{number}"
    taken.add(label)
    return label


def _combine(
    sources: list[LoadedSource], values: tuple[Outcome, ...], prompt: str, completion: str, models: bool
) -> Score:
    for source, value in zip(sources, values, strict=True):
        if isinstance(value, str):
            return failed_score(f"{source.name}: {value}", prompt, completion)
    given = {source.label: value for source, value in zip(sources, values, strict=True) if isinstance(value, float)}
    weights = {source.label: source.weight for source in sources}
    [score] = empty_scores(1)
    if models and not any(weights[label] for label in given):
        return replace(score, parts=given)
    return add_scores(score, given, weights, prompt, completion)
