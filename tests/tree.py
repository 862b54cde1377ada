"""Makes docs/tree.md: every module with the first sentence of its docstring, below what each folder is for.

    python tests/tree.py    writes the page again, as `make docs` does

What stands between a folder's heading and its table is written by hand and stays; all else follows the code.
"""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/tree.md"
PACKAGES = ("launch", "algorithms", "actors")
_TABLE = "| module | holds |\n|---|---|\n"


def folders(root: Path = ROOT) -> dict[str, list[Path]]:
    """Folder -> its modules. Example: launch/jobs -> [access.py, client.py, ...]."""
    found: dict[str, list[Path]] = {}
    for package in PACKAGES:
        paths = [root / package, *sorted(path for path in (root / package).rglob("*") if path.is_dir())]
        modules = {path: sorted(set(path.glob("*.py")) - {path / "__init__.py"}) for path in paths}
        found |= {path.relative_to(root).as_posix(): files for path, files in modules.items() if files}
    return found


def first_sentence(path: Path) -> str:
    """Of a module's docstring, in one line.

    Raises:
        ValueError: when it has none.
    """
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    if not text:
        raise ValueError(f"{path}: must begin with a docstring, which docs/tree.md shows")
    paragraph = " ".join(text.partition("\n\n")[0].split())
    return re.split(r"(?<=[.!?])\s+(?=[A-Z`\"])", paragraph)[0]


def paragraphs(page: str) -> dict[str, str]:
    """Folder -> what the page says of it; "" -> what it says first."""
    parts = re.split(r"^## `(.+)/`\n", page, flags=re.MULTILINE)
    texts = {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}
    return {folder: text.partition(_TABLE)[0].strip() for folder, text in texts.items()}


def made(page: str, root: Path = ROOT) -> str:
    """The page as it must be, with the paragraphs of `page`."""
    said = paragraphs(page)
    parts = [said[""]]
    for folder, modules in folders(root).items():
        lines = [f"| `{path.name}` | {first_sentence(path).replace('|', chr(92) + '|')} |\n" for path in modules]
        parts += [f"## `{folder}/`", said.get(folder, ""), f"{_TABLE}{''.join(lines)}".rstrip()]
    return "\n\n".join(part for part in parts if part) + "\n"


if __name__ == "__main__":
    PAGE.write_text(made(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
