"""Install the CPU build of torch that a list pins, which holds nothing else, for the Python that runs this.

    .venv/bin/python requirements/install_torch.py requirements/torch.txt            before the other list
    .venv/bin/python requirements/install_torch.py --check requirements/torch.txt    after it: torch needs a part of it
    .venv/bin/python requirements/install_torch.py --beside requirements/torch.txt   while others are being installed

PyPI's torch for Linux is a CUDA build, which cannot even be imported without NVIDIA's libraries. So pip is asked for
VERSION+cpu, a name that only CPU builds have: from the indexes that it is configured with, then from PyTorch's own, or
from the one that the environment variable TORCH_INDEX names. Nothing is done where that build is there; with --check,
one that cannot be imported is installed once more. Before, what an interrupted pip has left in parts is forgotten, so
that the list installs it again. Needs the standard library only.
"""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

INDEX = "https://download.pytorch.org/whl/cpu"
"""PyTorch's public index of CPU builds, for x86_64 and aarch64."""


class Failed(Exception):
    """torch cannot be installed, or what is installed is of no use: one line."""


def main() -> int:
    """Install, or check, what the list on the command line pins; the exit code is 2 after one line if that fails."""
    *check, requirements = sys.argv[1:]
    pin = Path(requirements)
    version = pinned(pin)
    try:
        if check != ["--check"]:
            if check != ["--beside"]:  # else others are being installed, and their parts are no leftovers
                forget_parts()
            ensure(version, pin)
        elif problem := unusable(version):
            source = ensure(version, pin, again=True)
            if unusable(version):
                raise Failed(f"{problem}, also after another installation from {source}")
    except Failed as failure:
        print(f"error: {failure}", file=sys.stderr)
        return 2
    return 0


def pinned(requirements: Path) -> str:
    """The version of torch in its list. Example: 2.13.0+cpu."""
    lines = [line for line in requirements.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    [version] = re.findall(r"^torch==(\S+\+cpu)\b", "\n".join(lines), re.MULTILINE)
    return version


def ensure(version: str, pin: Path, *, again: bool = False) -> str:
    """Let pip install what the list pins, this version, unless it is there, with `again` also then.

    Returns:
        Where it came from, in words.

    Raises:
        Failed: no index has it.
    """
    had = installed()
    if had == version and not again:
        return "an installation that was there"
    replaced = f", in place of {had}" if had not in (None, version) else ""
    print(f"torch {version}{replaced}: about 200 MB", flush=True)
    index = os.environ.get("TORCH_INDEX") or INDEX
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--force-reinstall"] if again else []
    refusals = []
    for source, options in (("pip's configured indexes", []), (index, ["--index-url", index])):
        done = subprocess.run([*command, *options, "--requirement", str(pin)], stderr=subprocess.PIPE, text=True)
        if done.returncode == 0:
            return source
        refusals.append(f"{source}: {_cause(done.stderr)}")
    python = f"Python {sys.version_info[0]}.{sys.version_info[1]} on {os.uname().machine}"
    raise Failed(
        f"torch: must be on an index that pip reaches, as torch=={version} for {python}, got {'; '.join(refusals)} "
        f"(TORCH_INDEX=URL names another index)"
    )


def forget_parts() -> None:
    """Let pip see that a package is not there whose installation was cut short.

    pip writes the metadata, by which it knows a package, with its files, and the list of them last: between lie the
    seconds in which it compiles them.
    """
    for directory in Path(sysconfig.get_path("purelib")).glob("*.dist-info"):
        if (directory / "METADATA").is_file() and not (directory / "RECORD").is_file():
            print(f"{directory.name.removesuffix('.dist-info')} was installed in parts: once more", flush=True)
            shutil.rmtree(directory)


def installed() -> str | None:
    """The version that this Python has, as its metadata say. Example: 2.13.0, which is PyPI's CUDA build."""
    try:
        return importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return None


def unusable(version: str) -> str | None:
    """What is wrong with the torch that is installed, in a line, or None."""
    program = "import torch; print(torch.__version__, torch.__file__, sep='\\n')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    advice = f"{sys.executable} -m pip uninstall torch, and set up again"
    if done.returncode == 0:
        imported, path = done.stdout.splitlines()[-2:]
        if imported == version:
            return None
        return f"torch: must be {version}, got {imported} at {Path(path).parent} (take it off PYTHONPATH, or {advice})"
    reason, found = (done.stderr.strip().splitlines() or ["no output"])[-1], installed()
    kind = "" if found == version else f", another build than {version}: one for CUDA lacks NVIDIA's libraries here"
    return f"torch: must be importable, got {reason} (torch {found} at {_directory()}{kind}; {advice})"


def _directory() -> str:
    try:
        return str(importlib.metadata.distribution("torch").locate_file("torch"))
    except importlib.metadata.PackageNotFoundError:
        return "no directory"


def _cause(output: str) -> str:
    """Why pip failed: a connection that it tried again and again, or else its last error."""
    if lost := re.findall(r"connection broken by '(.*?)':? /", output):
        return re.sub(r"<[^<>]*>[:,] ", "", lost[-1])  # an object of pip's, by its address
    errors = re.findall(r"^ERROR: (.+)", output, re.MULTILINE)
    return (errors or output.strip().splitlines() or ["no output"])[-1]


if __name__ == "__main__":
    sys.exit(main())
