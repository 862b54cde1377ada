"""Reward functions are called here: found by name, called, answers checked: a number per sample, or None to abstain.

A function receives its arguments by parameter name. One with a `completions` parameter is called once per batch, with
lists; one with a `completion` parameter is called per sample, with scalars. Both may also name `prompts` (`prompt`),
any column of the data, and the `arguments` of the configuration, which win over a column of the same name:

    def score(completion, answer): return float(completion.strip() == answer)
    def score(completions, prompts, answer, **columns): return [...]

Either may name `completion_ids`, too: the tokens that were sampled, the one that ended the response included. With
`reward.keep_special_tokens` completions have their special tokens, but for that one.

It returns a finite number per sample, or None to abstain. Runs without torch and ray.
"""

import inspect
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Protocol, TypeGuard

from actors.config import UserError
from actors.user.confined import limits_memory
from algorithms.config import RewardFunction
from algorithms.rewards.built_in import BUILT_IN
from algorithms.user.code import cause_of, function_fault, load_function, problem_at
from algorithms.words import nearest, noun_of

_IDS = "completion_ids"
Outcome = float | str | None
"""Of a source for a sample: a value, the cause of a failure, or None for an abstention."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """A batch to score; every list has one entry per sample."""

    prompts: list[str]
    completions: list[str]
    columns: Mapping[str, Sequence[object]]
    marked: Sequence[str] | None = None
    """Completions as functions read them, where that is not as all others do: with special tokens."""
    completion_ids: Sequence[list[int]] | None = None
    """The tokens of each that were sampled, [R]; None where no function asks for them."""

    @property
    def rows(self) -> list[dict[str, object]]:
        """The columns, sample by sample."""
        count = len(self.completions)
        return [{name: values[index] for name, values in self.columns.items()} for index in range(count)]

    def only(self, index: int) -> "Samples":
        """The batch of one that holds sample `index`."""
        return Samples(
            prompts=[self.prompts[index]],
            completions=[self.completions[index]],
            columns={name: [values[index]] for name, values in self.columns.items()},
            marked=self.marked and [self.marked[index]],
            completion_ids=self.completion_ids and [self.completion_ids[index]],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedFunction:
    """A reward function, ready to be called."""

    name: str
    """As the configuration names it."""
    label: str
    """Key of its values in Score.parts, unique within the run."""
    weight: float
    arguments: Mapping[str, object]
    call: Callable[..., object]

    @property
    def asks_for_ids(self) -> bool:
        """Whether it names the tokens of completions among its parameters: one that takes any columns has not asked."""
        parameter = inspect.signature(self.call).parameters.get(_IDS)
        return parameter is not None and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)

    def evaluate(self, samples: Samples) -> list[Outcome]:
        """Call the function; its mistakes are outcomes, never an exception.

        When a batched function raises, it is called again with each sample alone, so that only the guilty ones fail.
        """
        keywords = _keywords(self, samples)
        count = len(samples.completions)
        # By its signature alone: data may have a column completion, and a batched function take any column.
        if not _batched(self.call):
            rows = [{name: values[index] for name, values in keywords.items()} for index in range(count)]
            return [checked_number(*_call(self, row)) for row in rows]
        values, cause = _call(self, keywords)
        if cause and count > 1:  # which sample it was is not known
            return [self.evaluate(samples.only(index))[0] for index in range(count)]
        if cause:
            return [cause]
        if not isinstance(values, (list, tuple)):
            return [f"returned {_returned(values)}, not a list of {count} numbers"] * count
        if len(values) != count:
            return [f"returned {len(values)} values for {count} completions"] * count
        return [checked_number(value) for value in values]


def resolve(function: RewardFunction, index: int = 0) -> Callable[..., object]:
    """Find the callable that `function.name` names; `index` is its place in reward.functions, for messages.

    Relative paths start at the working directory, from which `module:function` is importable too.
    Raises UserError: no such built-in, file, module or function; an import that fails; not a plain callable that takes
    `completion` or `completions`.
    """
    if function.name in BUILT_IN:
        return BUILT_IN[function.name]
    field = f"reward.functions.{index}.name"
    # Alone: reward processes, and that of `check`, run nothing else.
    call = load_function(function.name, field, known=BUILT_IN, alone=True)
    if fault := _fault(call):
        raise problem_at(field, function.name)(f"{function.name.rpartition(':')[2]} {fault}")
    return call


def _fault(call: Callable[..., object]) -> str | None:
    """What is wrong with `call` as a reward function, whatever the data."""
    if fault := function_fault(call):
        return fault
    try:
        parameters = inspect.signature(call).parameters
    except ValueError:
        return "must have a readable signature"
    if ("completion" in parameters) == ("completions" in parameters):
        return "must take completion (one sample) or completions (a batch), one of the two"
    fixed = [name for name, item in parameters.items() if item.kind is item.POSITIONAL_ONLY]
    return f"must take {', '.join(fixed)} by name, not by position only" if fixed else None


def load_reward_function(function: RewardFunction, index: int, label: str) -> LoadedFunction:
    """Raises UserError like `resolve`."""
    call = resolve(function, index)
    return LoadedFunction(
        name=function.name, label=label, weight=function.weight, arguments=function.arguments, call=call
    )


def check_signature(
    function: RewardFunction,
    columns: Collection[str],
    index: int = 0,
    where: str = "data.train",
    lacking: Mapping[str, str] | None = None,
) -> None:
    """Check that the `columns` of the data in `where` and the configured arguments provide what the function needs.

    `lacking`: columns that only some rows have -> the first row without, as data.train: row 11.

    Raises what `resolve` raises, and UserError for a required parameter that nobody provides and for an argument that
    the function does not take or that every call fills.
    """
    call = resolve(function, index)
    parameters = inspect.signature(call).parameters
    own = _own_names(call)
    taken = {*own, _IDS}
    offered = {*columns, *taken, *function.arguments}
    missing = [name for name, item in parameters.items() if _required(item) and name not in offered]
    of = "" if where == "data.train" else f" of {where}"
    problems = [
        f"{lacking[name]} lacks the column {name}, which {function.name} takes"
        if lacking and name in lacking
        else f"reward.functions.{index}.name: {function.name} needs a parameter {name}, which is neither a data column "
        f"nor in its arguments, got columns {', '.join(sorted(columns)) or 'none'}{of}{nearest(name, offered)}"
        for name in missing
    ]
    for name in function.arguments:
        field = f"reward.functions.{index}.arguments.{name}"
        if name in taken:
            passed = _IDS if name == _IDS else " or ".join(own)
            problems.append(f"{field}: must not be {passed}, which every call passes, got {name}")
        elif not _accepts(call, name):
            problems.append(f"{field}: {function.name} has no such parameter{nearest(name, parameters)}, got {name}")
    if problems:
        raise UserError(*problems)


def _batched(call: Callable[..., object]) -> bool:
    """Whether a function is called with all samples of a batch, rather than with each alone."""
    return "completions" in inspect.signature(call).parameters


def _own_names(call: Callable[..., object]) -> tuple[str, str]:
    return ("completions", "prompts") if _batched(call) else ("completion", "prompt")


def _required(parameter: inspect.Parameter) -> bool:
    return parameter.default is parameter.empty and parameter.kind not in (
        parameter.VAR_POSITIONAL,
        parameter.VAR_KEYWORD,
    )


def _accepts(call: Callable[..., object], name: str) -> bool:
    parameters = inspect.signature(call).parameters
    named = name in parameters and parameters[name].kind is not inspect.Parameter.VAR_POSITIONAL
    return named or any(item.kind is item.VAR_KEYWORD for item in parameters.values())


def _keywords(function: LoadedFunction, samples: Samples) -> dict[str, list[object]]:
    """Lists for those of the function's parameters that the batch fills: copies, which the function may change."""
    completion_name, prompt_name = _own_names(function.call)
    offered: dict[str, Sequence[object]] = {
        **samples.columns,
        completion_name: samples.completions if samples.marked is None else samples.marked,
        prompt_name: samples.prompts,
    }
    found = {
        name: list(values)
        for name, values in offered.items()
        if name not in function.arguments and _accepts(function.call, name)
    }
    if function.asks_for_ids:
        assert samples.completion_ids is not None, "whoever has a function called knows what it asks for"
        found[_IDS] = [list(ids) for ids in samples.completion_ids]
    return found


