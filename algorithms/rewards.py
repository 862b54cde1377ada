"""Reward functions: what they are called with, and what counts as a failure.

A function receives its arguments by parameter name. One with a `completions` parameter is called once per batch, with
lists; one with a `completion` parameter is called per sample, with scalars. Both may also name `prompts` (`prompt`),
any column of the data, and the `arguments` of the configuration, which win over a column of the same name:

    def score(completion, answer): return float(completion.strip() == answer)
    def score(completions, prompts, answer, **columns): return [...]

It returns a finite number per sample, or None to abstain. Runs without torch and ray.
"""

import functools
import inspect
import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal

from actors.batch import Prompt, Rollout
from actors.config import UserError
from algorithms.config import RewardFunction
from algorithms.reward_functions import cause_of, nearest, resolve, shorten


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """The reward of one sample, or why there is none."""

    reward: float
    """Weighted sum over the functions that did not abstain; NaN when failed."""
    parts: dict[str, float]
    """Unweighted value of each function that gave one, by its label."""
    status: Literal["ok", "failed"]
    error: str | None = None
    """When failed, one line: function, cause, sample."""
    cause: str | None = None
    """When failed, `error` without the sample, to count distinct causes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """A batch to score; every list has one entry per sample."""

    prompts: list[str]
    completions: list[str]
    columns: dict[str, list[Any]]

    def only(self, index: int) -> "Samples":
        """The batch of one that holds sample `index`."""
        columns = {name: [values[index]] for name, values in self.columns.items()}
        return Samples(prompts=[self.prompts[index]], completions=[self.completions[index]], columns=columns)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedFunction:
    """A reward function, ready to be called."""

    name: str
    """As the configuration names it."""
    label: str
    """Key of its values in Score.parts, unique within the run."""
    weight: float
    arguments: dict[str, Any]
    call: Callable[..., Any]


def check_signature(function: RewardFunction, columns: Collection[str], index: int = 0) -> None:
    """Check that the data's `columns` and the configured arguments provide what the function needs.

    Raises what `resolve` raises, and UserError for a required parameter that nobody provides and for an argument that
    the function does not take or that every call fills.
    """
    call = resolve(function, index)
    parameters = inspect.signature(call).parameters
    own = _own_names(call)
    offered = {*columns, *own, *function.arguments}
    missing = [name for name, item in parameters.items() if _required(item) and name not in offered]
    problems = [
        f"reward.functions[{index}].name: {function.name} needs a parameter {name}, which is neither a data column nor "
        f"in its arguments, got columns {', '.join(sorted(columns)) or 'none'}{nearest(name, offered)}"
        for name in missing
    ]
    for name in function.arguments:
        field = f"reward.functions[{index}].arguments.{name}"
        if name in own:
            problems.append(f"{field}: must not be {' or '.join(own)}, which every call passes, got {name}")
        elif not _accepts(call, name):
            problems.append(f"{field}: {function.name} has no such parameter{nearest(name, parameters)}, got {name}")
    if problems:
        raise UserError(*problems)


def load_functions(functions: list[RewardFunction]) -> list[LoadedFunction]:
    """Resolve all functions; raises UserError like `resolve`, a line per problem."""
    calls: list[Callable[..., Any]] = []
    problems: list[str] = []
    for index, function in enumerate(functions):
        try:
            calls.append(resolve(function, index))
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(*problems)
    return [
        LoadedFunction(name=function.name, label=label, weight=function.weight, arguments=function.arguments, call=call)
        for function, label, call in zip(functions, labels(functions), calls, strict=True)
    ]


def labels(functions: list[RewardFunction]) -> list[str]:
    """A short unique name per function, for metrics: `score`, and `score_2` for the second of that name."""
    found: list[str] = []
    for function in functions:
        base = function.name.rpartition(":")[2]
        same = sum(other.name.rpartition(":")[2] == base for other in functions[: len(found)])
        found.append(f"{base}_{same + 1}" if same else base)
    return found


def load_scorer(functions: list[RewardFunction]) -> Callable[[Prompt, list[Rollout]], list[Score]]:
    """What a reward worker runs: a callable from a prompt and its rollouts to their scores, in order."""
    return functools.partial(score_rollouts, load_functions(functions))


def score_rollouts(functions: list[LoadedFunction], prompt: Prompt, rollouts: list[Rollout]) -> list[Score]:
    """Score the rollouts of one prompt; one that failed to be generated is failed here too, and no function sees it."""
    whole = [rollout for rollout in rollouts if rollout.status != "failed"]
    samples = Samples(
        prompts=[prompt.text] * len(whole),
        completions=[rollout.text for rollout in whole],
        columns={name: [value] * len(whole) for name, value in prompt.row.items()},
    )
    scores = iter(score_batch(functions, samples))
    return [
        failed_score(f"the rollout failed ({rollout.finish_reason})", prompt.text, rollout.text)
        if rollout.status == "failed"
        else next(scores)
        for rollout in rollouts
    ]


def score_batch(functions: list[LoadedFunction], samples: Samples) -> list[Score]:
    """Score every sample with every function; a function's mistakes end up in the Score, never as an exception.

    When a batched function raises, it is called again with each sample alone, so that only the guilty ones fail.
    """
    if not samples.completions:
        return []
    outcomes = [_evaluate(function, samples) for function in functions]
    texts = zip(samples.prompts, samples.completions, strict=True)
    return [
        _combine(functions, values, prompt, completion)
        for values, (prompt, completion) in zip(zip(*outcomes, strict=True), texts, strict=True)
    ]


def failed_score(cause: str, prompt: str, completion: str) -> Score:
    """A Score without a reward, whose error names the cause and the sample."""
    error = f"{cause}; prompt {shorten(prompt)}, completion {shorten(completion)}"
    return Score(reward=math.nan, parts={}, status="failed", error=error, cause=cause)


def _own_names(call: Callable[..., Any]) -> tuple[str, str]:
    batched = "completions" in inspect.signature(call).parameters
    return ("completions", "prompts") if batched else ("completion", "prompt")


def _required(parameter: inspect.Parameter) -> bool:
    return parameter.default is parameter.empty and parameter.kind not in (
        parameter.VAR_POSITIONAL,
        parameter.VAR_KEYWORD,
    )


def _accepts(call: Callable[..., Any], name: str) -> bool:
    parameters = inspect.signature(call).parameters
    named = name in parameters and parameters[name].kind is not inspect.Parameter.VAR_POSITIONAL
    return named or any(item.kind is item.VAR_KEYWORD for item in parameters.values())


def _keywords(function: LoadedFunction, samples: Samples) -> dict[str, list[Any]]:
    """Lists for those of the function's parameters that the batch fills: copies, which the function may change."""
    completion_name, prompt_name = _own_names(function.call)
    offered = {**samples.columns, completion_name: samples.completions, prompt_name: samples.prompts}
    return {
        name: list(values)
        for name, values in offered.items()
        if name not in function.arguments and _accepts(function.call, name)
    }


