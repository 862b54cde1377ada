"""Which files of the working directory are uploaded: all but likely secrets and what ignore files leave out."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pathspec import GitIgnoreSpec

from actors.config import UserError
from launch.jobs.secret_files import holds_secrets

NEVER = (".git", ".venv", "__pycache__")
"""Names that are left out wherever they are; so is every virtual environment."""
_ALWAYS = "Tandem, always"
SECRET_FILE = "Tandem, as a likely secret (a ! line of .rayignore brings it back)"
"""The rule that leaves out what `launch.jobs.secret_files` names."""
LINK = "Tandem, as a link to what is not uploaded"
"""The rule that leaves out links to files; their targets stand behind it."""
_IGNORE_FILES = (".gitignore", ".rayignore")


@dataclass(frozen=True, slots=True)
class _IgnoreFile:
    """One .gitignore or .rayignore, for what lies below its directory."""

    name: str
    """Path from the working directory."""
    prefix: str
    """Path of its directory, with a slash at the end; empty at the top."""
    lines: tuple[tuple[int, str], ...]
    spec: GitIgnoreSpec

    def verdict(self, path: str) -> str | None:
        """The rule that leaves `path` out (a directory ends in a slash), "" if one brings it back, else None."""
        found = self.spec.check_file(path[len(self.prefix) :])
        if found.include is None or found.index is None:
            return None
        number, line = self.lines[found.index]
        return f"{self.name} line {number} ({line})" if found.include else ""


@dataclass(slots=True)
class Selection:
    """Files to upload, and why others are not. Paths are relative, with slashes."""

    root: Path
    results: str = "outputs"
    """Where runs write, as a path from the root: left out."""
    files: dict[str, int] = field(default_factory=dict)
    """Path -> bytes, in the order of the names."""
    left_out: dict[str, str] = field(default_factory=dict)
    """File or directory that a rule leaves out -> the rule, such as `.gitignore line 3 (data/)`."""

    def why_missing(self, path: str) -> str | None:
        """Why `path`, a file or directory that exists, is not in the upload as a whole; None when it is."""
        parts = path.split("/")
        for count in range(1, len(parts) + 1):
            if rule := self.left_out.get(above := "/".join(parts[:count])):
                return f"{above} is left out by {rule}"
        if path in self.files or path == ".":
            return None
        for item, rule in self.left_out.items():
            if item.startswith(f"{path}/") and rule not in (_ALWAYS, SECRET_FILE):
                return f"{item} is left out by {rule}"
        return None if any(item.startswith(f"{path}/") for item in self.files) else f"{path} holds no file"


def select_files(root: Path, output: str = "outputs") -> Selection:
    """Walk `root`, less `output`, into which runs write, by the rules of .gitignore files; lines of a .rayignore come
    after those of the .gitignore beside it.

    So a `!` line of .rayignore brings back what .gitignore leaves out. As in git, nothing below a directory that is
    left out comes back. Links to files that are uploaded are uploaded as files, all others not at all: a link must not
    take along what lies outside `root`, or what its own name does not tell.

    Files and directories that look like secrets need such a line, too.

    Raises:
        UserError: a directory cannot be read, or holds a name that is not UTF-8; `root` is the home directory or `/`.
    """
    if root.resolve() in (Path(os.path.expanduser("~")).resolve(), Path("/")):
        raise UserError(f"upload: must be a project's directory, not your home or /, as all of it goes, got {root}")
    results = os.path.relpath(os.path.join(root, output), root)
    selection = Selection(root, results)
    try:
        _walk(selection, "", ())
    except OSError as error:
        raise UserError(f"upload: {error.filename} must be readable, or be left out ({error.strerror})") from None
    _judge_links(selection)  # only now is it known what else is uploaded
    selection.files = dict(sorted(selection.files.items()))
    return selection


def _judge_links(selection: Selection) -> None:
    """Leave out the links whose targets are not uploaded: outside, likely secrets, left out by an ignore file."""
    root = os.path.realpath(selection.root)
    links = [path for path in selection.files if os.path.islink(selection.root / path)]
    for path in links:
        target = os.path.realpath(selection.root / path)
        within = os.path.relpath(target, root).replace(os.sep, "/")
        if within not in selection.files:
            selection.left_out[path] = f"{LINK} ({target if within.startswith('../') else within})"
            del selection.files[path]


def _walk(selection: Selection, prefix: str, above: tuple[_IgnoreFile, ...]) -> None:
    rules = (*above, *_ignore_files(selection.root, prefix))
    with os.scandir(selection.root / prefix) as entries:
        # In order: what is said of files, and what is in the package, is the same at each try.
        for entry in sorted(entries, key=lambda item: item.name):
            path = prefix + entry.name
            try:
                path.encode()
            except UnicodeEncodeError:  # no rule could be asked about it, and no zip could name it
                raise UserError(f"upload: a file's name must be UTF-8, got {os.fsencode(path)!r}") from None
            folder = entry.is_dir()
            # The order matters: what is never taken is not looked into.
            if rule := _always(entry, path, selection.results) or _rule(rules, f"{path}/" if folder else path):
                selection.left_out[path] = rule
            elif holds_secrets(named := f"{path}/" if folder else path) and not _asked_for(rules, named):
                selection.left_out[path] = SECRET_FILE
            elif folder:
                _walk(selection, f"{path}/", rules)
            elif entry.is_file():
                selection.files[path] = entry.stat().st_size


def _always(entry: os.DirEntry[str], path: str, results: str) -> str | None:
    if not entry.is_dir():
        return None
    # `outputs` also where this run writes elsewhere: earlier ones did not.
    if entry.name in NEVER or path in ("outputs", results) or os.path.isfile(os.path.join(entry.path, "pyvenv.cfg")):
        return _ALWAYS
    return "Tandem, as a link to a directory" if entry.is_symlink() else None


def _rule(rules: tuple[_IgnoreFile, ...], path: str) -> str | None:
    for item in reversed(rules):  # the last file that says something decides: the deepest, and there .rayignore
        verdict = item.verdict(path)
        if verdict is not None:
            return verdict or None
    return None


def _asked_for(rules: tuple[_IgnoreFile, ...], path: str) -> bool:
    """Whether a `!` line of a .rayignore brings `path` back."""
    # A line of .gitignore says what is committed, not that a secret may leave this machine.
    return any(item.verdict(path) == "" for item in rules if item.name.endswith(".rayignore"))


def _ignore_files(root: Path, prefix: str) -> Iterator[_IgnoreFile]:
    for name in _IGNORE_FILES:
        path = root / prefix / name
        if path.is_file():
            # A name in it need not be UTF-8; git takes it as bytes.
            text = path.read_text(encoding="utf-8", errors="surrogateescape")
            # Not splitlines(), which breaks lines at characters that a name may hold.
            lines = tuple((number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip())
            spec = GitIgnoreSpec.from_lines(line for _, line in lines)
            yield _IgnoreFile(prefix + name, prefix, lines, spec)
