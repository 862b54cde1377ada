"""Write the hashes of all files that pip may take into lists of exact versions; for whoever changes a version.

    python requirements/add_hashes.py requirements/cpu.txt requirements/dev.txt requirements/oracle.txt

Asks the package index through `uv`, which must be on the PATH (or be named by UV). A list keeps its order and comments.
The hashes are those of files for Linux on x86_64 and aarch64 and for the Pythons of PYTHONS, and of the sources.
"""

import os
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

PYTHONS = (11, 12, 13, 14)
"""Minor versions of Python 3."""
MACHINES = ("x86_64", "aarch64")


def main() -> int:
    """Rewrite the lists that the command line names."""
    for name in sys.argv[1:]:
        path = Path(name)
        plain = re.sub(r" \\\n +--hash=\S+", "", path.read_text(encoding="utf-8"))
        hashes = files_of(plain)
        lines = [_with_hashes(line, hashes) for line in plain.splitlines()]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(f"{name}: {sum(map(len, hashes.values()))} hashes of {len(hashes)} packages")
    return 0


def files_of(requirements: str) -> dict[str, list[str]]:
    """The sha256 of the files of each package that is pinned, by its normalised name."""
    with tempfile.TemporaryDirectory() as directory:
        source, lock = Path(directory, "list.in"), Path(directory, "pylock.toml")
        source.write_text(requirements, encoding="utf-8")
        command = [os.environ.get("UV", "uv"), "pip", "compile", "--quiet", "--no-config", "--no-deps", "--universal"]
        command += ["--prerelease", "allow", "--python-version", f"3.{PYTHONS[0]}", "--format", "pylock.toml"]
        subprocess.run([*command, "--output-file", str(lock), str(source)], check=True)
        packages = tomllib.loads(lock.read_text(encoding="utf-8"))["packages"]
    found = {}
    for package in packages:
        wheels = [file for file in package.get("wheels", []) if fits(file["url"].rpartition("/")[2])]
        files = [*wheels, *([package["sdist"]] if "sdist" in package else [])]
        found[_normal(package["name"])] = sorted(file["hashes"]["sha256"] for file in files)
    return found


def fits(wheel: str) -> bool:
    """Whether a wheel is for one of our Pythons and machines. Example: a-1-cp311-cp311-manylinux_2_28_x86_64.whl."""
    python, abi, platform = wheel.removesuffix(".whl").split("-")[-3:]
    ours = {f"cp3{minor}" for minor in PYTHONS}
    by_python = any(
        tag in ours or re.fullmatch(r"py3\d*|py2\.py3", tag) or (abi == "abi3" and _minor(tag) <= PYTHONS[-1])
        for tag in python.split(".")
    )
    by_abi = abi in ours | {"none", "abi3"}
    by_platform = platform == "any" or any(
        re.match("(many)?linux", tag) and tag.endswith(MACHINES) for tag in platform.split(".")
    )
    return by_python and by_abi and by_platform


def _minor(tag: str) -> int:
    found = re.fullmatch(r"cp3(\d+)", tag)
    return int(found[1]) if found else sys.maxsize


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _with_hashes(line: str, hashes: dict[str, list[str]]) -> str:
    pin = re.fullmatch(r"([\w.-]+)==\S+", line)
    if pin is None:
        return line
    return " \\\n".join([line, *(f"    --hash=sha256:{digest}" for digest in hashes[_normal(pin[1])])])


if __name__ == "__main__":
    sys.exit(main())
