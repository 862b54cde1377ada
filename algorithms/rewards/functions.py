"""The reward functions that come with Tandem, and how one is found by its name. Runs without torch and ray."""

import difflib
import importlib
import importlib.util
import inspect
import sys
import threading
import traceback
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from actors.config import UserError
from actors.secret_text import masked
from algorithms.config import RewardFunction
from algorithms.rewards.math_final import gold_text, stated_answer
from algorithms.rewards.math_size import is_too_large
from algorithms.rewards.math_text import fault_in

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


def parsed_gold(answer: object) -> list[Any]:
    """A gold answer as math-verify's expressions, parsed whole.

    Raises ValueError: it holds no expression, more than one expression, or a number too large to compare.
    """
    fault = gold_fault(answer)
    expressions = [] if fault else _parsed(gold_text(str(answer)))
    if fault or not expressions:
        fault = fault or "is no mathematical expression as a whole"
        raise ValueError(f"the gold answer {fault}, got {shorten(str(answer))}")
    return expressions


def _parsed(text: str) -> list[Any]:
    """A normalised answer as expressions; none if it is not an expression from its first to its last character."""
    math_verify = importlib.import_module("math_verify")
    return math_verify.parse(
        rf"\boxed{{{text}}}",
        extraction_config=[math_verify.LatexExtractionConfig(boxed_match_priority=0)],
        fallback_mode="no_fallback",
        parsing_timeout=_time_limit(),
    )


def _time_limit() -> int | None:
    # math-verify measures time by signals, which only the main thread receives; elsewhere the caller's deadline holds.
    return MATH_TIMEOUT_S if threading.current_thread() is threading.main_thread() else None


BUILT_IN: dict[str, Callable[..., Any]] = {"exact_match": exact_match, "math": math_answer}


def resolve(function: RewardFunction, index: int = 0) -> Callable[..., Any]:
    """Find the callable that `function.name` names; `index` is its place in reward.functions, for messages.

    Relative paths start at the working directory, from which `module:function` is importable too.
    Raises UserError: no such built-in, file, module or function; an import that fails; not a plain callable that takes
    `completion` or `completions`.
    """
    problem = _problem_at(f"reward.functions.{index}.name", function.name)
    source, colon, attribute = function.name.rpartition(":")
    if not colon:
        if function.name in BUILT_IN:
            return BUILT_IN[function.name]
        if function.name.endswith(".py"):
            raise problem(f"must name the function too, as {function.name}:function")
        known = ", ".join(BUILT_IN)
        raise problem(f"must be {known}, path.py:function or module:function{nearest(function.name, BUILT_IN)}")
    if not (source and attribute):
        raise problem("must have a file or module before the colon and a function behind it")
    module = _load_file(Path(source), problem) if source.endswith(".py") else _load_module(source, problem)
    if not hasattr(module, attribute):
        defined = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        raise problem(f"{source} has no function {attribute}{nearest(attribute, defined)}")
    call = getattr(module, attribute)
    fault = _fault(call)
    if fault:
        raise problem(f"{attribute} {fault}")
    return call


def cause_of(error: BaseException, file: str | None = None) -> str:
    """Type, message and line of an exception caught by the caller, on one line, without the secrets of URLs.

    The line is the last one in `file` if the exception passed through it, else where it was raised.
    """
    said = masked(" ".join(_message(error)[:10_000].split()))
    said = said if len(said) <= 200 else f"{said[:200]} ..."
    text = f"{type(error).__name__}: {said}" if said else type(error).__name__
    # The first frame is the one that caught it; the import system's frames tell a user nothing.
    frames = traceback.extract_tb(error.__traceback__)[1:]
    frames = [frame for frame in frames if not frame.filename.startswith(("<frozen", str(importlib.__file__)))]
    at = ([frame for frame in frames if frame.filename == file] or frames)[-1:]
    if isinstance(error, SyntaxError) or not at:
        return text
    return f"{text} ({Path(at[0].filename).name} line {at[0].lineno})"


