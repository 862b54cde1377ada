"""Figures of the code's structure: python -m benchmarks.structure [--tree DIR ...]

Files per folder, import circles, places of `launch/` that ask of which class a section of settings is, functions from
`run()` to the line that clips an importance ratio, `Any` and comments per 1,000 lines. Read from the source: nothing is
imported, so that it says the same of any version. What the driver does for a sample is measured by `benchmarks.driver`.
"""

import argparse
import ast
import io
import tokenize
from collections import Counter
from pathlib import Path

from benchmarks import results

PACKAGES = ("actors", "algorithms", "launch")
ROOT = Path(__file__).resolve().parent.parent
CHAIN = (
    ("launch/run/run.py", "run"),
    ("launch/run/run.py", "_learn_and_export"),
    ("algorithms/rl/ppo.py", "train"),
    ("algorithms/rl/ppo.py", "learn"),
    ("algorithms/rl/stages.py", "submit_updates"),
    ("actors/train/trainer.py", "update"),
    ("actors/train/trainer.py", "_update"),
    ("algorithms/rl/policy_loss.py", "policy_loss"),
    ("algorithms/rl/losses.py", "clipped_policy_loss"),
)
"""Functions, each of which names the next one, or gets it as an argument."""


def main() -> None:
    """Print a table, a column for each tree."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tree", action="append", type=Path, help="a checkout; this one is always shown last")
    trees = [*(parser.parse_args().tree or []), ROOT]
    columns = [figures(tree) for tree in trees]
    names = dict.fromkeys(name for column in columns for name in column)
    header = ["figure", *(tree.resolve().name for tree in trees)]
    print(results.table(header, [[name, *(column.get(name, "") for column in columns)] for name in names]))


def figures(tree: Path) -> dict[str, str]:
    """Name -> figure, of one tree."""
    files = sorted(path for package in PACKAGES for path in (tree / package).rglob("*.py"))
    sources = {path: path.read_text(encoding="utf-8") for path in files}
    lines = sum(source.count("\n") for source in sources.values())
    folders = Counter(path.parent.relative_to(tree).as_posix() for path in files if path.name != "__init__.py")
    largest, most = folders.most_common(1)[0]
    parsed = {path: ast.parse(source) for path, source in sources.items()}
    any_names = sum(
        isinstance(node, ast.Name) and node.id == "Any" for each in parsed.values() for node in ast.walk(each)
    )
    comments = sum(map(_comment_lines, sources.values()))
    return {
        "files": str(len(files)),
        "lines": str(lines),
        "folders": str(len(folders)),
        "files in the largest folder": f"{most} ({largest})",
        "modules in an import circle, imports for types included": str(len(_in_circles(tree, parsed))),
        "isinstance on settings in launch/": str(_questions(tree, parsed)),
        "functions from run() to the clip of a ratio": _chain(tree, parsed),
        "Any per 1,000 lines": f"{1000 * any_names / lines:.1f}",
        "comment lines, %": f"{100 * comments / lines:.1f}",
    }


def _comment_lines(source: str) -> int:
    return sum(token.type == tokenize.COMMENT for token in tokenize.generate_tokens(io.StringIO(source).readline))


def _in_circles(tree: Path, parsed: dict[Path, ast.Module]) -> set[str]:
    """Modules that import each other, directly or over others."""
    names = {".".join(path.relative_to(tree).with_suffix("").parts): path for path in parsed}
    graph = {name: _imports(parsed[path], set(names)) - {name} for name, path in names.items()}
    changed = True
    while changed:  # what nobody imports, or what imports nobody, is in no circle
        imported = {used for uses in graph.values() for used in uses}
        keep = {name for name, uses in graph.items() if uses & graph.keys() and name in imported}
        changed = len(keep) < len(graph)
        graph = {name: graph[name] & keep for name in keep}
    return set(graph)


def _imports(module: ast.Module, names: set[str]) -> set[str]:
    """Of the module itself and of what it has under TYPE_CHECKING; not those within functions, which come later."""
    found: set[str] = set()
    nodes: list[ast.stmt] = list(module.body)
    for node in nodes:
        if isinstance(node, ast.If):
            nodes += node.body
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found & names


def _questions(tree: Path, parsed: dict[Path, ast.Module]) -> int:
    """`isinstance(x, C)` in launch/, where C is a class whose name ends with Config."""
    return sum(
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "isinstance"
        and any(isinstance(part, ast.Name) and part.id.endswith("Config") for part in ast.walk(node.args[1]))
        for path, module in parsed.items()
        if path.is_relative_to(tree / "launch")
        for node in ast.walk(module)
    )


def _chain(tree: Path, parsed: dict[Path, ast.Module]) -> str:
    """How many functions there are from the first to the last of CHAIN, both included; empty for another tree."""
    found = 0
    for file, function in CHAIN:
        module = parsed.get(tree / file)
        if module is None or function not in {
            node.name for node in ast.walk(module) if isinstance(node, ast.FunctionDef)
        }:
            return ""
        found += 1
    return str(found)


if __name__ == "__main__":
    main()
