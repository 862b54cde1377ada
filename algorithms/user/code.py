"""Functions of the user's that a configuration names, `file.py:function` or `module:function`: found and imported.

Reward functions run in processes of their own, which are there for such code alone; converters and generators of rows
in whichever process reads the rows, with a deadline. Either way, a name that leads to nothing is the same line.
`algorithms.user.static_look` says of the same names what is wrong with them without importing anything.
"""

import importlib
import importlib.util
import inspect
import sys
import traceback
import zlib
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from types import ModuleType

from actors.config import UserError
from actors.secret_text import masked
from algorithms.user.deadline import TooLate, Watch
from algorithms.words import kind_of, nearest, nearest_file

_IMPORT_S = 60.0
"""Longest time that an import may take in a process that does other things too."""

Problem = Callable[[str], UserError]
"""Makes a line of a rule: with the field, and what was given."""


def load_function(name: str, field: str, *, known: Collection[str] = (), alone: bool = False) -> Callable[..., object]:
    """The function that `name` names, imported: relative paths, and modules, start at the working directory.

    Args:
        name: `file.py:function` or `module:function`.
        field: the setting, for messages.
        known: names without a colon that the setting takes too, for messages.
        alone: this process is there for such code alone. Then whoever has started it keeps its time, whatever the code
            raises is its fault, a file finds its neighbours, and it is run once, however often it is asked for.

    Raises:
        UserError: one line with `field`: no such name, file, module or function (with the nearest one), an import that
            fails or takes too long, or what is named is no function.
    """
    problem = problem_at(field, name)
    try:
        source, attribute = split_name(name, known)
    except ValueError as error:
        raise problem(str(error)) from None
    module = _imported(source, problem, alone=alone)
    if not hasattr(module, attribute):
        names = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise problem(no_function(source, attribute, names))
    function = getattr(module, attribute)
    if not callable(function):
        raise problem(f"{attribute} must be a function, is {kind_of(function)}")
    return function


def split_name(name: str, known: Collection[str] = ()) -> tuple[str, str]:
    """File or module, and function, that a name consists of; raises ValueError with the rule that it breaks."""
    source, colon, attribute = name.rpartition(":")
    if source and attribute:
        return source, attribute
    if colon:
        raise ValueError("must have a file or module before the colon and a function behind it")
    if name.endswith(".py"):
        raise ValueError(f"must name the function too, as {name}:function")
    others = "".join(f"{each}, " for each in known)
    raise ValueError(f"must be {others}path.py:function or module:function{nearest(name, known)}")


def problem_at(field: str, name: str) -> Problem:
    """Makes the line of a mistake in a name of code."""
    shown = name if name.strip() and name.isprintable() else repr(name)
    return lambda rule: UserError(f"{field}: {rule}, got {shown}")


def no_file(source: str) -> str:
    """That a file of code is not there."""
    return f"no such file {source}{nearest_file(Path(source))}"


def no_module(name: str, wanted: str) -> str:
    """That there is no module `name`, which is `wanted` or a package of it."""
    return f"no module named {name}{nearest(wanted, [file.stem for file in Path.cwd().glob('*.py')])}"


def no_function(source: str, attribute: str, there: Collection[str]) -> str:
    """That a file or module has no such function, but those."""
    return f"{source} has no function {attribute}{nearest(attribute, there)}"


def file_of(module: str) -> Path | None:
    """Where a module that lies in the working directory is; importing anything else is not looked into."""
    file = Path.cwd().joinpath(*module.split(".")).with_suffix(".py")
    return file if file.is_file() else None


def function_fault(function: object) -> str | None:
    """What is wrong with a callable that is to return a value at once, whatever it takes."""
    for item in (function, type(function).__call__):
        if inspect.iscoroutinefunction(item) or inspect.isasyncgenfunction(item):
            return "must be a plain function, is async"
    return None


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


def _imported(source: str, problem: Problem, *, alone: bool) -> ModuleType:
    load, file = _loader(source, problem, alone=alone)
    # Where others wait too, Ctrl-C is the user's; in a process of its own it can only be the code's.
    mistakes = BaseException if alone else (Exception, SystemExit)
    try:
        if alone:
            return load()
        with Watch(_IMPORT_S, file) as watch:
            return watch(load)
    except TooLate as error:
        raise problem(f"importing {source} {error}") from None
    except mistakes as error:  # importing runs someone else's code
        # It, or a package that it is in; what it imports itself is another mistake.
        if isinstance(error, ModuleNotFoundError) and error.name and f"{source}.".startswith(f"{error.name}."):
            raise problem(no_module(error.name, source)) from None
        raise problem(f"importing {source} failed with {cause_of(error, file)}") from (None if alone else error)


def _loader(source: str, problem: Problem, *, alone: bool) -> tuple[Callable[[], ModuleType], str | None]:
    """What imports a file or module, and where its code is, if that is known before."""
    if not source.endswith(".py"):
        # A console script does not have the working directory on its path.
        _importable(str(Path.cwd()))
        file = file_of(source)
        return partial(importlib.import_module, source), None if file is None else str(file)
    path = Path(source)
    if path.is_dir():
        raise problem(f"must be a file, {path} is a directory")
    if not path.is_file():
        raise problem(no_file(source))
    path = path.resolve()
    if alone:
        _importable(str(path.parent))
    return partial(_load_once if alone else _load_again, path), str(path)


def _load_once(path: Path) -> ModuleType:
    return sys.modules.get(_module_name(path)) or _load_again(path)  # a second run would have other globals


def _load_again(path: Path) -> ModuleType:
    """Run a file, also if it has run before: a generator may count from where its file begins."""
    name = _module_name(path)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader, "a .py file always has a loader"
    # Before it runs: dataclasses and pickle look their module up by name.
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module


def _module_name(path: Path) -> str:
    """A name of its own: a file called math.py must not become the module math."""
    return f"user_file_{path.stem}_{zlib.crc32(str(path).encode()):08x}"


def _importable(directory: str) -> None:
    # Last, so that no file of the user's hides an installed module.
    if directory not in sys.path:
        sys.path.append(directory)
