"""The verb `report`: the page and what it shows of some runs as one HTML file, which needs no server and no network."""

import base64
import gzip
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from actors.config import UserError
from launch.page.files import Below, find_runs, is_run
from launch.page.rows import encoded
from launch.page.snapshot import snapshot

STATIC = Path(__file__).parent / "static"
MOST_BYTES = 6_000_000
"""Of a report: what a mail takes, and a browser opens at once."""
_SAMPLES_BYTES = 10_000_000
"""As JSON, which packs to about a third."""
_TRIES = 3
"""What is read may be cut back a moment later, as a run goes on from a checkpoint."""
_MARK = "<!-- A report by Tandem -->"
_POLICY = "default-src 'none'; script-src 'unsafe-inline' data:; style-src 'unsafe-inline'; img-src data:"
"""Nothing is loaded from anywhere, whatever a run has written."""


def write_report(runs: Sequence[str], output: str) -> int:
    """Write a report of some runs, and say where it is; returns 0.

    Raises:
        UserError: something is no run, or the file cannot be written.
    """
    directory, ids = _below_one(runs)
    path = Path(output)
    _refuse_another_file(path)
    html = _report_of_what_changes(directory, ids)
    size = f"{len(html) / 1e6:.1f} MB"
    try:
        partial = path.with_name(f"{path.name}.partial")
        partial.unlink(missing_ok=True)
        with partial.open("xb") as file:  # "x" follows no link that somebody has put there
            file.write(html)
        os.replace(partial, path)
    except OSError as error:
        raise UserError(f"--output: must be a file that can be written ({error.strerror}), got {output}") from None
    print(f"report:  {path} ({size}, {len(ids)} run{'s' if len(ids) > 1 else ''})")
    if len(html) > MOST_BYTES:
        print(f"the curves of {len(ids)} runs alone take {size}: fewer runs make a smaller file", file=sys.stderr)
    return 0


def _report_of_what_changes(directory: Path, ids: Sequence[str]) -> bytes:
    """The file; runs may go on meanwhile, and be cut back. Raises UserError where one is gone."""
    for left in reversed(range(_TRIES)):
        try:
            return fitting_report(directory, ids)
        except FileNotFoundError as error:
            if not left:
                raise UserError(f"RUN: must be there until it is read, got one that changes: {error}") from None
    raise AssertionError


def fitting_report(directory: Path, ids: Sequence[str]) -> bytes:
    """The file, with as many of the samples as fit into MOST_BYTES; larger only where the curves alone are.

    Args:
        directory: that the runs lie in.
        ids: of the runs, as `launch.page.files.find_runs` has them.
    """
    budget = _SAMPLES_BYTES
    while True:
        html = report_html(snapshot(directory, ids, budget), datetime.now(UTC))
        if len(html) <= MOST_BYTES or not budget:
            return html
        # The rest is nearly in proportion to it; below a twentieth it is not worth another try.
        budget = int(budget * 0.9 * MOST_BYTES / len(html)) if budget > _SAMPLES_BYTES / 20 else 0


def report_html(answers: Mapping[str, Any], made: datetime) -> bytes:
    """The page with its styles, modules and data in itself.

    Args:
        answers: those of the API, by path and query.
        made: shown on the page.
    """
    page = (STATIC / "index.html").read_text(encoding="utf-8")
    for pattern, put in {
        r'(?=<meta charset="utf-8">)': f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n    ',
        r'<link rel="icon"[^>]*>': '<link rel="icon" href="data:,">',
        r'<link rel="stylesheet" href="([^"]*)">': lambda found: f"<style>{_inline(found[1], 'style')}</style>",
        r'<script src="([^"]*)"></script>': lambda found: f"<script>{_inline(found[1], 'script')}</script>",
        r'<script type="module" src="([^"]*)"></script>': lambda found: _modules(found[1]),
        r"</body>": lambda _: f"{_data(answers, made)}</body>",
    }.items():
        page, count = re.subn(pattern, put, page)
        assert count, f"index.html lacks {pattern}"
    licence = (STATIC / "vendor/uPlot-LICENSE.txt").read_text(encoding="utf-8")
    return page.replace("<html", f"{_MARK}\n<!-- uPlot: {licence}-->\n<html", 1).encode()


def _inline(name: str, element: str) -> str:
    text = (STATIC / name).read_text(encoding="utf-8")
    assert f"</{element}" not in text.lower(), f"{name} would end its element"
    return text


def _modules(main: str) -> str:
    """All modules, as addresses that hold them: such ones cannot name each other by relative paths, so by a map."""
    names = {path.name: f"page/{path.name}" for path in sorted(STATIC.glob("*.js"))}
    imports = {}
    for name, given in names.items():
        text = re.sub(r'\bfrom "\./([\w.]+)"', r'from "page/\1"', (STATIC / name).read_text(encoding="utf-8"))
        imports[given] = f"data:text/javascript;base64,{base64.b64encode(text.encode()).decode()}"
    known = json.dumps({"imports": imports})
    return f'<script type="importmap">{known}</script>\n<script type="module">import "{names[main]}";</script>'


def _data(answers: Mapping[str, Any], made: datetime) -> str:
    content = encoded({"made": f"Report of {made:%Y-%m-%d %H:%M} UTC", "answers": answers})
    packed = base64.b64encode(gzip.compress(content, 9, mtime=0)).decode()
    return f'<script type="application/octet-stream" id="inlined">{packed}</script>\n'


def _below_one(runs: Sequence[str]) -> tuple[Path, list[str]]:
    """A directory, and the ids that the runs have below it. Raises UserError."""
    folders = [Path(run).resolve() for run in runs]
    for run, folder in zip(runs, folders, strict=True):
        if not folder.is_dir() or not is_run(Below(folder), folder):
            raise UserError(f"RUN: must be the directory of a run, got {run}, which is none")
    folders = list(dict.fromkeys(folders))
    if len(folders) == 1:
        return folders[0], ["."]
    directory = Path(os.path.commonpath(folders))
    known = {folder.resolve(): name for name, folder in find_runs(Below(directory)).items()}
    if strange := [str(folder) for folder in folders if folder not in known]:
        raise UserError(
            f"RUN: must lie at most three levels below what is common to all, {directory}, and in no other run, "
            f"got {strange[0]}"
        )
    return directory, [known[folder] for folder in folders]


def _refuse_another_file(path: Path) -> None:
    try:
        with path.open("rb") as file:
            if _MARK.encode() in file.read(200):
                return
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"--output: must be a file that can be written ({error.strerror}), got {path}") from None
    raise UserError(f"--output: must be a new file, or a report to write anew, got {path}, which is another file")
