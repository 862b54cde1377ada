"""Code that a configuration names: reward functions, converters and generators of rows. Looked at, never imported.

`--no-code` is for configurations of others: nothing of what they name runs. What comes with Tandem is no such code.
"""

import ast
import difflib
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from actors.config import UserError
from algorithms.data.sources import kind_of_source
from algorithms.rewards.functions import BUILT_IN
from launch.config import RunConfig

_OWN = ("algorithms.tasks", "algorithms.preference_tasks", "algorithms.retrieval_tasks")
"""Modules of generators that come with Tandem."""
_ROOT = Path(__file__).resolve().parent.parent.parent


def names_code(source: str, field: str) -> bool:
    """Whether a source of rows is a generator that does not come with Tandem. Raises UserError as kind_of_source."""
    if kind_of_source(source, field) != "generator":
        return False
    module, _, name = source.rpartition(":")
    return module not in _OWN or name not in _defined(_ROOT.joinpath(*module.split(".")).with_suffix(".py"))


def is_built_in(reward: str) -> bool:
    """Whether a reward function comes with Tandem."""
    return reward in BUILT_IN


def code_of(config: RunConfig) -> Iterator[tuple[str, str]]:
    """Setting and `file.py:function` or `module:function` of all code that a configuration names.

    Raises UserError for a source of rows that can be none.
    """
    data = config.data
    for field, given in (("data.train", data.train), ("data.eval", data.eval), ("data.corpus", data.corpus)):
        named = given if isinstance(given, dict) else {} if given is None else {"": given}
        for name, source in named.items():
            where = f"{field}.{name}" if name else field
            if names_code(source, where):
                yield where, source
    if data.converter:
        yield "data.converter", data.converter
    for index, function in enumerate(config.reward.functions):
        if not is_built_in(function.name):
            yield f"reward.functions.{index}.name", function.name


def check_code_is_there(config: RunConfig) -> list[str]:
    """A warning for each piece of code that is named, which has not run; raises UserError where one is not there."""
    problems, warnings = [], []
    for field, name in code_of(config):
        if problem := _missing(name):
            problems.append(f"{field}: {problem}, got {name}")
        else:
            warnings.append(f"{field}: {name} was not imported (--no-code), so nothing is known of what it gives")
    if problems:
        raise UserError(*problems)
    return warnings


def refuse_code(config: RunConfig) -> None:
    """Raise UserError for the rows that no one can see unless code runs that the configuration names."""
    named = [(field, name) for field, name in code_of(config) if field.startswith("data.")]
    if named:
        rule = "must be left out with --no-code, as its rows cannot be shown unless it runs"
        raise UserError(*(f"{field}: {rule}, got {name}" for field, name in named))


def _missing(name: str) -> str | None:
    """What is wrong with a name of code, as far as its file tells."""
    module, colon, function = name.rpartition(":")
    if not colon or not module or not function:
        known = f"{', '.join(BUILT_IN)}, " if not colon else ""
        return f"must be {known}path.py:function or module:function"
    if module.endswith(".py"):
        if not os.path.isfile(module):
            return f"no such file {module}"
        file = Path(module)
    elif (found := _file_of(module)) is None:
        return None if _is_installed(module) else f"no module named {module}"
    else:
        file = found
    try:
        known = _defined(file)
    except (OSError, ValueError, SyntaxError, RecursionError, MemoryError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else str(error).partition("\n")[0] or "too deeply nested"
        return f"{file.name} cannot be read as Python ({reason})"
    if function in known or "*" in known:
        return None
    near = difflib.get_close_matches(function, known, 1)
    return f"{module} has no function {function}{f' (did you mean {near[0]}?)' if near else ''}"


def _file_of(module: str) -> Path | None:
    """The file of a module in the working directory or in Tandem; finding that of another one may run its package."""
    for place in (Path.cwd(), _ROOT):
        path = place.joinpath(*module.split("."))
        for file in (path.with_suffix(".py"), path / "__init__.py"):
            if file.is_file():
                return file
    return None


def _is_installed(module: str) -> bool:
    first = module.partition(".")[0]
    return first in sys.modules or any(
        (Path(place) / first).is_dir() or any(Path(place).glob(f"{first}.*")) for place in sys.path if place
    )


def _defined(file: Path) -> set[str]:
    """Names at the top of a file; with `*` where it may have others. Raises what reading and parsing raise."""
    return set(_names(ast.parse(file.read_bytes()).body))


def _names(body: Iterable[ast.stmt]) -> Iterator[str]:
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield "*" if node.name == "__getattr__" else node.name
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from ((item.asname or item.name).partition(".")[0] for item in node.names)
        elif isinstance(node, ast.If | ast.Try | ast.With | ast.For | ast.While):
            for part in ("body", "orelse", "finalbody"):
                yield from _names(getattr(node, part, []))
            for handler in getattr(node, "handlers", []):
                yield from _names(handler.body)
        else:
            yield from (item.id for item in ast.walk(node) if isinstance(item, ast.Name))
