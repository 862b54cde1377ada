"""Files of the working directory that Python would import in place of its own modules, of ours, or of what these need.

The working directory is where reward functions and generators are: verbs that load these have it on their path, behind
everything else, and the processes of a run have it before all that is installed. Imports nothing: `python -m launch`
takes it off the path before anything else could be taken from there.
"""

import os
import sys

_OURS = ("launch", "algorithms", "actors")
_AT_START = ("sitecustomize", "usercustomize")
"""What Python imports at its start wherever it finds it."""
_NEEDED = (
    "accelerate", "cuda", "datasets", "deepspeed", "einops", "fastapi", "filelock", "google", "huggingface_hub",
    "jinja2", "jsonschema", "kubernetes", "matplotlib", "mpmath", "msgspec", "mteb", "networkx", "numpy", "packaging",
    "pandas", "peft", "PIL", "psutil", "pyarrow", "pydantic", "pydantic_core", "ray", "regex", "requests", "rich",
    "safetensors", "scipy", "sentence_transformers", "sentencepiece", "sklearn", "sympy", "tensorboard", "tokenizers",
    "torch", "torchvision", "tqdm", "transformers", "triton", "typing_extensions", "uvicorn", "vllm", "wandb", "yaml",
    "zmq",
)  # fmt: skip
"""Packages that may be installed where a run's processes are, if not here."""
_HARMLESS = (
    "test",
    "idlelib",
    "lib2to3",
    "this",
    "antigravity",
    "turtle",
    "turtledemo",
    "tkinter",
    "venv",
    *("tests", "examples", "docs", "benchmarks", "scripts", "bin", "lib", "include", "share", "etc", "src", "data"),
)
"""Names that nothing of ours imports, whoever installs them: a file test.py is quite usual."""
_MODULES = (".py", ".pyc", ".so")
"""What the name of a module's file ends in."""


_LOADING_CODE = ("run", "check", "data", "mine", "submit", "k8s")
"""Verbs that may import what a configuration or a row's source names."""


def shadowing(directory: str) -> str | None:
    """One line about the first file or package of `directory` that would be imported by mistake; None without one."""
    ours = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    installed, shared = _installed()
    names = {*sys.stdlib_module_names, *_AT_START, *_NEEDED, *installed} - {*_HARMLESS}
    if not _same(directory, ours):
        names |= {*_OURS}
    # Started among installed packages: these are what is imported, by whatever name.
    if any(_same(directory, place) for place in sys.path if "site-packages" in place or place.endswith("lib-dynload")):
        return None
    try:
        entries = sorted(os.listdir(directory))  # the same file is told each time
    except OSError:
        return None
    if {*_OURS, "pyproject.toml"} <= {*entries} and not _same(directory, ours):
        return (
            f"working directory: must not be a clone of Tandem beside the one that runs, which is in {ours} "
            f"(pip install -e . installs this one; tandem init makes a directory to work in), got {directory}"
        )
    for entry in entries:
        name = entry.partition(".")[0]
        if name in names and (entry.endswith(_MODULES) or (entry == name and _is_package(directory, entry, shared))):
            pythons = name in sys.stdlib_module_names or name in _AT_START
            whose = "Tandem's" if name in _OURS else "Python's" if pythons else "the package"
            return (
                f"working directory: must hold no {entry}, which would be imported instead of {whose} {name} "
                f"(rename it, or start elsewhere), got {directory}"
            )
    return None


def reach_code(directory: str, verb: str, *, code: bool, workers: bool) -> str | None:
    """Let verbs that load code of the user's import it from the working directory, and no others; with `code` False
    none does. `workers`: the verb starts processes that have the directory too. Returns what `shadowing` says.
    """
    loads = verb in _LOADING_CODE or workers
    problem = shadowing(directory) if loads else None
    make_importable(directory, code=loads and code and problem is None)
    return problem


def leave_out_working_directory() -> None:
    """Take the working directory off Python's path, unless it is Tandem's own or is gone, which is told later."""
    try:
        directory = os.getcwd()
    except OSError:
        return
    make_importable(directory, code=False)


def make_importable(directory: str, *, code: bool) -> None:
    """Put the working directory at the end of Python's path with `code`, for the rewards and generators there; take it
    off without. Tandem's own stays where it is.
    """
    if not _same(directory, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))):
        sys.path[:] = [place for place in sys.path if place and not _same(directory, place)]
    if code and directory not in sys.path and "" not in sys.path:  # "" is the working directory, too
        sys.path.append(directory)


def _installed() -> tuple[set[str], set[str]]:
    """Names at the top of what is installed, and those of directories that several packages share (google)."""
    found: set[str] = set()
    shared: set[str] = set()
    for place in sys.path:
        if os.path.basename(place) not in ("site-packages", "dist-packages") or not os.path.isdir(place):
            continue
        for entry in os.listdir(place):
            name = entry.partition(".")[0]
            if entry == name and os.path.isdir(os.path.join(place, entry)):
                found.add(name)
                # No __init__.py: a namespace, to which other directories add.
                if not os.path.isfile(os.path.join(place, entry, "__init__.py")):
                    shared.add(name)
            elif entry.endswith(_MODULES):
                found.add(name)
    return found - {"__pycache__"}, shared


def _is_package(directory: str, entry: str, shared: set[str]) -> bool:
    """Whether a directory would be imported before an installed package of its name."""
    path = os.path.join(directory, entry)
    if not os.path.isdir(path):
        return False
    parts = os.listdir(path)
    return entry in shared or any(part.partition(".")[0] == "__init__" and part.endswith(_MODULES) for part in parts)


def _same(one: str, other: str) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)