def _call(function: LoadedFunction, keywords: Mapping[str, object]) -> tuple[object, str | None]:
    """What the function returns, of plain values where it is an array, or the cause of its failure."""
    try:
        return _plain(function.call(**keywords, **function.arguments)), None
    # Users' code may raise anything: sys.exit(), KeyboardInterrupt, math-verify's BaseException timeouts. The signal
    # of Ctrl-C is none of this process's: the run that started it ends it.
    except BaseException as error:
        code = getattr(inspect.unwrap(function.call), "__code__", None)
        cause = cause_of(error, code.co_filename if code else None)
        limited = isinstance(error, MemoryError) and limits_memory()
        return None, f"{cause}: more than reward.memory_mib allows" if limited else cause


def _plain(returned: object) -> object:
    """Numbers instead of arrays, tensors and their scalars, a plain list instead of one of the user's classes."""
    found = returned.tolist() if _is_array(returned) else returned
    # What a class of the user's does when it is read happens here, where its failure is caught.
    return list(found) if isinstance(found, (list, tuple)) else found


class _Array(Protocol):
    """What numpy's and torch's arrays have in common."""

    def tolist(self) -> object: ...
    def item(self) -> object: ...


def _is_array(value: object) -> TypeGuard[_Array]:
    return hasattr(value, "tolist")


def _is_scalar(value: object) -> TypeGuard[_Array]:
    return getattr(value, "ndim", None) == 0  # numpy's and torch's scalars are such arrays


def checked_number(value: object, cause: str | None = None) -> Outcome:
    """What a source gave for a sample as an outcome, or `cause` when there is one."""
    if cause or value is None:
        return cause
    try:
        if _is_scalar(value):
            value = value.item()
        if not isinstance(value, Real):
            return f"returned {_returned(value)}, not a number"
        number = float(value)
    except OverflowError:
        number = math.inf
    except BaseException as error:  # an object of the user's: reading it is calling its code
        return f"returned {noun_of(value)}, which cannot be read as a number: {cause_of(error)}"
    return number if math.isfinite(number) else f"returned {number}, not a finite number"


def _returned(value: object) -> str:
    """What a function gave; without the value, so that causes can be counted."""
    return "nothing (None)" if value is None else noun_of(value)
