"""The architecture's rules: imports go one way, heavy libraries stay where they belong, files stay short."""

import ast
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("actors", "algorithms", "launch")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
MAY_IMPORT = {
    "actors": {"actors"},
    "algorithms": {"actors", "algorithms"},
    "launch": {"actors", "algorithms", "launch"},
}
OF_ALGORITHMS = {
    "data": {"user"},
    "division": {"rollouts"},
    "encoder": {"data", "offline", "user"},
    "offline": {"data", "division"},
    "rewards": {"user"},
    "rl": {"division", "rewards", "rollouts"},
    "rollouts": {"rewards"},
    "user": set[str](),
}
"""Folder of `algorithms/` -> the others that it may import."""
AT_HOME = {
    "deepspeed": {"actors/train/engine.py"},
    "sentence_transformers": {
        "actors/models/encoders.py",
        "algorithms/encoder/evaluation.py",
        "algorithms/encoder/losses.py",
        "algorithms/encoder/mteb.py",
        "launch/verbs/encoder_files.py",
        "launch/verbs/miner.py",
    },
    "vllm": {
        "actors/rollout/continuing.py",
        "actors/rollout/engine.py",
        "actors/rollout/vllm_options.py",
        "actors/weights/vllm_receiver.py",
        "actors/weights/vllm_sender.py",
        "actors/weights/binding.py",
    },
}
"""Library -> the only files that may import it."""
HEAVY = ("torch", "ray", "vllm", "transformers", "deepspeed", "datasets", "wandb", "sentence_transformers")
LONGEST_FILE, LONGEST_TOTAL = 400, 76_000
MOST_QUESTIONS = 15
"""Places of `launch/` that may ask of which class a section of settings is."""


def name(path: Path) -> str:
    """Path from the repository's root."""
    return path.relative_to(ROOT).as_posix()


def imports(path: Path) -> Iterator[str]:
    """Modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name(path)} line {node.lineno}: relative import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_imports_go_one_way() -> None:
    """launch -> algorithms -> actors, and never from tests or benchmarks."""
    ours = {*PACKAGES, "tests", "benchmarks"}
    wrong = [
        f"{name(path)} imports {module}"
        for path in FILES
        for module in imports(path)
        if (top := module.partition(".")[0]) in ours and top not in MAY_IMPORT[name(path).partition("/")[0]]
    ]
    assert wrong == []


def test_folders_of_algorithms_import_one_way() -> None:
    """From rows and rewards to rollouts, their division over ranks, and what is learned from them."""
    wrong = [
        f"{name(path)} imports {module}"
        for path in FILES
        if (parts := path.relative_to(ROOT).parts)[0] == "algorithms" and len(parts) > 2
        for module in imports(path)
        if (used := module.split("."))[0] == "algorithms" and used[1:] and used[1] in OF_ALGORITHMS
        if used[1] != parts[1] and used[1] not in OF_ALGORITHMS[parts[1]]
    ]
    assert wrong == []


@pytest.mark.parametrize("library", AT_HOME)
def test_a_library_stays_where_it_is_known(library: str) -> None:
    """DeepSpeed is known to one file, vLLM to rollout and transfer: also inside functions."""
    users = {name(path) for path in FILES if any(module.partition(".")[0] == library for module in imports(path))}
    assert users <= AT_HOME[library]
    assert users, f"nobody imports {library}: this test looks at the wrong files"


def test_modules_have_no_import_cycles() -> None:
    """Imports of our own modules form no cycle, those for types included; only those within functions are left out."""
    modules = {name(path).removesuffix(".py").replace("/", "."): path for path in FILES}
    graph = {
        module: {used for node in ast.parse(path.read_text()).body for used in _own(node, modules)}
        for module, path in modules.items()
    }
    while graph:
        free = {module for module, used in graph.items() if not used & graph.keys()}
        assert free, f"import cycle among {', '.join(sorted(graph))}"
        graph = {module: used for module, used in graph.items() if module not in free}


def _own(node: ast.stmt, modules: dict[str, Path]) -> set[str]:
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names} & modules.keys()
    if isinstance(node, ast.ImportFrom):
        return {str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)} & modules.keys()
    return set()


@pytest.mark.parametrize(
    "module",
    [
        "actors.config",
        "algorithms.config",
        "algorithms.config_encoder",
        "algorithms.config_offline",
        "algorithms.config_rl",
        "algorithms.rl.baselines",
        "algorithms.rl.surrogates",
        "launch.config",
        "launch.kinds.table",
        "launch.settings.readers",
        "launch.settings.rules",
        "launch.checks.check",
        "launch.cli",
        "launch.jobs.submit",
        "launch.kube.client",
        "launch.kube.config",
        "launch.kube.validate",
        "launch.page.app",
    ],
)
def test_configuration_needs_no_heavy_library(module: str) -> None:
    """What `check` and `--help` import is there in a fraction of a second."""
    program = f"import sys, {module}; print(*sorted(set({HEAVY!r}) & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


def test_the_launcher_asks_the_kind_of_job() -> None:
    """Not of which class its settings are: what differs from job to job is a method of `launch/kinds/`."""
    homes = [path for path in FILES if path.name.startswith("config")]
    sections = {
        node.name for path in homes for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)
    }
    assert {"RLConfig", "DPOConfig", "EmbeddingConfig", "RolloutConfig"} <= sections
    asked = [
        f"{name(path)}:{node.lineno} {ast.unparse(node)}"
        for path in FILES
        if name(path).startswith("launch/")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "isinstance"
        if {part.id for part in ast.walk(node.args[1]) if isinstance(part, ast.Name)} & (sections - {"UserError"})
    ]
    assert len(asked) <= MOST_QUESTIONS, asked


def test_packages_are_plain() -> None:
    """Empty __init__.py, no drawer for everything, no module that hides another one."""
    for package in PACKAGES:
        assert (ROOT / package / "__init__.py").read_text() == ""
    drawers = {"utils.py", "util.py", "helpers.py", "common.py", "misc.py"}
    assert [name(path) for path in FILES if path.name in drawers] == []
    installed = [item for item in sys.stdlib_module_names if item in PACKAGES]
    assert installed == []


def test_files_are_short() -> None:
    """A file fits in a head, and the whole does so in a week."""
    lengths = {name(path): len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert {file: length for file, length in lengths.items() if length > LONGEST_FILE} == {}
    assert sum(lengths.values()) < LONGEST_TOTAL


def test_public_names_are_unique() -> None:
    """One name, one meaning: no public class or function is defined twice."""
    homes = defaultdict(list)
    for path in FILES:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
                homes[node.name].append(name(path))
    assert {item: files for item, files in homes.items() if len(files) > 1} == {}
