"""Makes docs/pictures/: the page on generated runs, in light and dark, on a wide and on a narrow screen.

python -m tests.page_pictures    needs playwright, and Chromium
"""

import io
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

from tests.page_runs import Watch, add_faults, say_now, write_run

PICTURES = Path(__file__).resolve().parent.parent / "docs/pictures"
VIEWS = {  # name -> width and height, scheme, view, and what is pressed
    "page-curves-light": ((1280, 760), "light", "run=grpo&beside=grpo-slower", ""),
    "page-groups-dark": ((1280, 900), "dark", "run=grpo&tab=groups&step=120", ""),
    "page-faults-light-narrow": ((390, 760), "light", "run=grpo&tab=faults", ""),
    "page-tokens-dark-narrow": ((390, 760), "dark", "run=grpo&tab=groups&step=120", "Tokens of sample 0"),
}
_COLOURS = 128


def pictures(directory: Path) -> None:
    """Write them, of runs that are made in a directory."""
    run = write_run(directory / "grpo", steps=180, seed=1)
    add_faults(run, 180)
    say_now(run, 181, "rollout", driver=1, at=time.time(), host="another")
    write_run(directory / "grpo-slower", steps=120, seed=2, lr=3e-7)
    watch = Watch(directory)
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            for name, view in VIEWS.items():
                (PICTURES / f"{name}.png").write_bytes(_picture(browser, watch, *view))
            browser.close()
    finally:
        watch.end()


def _picture(browser: Any, watch: Watch, size: tuple[int, int], scheme: str, view: str, pressed: str) -> bytes:
    viewport = {"width": size[0], "height": size[1]}
    page = browser.new_page(viewport=viewport, color_scheme=scheme, reduced_motion="reduce")
    page.goto(f"{watch.address}#{view}")
    page.locator(".u-wrap, .sample, .fault").first.wait_for()
    if pressed:
        page.get_by_role("button", name=pressed).click()
        page.locator(".tokens").press("ArrowRight")
    else:
        page.evaluate("document.activeElement.blur()")
    page.wait_for_timeout(500)
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB").quantize(_COLOURS)
    packed = io.BytesIO()
    picture.save(packed, "PNG", optimize=True)
    page.close()
    return packed.getvalue()


if __name__ == "__main__":
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as made:
        pictures(Path(made) / "outputs")