def _evaluate(function: LoadedFunction, samples: Samples) -> list[float | str | None]:
    """Per sample: a value, None for an abstention, or the cause of a failure as text."""
    keywords = _keywords(function, samples)
    count = len(samples.completions)
    if "completion" in keywords:
        rows = [{name: values[index] for name, values in keywords.items()} for index in range(count)]
        return [_number(*_call(function, row)) for row in rows]
    returned, cause = _call(function, keywords)
    if cause and count > 1:
        return [_evaluate(function, samples.only(index))[0] for index in range(count)]
    if cause:
        return [cause]
    values = returned.tolist() if hasattr(returned, "tolist") else returned
    if not isinstance(values, (list, tuple)):
        return [f"returned {type(values).__name__}, not a list of {count} numbers"] * count
    if len(values) != count:
        return [f"returned {len(values)} values for {count} completions"] * count
    return [_number(value) for value in values]


def _call(function: LoadedFunction, keywords: dict[str, Any]) -> tuple[Any, str | None]:
    """What the function returns, or the cause of its failure."""
    try:
        return function.call(**keywords, **function.arguments), None
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # users' code may raise anything: sys.exit(), math-verify's BaseException timeouts
        code = getattr(inspect.unwrap(function.call), "__code__", None)
        return None, cause_of(error, code.co_filename if code else None)


def _number(value: Any, cause: str | None = None) -> float | str | None:
    if cause or value is None:
        return cause
    if getattr(value, "ndim", None) == 0:  # numpy and torch scalars
        value = value.item()
    if not isinstance(value, Real):
        return f"returned {type(value).__name__}, not a number"
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    return number if math.isfinite(number) else f"returned {number}, not a finite number"


def _combine(
    functions: list[LoadedFunction], values: tuple[float | str | None, ...], prompt: str, completion: str
) -> Score:
    for function, value in zip(functions, values, strict=True):
        if isinstance(value, str):
            return failed_score(f"{function.name}: {value}", prompt, completion)
    given = [(item, value) for item, value in zip(functions, values, strict=True) if isinstance(value, float)]
    if not given:
        return failed_score("every reward function abstained (returned None)", prompt, completion)
    reward = sum(function.weight * value for function, value in given)
    return Score(reward=reward, parts={function.label: value for function, value in given}, status="ok")
