"""Named sections of benchmarks/RESULTS.md, and the description of the machine that belongs into each."""

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

RESULTS = Path(__file__).with_name("RESULTS.md")
_HEADING = "# Results\n\nEvery section is written by the command it names.\n"


def write_section(name: str, body: str, path: Path = RESULTS) -> None:
    """Write or replace the section `name` of a Markdown file; the other sections and any text between them stay.

    Raises:
        ValueError: when the file holds only one of the section's two markers.
    """
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    section = f"{begin}\n{body.strip()}\n{end}"
    text = path.read_text(encoding="utf-8") if path.is_file() else _HEADING
    if (begin in text) != (end in text):
        raise ValueError(f"{path}: section {name} has only one of its two markers")
    if begin in text:
        text = re.sub(re.escape(begin) + ".*?" + re.escape(end), lambda _: section, text, flags=re.DOTALL)
    else:
        text = f"{text.rstrip()}\n\n{section}\n"
    path.write_text(text, encoding="utf-8")


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [list(header), ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def machine() -> str:
    """Cores this process may use, processor and memory, in one line."""
    cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    model = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    flags = re.search(r"^flags\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    extension = ", AVX-512" if flags and "avx512f" in flags.group(1).split() else ""
    name = model.group(1).strip() if model else "unknown processor"
    return f"{len(os.sched_getaffinity(0))} cores of {name}{extension}, {gib:.0f} GiB"
