"""A worked example of the documentation, taken literally: its blocks go into a copy of the code."""

import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Example:
    """The blocks of one section."""

    document: str
    """Path of the document."""
    whole: list[tuple[str, str, str]]
    """new or append, path, text."""
    diffs: list[str]
    """Files below `--- path`, hunks divided by `@@`."""

    @classmethod
    def of(cls, document: str, heading: str) -> "Example":
        """That of the section below a heading, up to the next one of its level or above; `# ` starts a comment."""
        level = heading.partition(" ")[0]
        text = (ROOT / document).read_text(encoding="utf-8")
        section = re.split(rf"^#{{2,{len(level)}}} ", text.partition(f"\n{heading}\n")[2], maxsplit=1, flags=re.M)[0]
        whole = re.findall(r"<!-- (new|append) (\S+) -->\n```\w+\n(.*?)```", section, re.DOTALL)
        return cls(document, whole, re.findall(r"```diff\n(.*?)```", section, re.DOTALL))

    @property
    def files(self) -> list[str]:
        """Paths of the Python files that it changes or makes, outside of tests."""
        names = [name for _, name, _ in self.whole] + re.findall(r"^--- (\S+)", "\n".join(self.diffs), re.MULTILINE)
        return sorted({name for name in names if name.endswith(".py") and not name.startswith("tests/")})

    def add_to_copy(self, root: Path, *more: str) -> Path:
        """Copy the code, and what else is named, to `root`, and add the example."""
        for folder in ("launch", "algorithms", "actors", *more):
            shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", root)
        for kind, name, text in self.whole:
            path = root / name
            path.parent.mkdir(exist_ok=True)
            assert path.exists() == (kind == "append")
            before = path.read_text(encoding="utf-8") + "\n\n" if kind == "append" else ""
            path.write_text(before + text, encoding="utf-8")
        for diff in self.diffs:
            self._apply(diff, root)
        return root

    def _apply(self, diff: str, root: Path) -> None:
        """Replace the old lines of every hunk, which must stand in its file once, by the new ones."""
        for part in diff.split("--- ")[1:]:
            name, _, hunks = part.partition("\n")
            text = (root / name).read_text(encoding="utf-8")
            for hunk in hunks.split("@@\n"):
                lines = hunk.splitlines(keepends=True)
                old = "".join(line[1:] for line in lines if line[0] in " -")
                new = "".join(line[1:] for line in lines if line[0] in " +")
                assert text.count(old) == 1, f"{name} must hold once what {self.document} shows:\n{old}"
                text = text.replace(old, new)
            (root / name).write_text(text, encoding="utf-8")


def run(copy: Path, environment: dict[str, str], *command: str, fails: int = 0) -> str:
    """What a command in the copy prints; it must succeed, or end with the code `fails`."""
    done = subprocess.run(
        [sys.executable, *command],
        cwd=copy,
        env=environment | {"PYTHONPATH": str(copy)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == fails, done.stdout + done.stderr
    return done.stdout + done.stderr if fails else done.stdout
