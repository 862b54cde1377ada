"""Files of the working directory that Python would import in place of its own modules, of ours, or of what these need.

The working directory is where reward functions and generators are, so it comes first on the path, here and in every
process of a run. Imports nothing: `python -m launch` asks before anything else could be taken from there.
"""

import os
import sys

_OURS = ("launch", "algorithms", "actors")
_NEEDED = (
    "accelerate", "cuda", "datasets", "deepspeed", "einops", "fastapi", "filelock", "google", "huggingface_hub",
    "jinja2", "jsonschema", "kubernetes", "matplotlib", "mpmath", "msgspec", "mteb", "networkx", "numpy", "packaging",
    "pandas", "peft", "PIL", "psutil", "pyarrow", "pydantic", "pydantic_core", "ray", "regex", "requests", "rich",
    "safetensors", "scipy", "sentence_transformers", "sentencepiece", "sklearn", "sympy", "tensorboard", "tokenizers",
    "torch", "torchvision", "tqdm", "transformers", "triton", "typing_extensions", "uvicorn", "vllm", "wandb", "yaml",
    "zmq",
)  # fmt: skip
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
)
"""Parts of Python that nothing of ours imports: a file test.py is quite usual."""


def shadowing(directory: str) -> str | None:
    """One line about the first file or package of `directory` that would be imported by mistake; None without one."""
    ours = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    names = {*sys.stdlib_module_names, *_NEEDED} - {*_HARMLESS}
    if not _same(directory, ours):
        names |= {*_OURS}
    if any(_same(directory, place) for place in sys.path if "site-packages" in place or place.endswith("lib-dynload")):
        return None
    try:
        entries = sorted(os.listdir(directory))
    except OSError:
        return None
    if {*_OURS, "pyproject.toml"} <= {*entries} and not _same(directory, ours):
        return (
            f"working directory: must not be a clone of Tandem beside the one that runs, which is in {ours} "
            f"(pip install -e . installs this one; tandem init makes a directory to work in), got {directory}"
        )
    for entry in entries:
        name, ending = os.path.splitext(entry)
        package = not ending and os.path.isfile(os.path.join(directory, entry, "__init__.py"))
        if name in names and (ending == ".py" or package):
            whose = "Tandem's" if name in _OURS else "Python's" if name in sys.stdlib_module_names else "the package"
            return (
                f"working directory: must hold no {entry}, which would be imported instead of {whose} {name} "
                f"(rename it, or start elsewhere), got {directory}"
            )
    return None


def make_importable(directory: str, *, code: bool) -> None:
    """Put the working directory on Python's path, as the console script does not, for the rewards and generators there.

    None of its files hides a module that is needed: `shadowing` has been asked. Without `code` it is taken off,
    unless it is Tandem's own.
    """
    if code:
        if directory not in sys.path and "" not in sys.path:
            sys.path.insert(0, directory)
    elif not _same(directory, os.path.dirname(os.path.dirname(os.path.abspath(__file__)))):
        sys.path[:] = [place for place in sys.path if place and not _same(directory, place)]


def _same(one: str, other: str) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)
