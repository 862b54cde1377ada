"""Code of the user's that a configuration names: looked at, never imported."""

import ast
import os
import sys
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from actors.failure import first_sentence
from algorithms.user.code import no_file, no_function, no_module, split_name

_ROOT = Path(__file__).resolve().parent.parent.parent


def fault_unseen(name: str, known: Collection[str] = ()) -> str | None:
    """What is wrong with a name of code (see `load_function`), as far as its file tells."""
    try:
        source, function = split_name(name, known)
    except ValueError as error:
        return str(error)
    if source.endswith(".py"):
        if not os.path.isfile(source):
            return no_file(source)
        file = Path(source)
    elif (found := _file_of(source)) is None:
        # What an installed module holds, only importing it would tell.
        return None if _is_installed(source) else no_module(source, source)
    else:
        file = found
    try:
        names = defined_names(file)
    except (OSError, ValueError, SyntaxError, RecursionError, MemoryError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else first_sentence(str(error)) or "too deeply nested"
        return f"{file.name} cannot be read as Python ({reason})"
    return None if function in names or "*" in names else no_function(source, function, names)


def defined_names(file: Path) -> set[str]:
    """Names at the top of a file; with `*` where it may have others. Raises what reading and parsing raise."""
    return set(_names(ast.parse(file.read_bytes()).body))


def own_module(module: str) -> Path:
    """The file of a module of Tandem's."""
    return _ROOT.joinpath(*module.split(".")).with_suffix(".py")


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


def _names(body: Iterable[ast.stmt]) -> Iterator[str]:
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield "*" if node.name == "__getattr__" else node.name  # it may answer to any name
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from ((item.asname or item.name).partition(".")[0] for item in node.names)  # of `import a.b` it is a
        elif isinstance(node, ast.If | ast.Try | ast.With | ast.For | ast.While):
            for part in ("body", "orelse", "finalbody"):
                yield from _names(getattr(node, part, []))
            for handler in getattr(node, "handlers", []):
                yield from _names(handler.body)
        else:
            # Every name in it, whether it is bound or read: one too many only means that a fault is found later.
            yield from (item.id for item in ast.walk(node) if isinstance(item, ast.Name))
