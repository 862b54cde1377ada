"""What `make setup` needs of a machine, told in one line before minutes of downloads.

    python3 requirements/check_machine.py [--engine]

With --engine also what vLLM's CPU build loads. Written so that Pythons from 3.6 on can run it: it has to tell them.
"""

import ctypes
import importlib.util
import platform
import shutil
import sys

OLDEST = (3, 11)
NAMES = ("python3.11", "python3.12", "python3.13")


def main():
    # type: () -> int
    """Print each thing that is missing; the exit code is 2 if there is one."""
    found = problems("--engine" in sys.argv[1:])
    for problem in found:
        print("error: " + problem, file=sys.stderr)
    return 2 if found else 0


def problems(engine):
    # type: (bool) -> list[str]
    """One line each: what, the rule, what there is, and what to do."""
    version = platform.python_version()
    if sys.version_info < OLDEST:
        other = next((name for name in NAMES if shutil.which(name)), None)
        how = "make setup PYTHON=" + (other or "python3.11, once it is installed")
        rule = f"must be Python {OLDEST[0]}.{OLDEST[1]} or later"
        return [f"PYTHON: {rule}, got {version} at {sys.executable} ({how})"]
    found = []
    if not sys.platform.startswith("linux"):
        found.append(f"system: must be Linux, for which vLLM and DeepSpeed are built, got {platform.system()}")
    if any(importlib.util.find_spec(name) is None for name in ("venv", "ensurepip")):
        package = f"python{sys.version_info[0]}.{sys.version_info[1]}-venv"
        found.append(
            f"PYTHON: must be able to make virtual environments, got {sys.executable} without ensurepip "
            f"(Debian, Ubuntu: apt-get install {package})"
        )
    if engine and sys.platform.startswith("linux"):
        try:
            ctypes.CDLL("libnuma.so.1")
        except OSError:
            how = "Debian, Ubuntu: apt-get install libnuma1; Fedora: dnf install numactl-libs"
            found.append(f"libnuma.so.1: must be installed, as vLLM loads it, got none ({how})")
    return found


if __name__ == "__main__":
    sys.exit(main())
