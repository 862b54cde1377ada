"""The page's files: no network, no markup from text, nothing that its content security policy refuses."""

import hashlib
import re
from pathlib import Path

import pytest

STATIC = Path(__file__).resolve().parent.parent / "launch/page/static"
MODULES = sorted(STATIC.glob("*.js"))
MOST_LINES = 300
UPLOT = {
    "uPlot.iife.min.js": "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f",
    "uPlot.min.css": "df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04",
}
"""Of the npm package of 1.6.32."""


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.name)
def test_a_module_is_short_and_takes_text_for_text(module: Path) -> None:
    code = module.read_text(encoding="utf-8")
    assert len(code.splitlines()) <= MOST_LINES
    assert re.match(r"/\*\*", code), "a module begins with what it holds"
    for markup in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "DOMParser", "eval(", "Function("):
        assert markup not in code
    assert set(re.findall(r"https?://[^\"' ]*", code)) <= {"http://www.w3.org/2000/svg"}
    for used in re.findall(r'from "([^"]*)"', code):
        assert used.startswith("./") and (STATIC / used).is_file()


def test_the_first_page_loads_files_of_its_own_alone() -> None:
    html = (STATIC / "index.html").read_text(encoding="utf-8")
    named = re.findall(r'(?:src|href)="([^"#][^"]*)"', html)
    assert named and all((STATIC / name).is_file() for name in named)
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*src=)", html), (
        "the policy refuses what stands inline"
    )
    assert "url(" not in (STATIC / "page.css").read_text(encoding="utf-8")


def test_the_library_is_as_it_was_released() -> None:
    vendor = STATIC / "vendor"
    assert {name: hashlib.sha256((vendor / name).read_bytes()).hexdigest() for name in UPLOT} == UPLOT
    assert "(v1.6.32)" in (vendor / "uPlot.iife.min.js").read_text(encoding="utf-8")[:100]
    assert "MIT" in (vendor / "uPlot-LICENSE.txt").read_text(encoding="utf-8")