def _message(error: BaseException) -> str:
    """What an exception says, if it can: its __str__ may be anybody's code."""
    try:
        return str(error)
    except BaseException as another:  # a fault of the message must not hide the fault itself
        return f"its message cannot be read, as that raises {type(another).__name__}"


def shorten(text: str, limit: int = 80) -> str:
    """`text` quoted on one line, its middle left out when longer than `limit` characters."""
    half = limit // 2
    return repr(text if len(text) <= limit else f"{text[:half]} ... {text[-half:]}")


def kind_of(value: Any) -> str:
    """What a value is in plain words, and (shortened) itself, for messages."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, str | list | tuple | dict) and not value:
        return f"{'' if value == '' else 'an '}empty {noun_of(value).removeprefix('a ')}"
    if isinstance(value, str):
        return f"{'text' if value.strip() else 'blank text'} {_cut(value)!r}"
    if isinstance(value, int | float | list | tuple | dict):
        return f"{noun_of(value)} {_cut(repr(value))}"
    return noun_of(value)


def noun_of(value: Any) -> str:
    """What kind of value it is, in plain words."""
    if value is None:
        return "null"
    nouns: dict[Any, str] = {
        bool: "a truth value",
        str: "text",
        int | float: "a number",
        list | tuple: "a list",
        dict: "a mapping",
    }
    found = (noun for kind, noun in nouns.items() if isinstance(value, kind))
    return next(found, f"an object of the class {type(value).__name__}")


def function_fault(function: Any) -> str | None:
    """What is wrong with a callable that is to return a value at once, whatever it takes."""
    for item in (function, type(function).__call__):
        if inspect.iscoroutinefunction(item) or inspect.isasyncgenfunction(item):
            return "must be a plain function, is async"
    return None


def nearest(name: str, valid: Iterable[str]) -> str:
    """A hint with the valid name most like `name`, or nothing."""
    near = difflib.get_close_matches(name, list(valid), 1)
    return f" (did you mean {near[0]}?)" if near else ""


def _cut(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."


def _problem_at(field: str, value: str) -> Callable[[str], UserError]:
    return lambda rule: UserError(f"{field}: {rule}, got {value!r}")


def _load_file(path: Path, problem: Callable[[str], UserError]) -> ModuleType:
    if path.is_dir():
        raise problem(f"must be a file, {path} is a directory")
    if not path.is_file():
        there = [str(path.with_name(item.name)) for item in path.parent.glob("*.py")]
        raise problem(f"no such file {path}{nearest(str(path), there)}")
    path = path.resolve()
    # A name of its own: a file called math.py must not become the module math.
    name = f"reward_file_{path.stem}_{zlib.crc32(str(path).encode()):08x}"
    if name in sys.modules:
        return sys.modules[name]
    _importable(str(path.parent))
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    # The process is there for such code alone: what it raises is its fault, KeyboardInterrupt too.
    except BaseException as error:
        del sys.modules[name]
        raise problem(f"importing {path.name} failed with {cause_of(error, str(path))}") from None
    return module


def _load_module(name: str, problem: Callable[[str], UserError]) -> ModuleType:
    _importable(str(Path.cwd()))
    try:
        return importlib.import_module(name)
    except BaseException as error:  # as in _load_file
        if isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}."):
            here = [item.stem for item in Path.cwd().glob("*.py")]
            raise problem(f"no module named {error.name}{nearest(name, here)}") from None
        raise problem(f"importing {name} failed with {cause_of(error)}") from None


def _importable(directory: str) -> None:
    # Last, so that no file of the user's hides an installed module.
    if directory not in sys.path:
        sys.path.append(directory)


def _fault(call: Any) -> str | None:
    """What is wrong with `call` as a reward function, whatever the data."""
    if not callable(call):
        return f"must be a function, is {kind_of(call)}"
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
