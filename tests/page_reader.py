"""A tab of a browser for the tests of the page: what goes wrong in it unseen is kept, and answers can be held up."""

import os
import re
import shutil
from pathlib import Path
from typing import Any

from tests.page_runs import Watch

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NO_CHROMIUM = "no Chromium is installed (Debian: apt-get install chromium)"
NO_PLAYWRIGHT = "playwright is not installed (pip install playwright)"
DEADLINE_MS, WAIT_MS, SHOWN_MS = 8000, 10, 50


class Reader:
    """A tab of the browser, in which nothing may go wrong unseen."""

    def __init__(self, browser: Any, watch: Watch) -> None:
        self.watch, self.wrong = watch, list[str]()
        self.page = browser.new_page(viewport={"width": 1280, "height": 800})
        self.page.set_default_timeout(DEADLINE_MS)
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("console", lambda line: line.type == "error" and self.wrong.append(line.text))
        self.page.on("response", lambda answer: answer.status >= 400 and self.wrong.append(answer.url))
        self.page.on("requestfailed", self._failed)

    def _failed(self, request: Any) -> None:
        if request.failure != "net::ERR_ABORTED":  # what is on its way when the view is left
            self.wrong.append(f"{request.url}: {request.failure}")

    def open(self, address: str = "", **words: str) -> Any:
        """Show a view, of the server or of another address; returns the page."""
        where = "".join(f"&{name}={value}" for name, value in words.items())
        self.page.goto("about:blank")
        self.page.goto(address or f"{self.watch.address}#{where}")
        self.page.locator("h1").wait_for()
        return self.page


class HeldUp:
    """The answer to a question of the page, which waits until it is let go.

    Args:
        page: it must be opened.
        question: regex of its path and query.
    """

    def __init__(self, page: Any, question: str) -> None:
        self._page, self._question = page, re.compile(question)
        self._held: list[tuple[Any, Any]] = []
        page.route(self._question, self._hold)

    def _hold(self, route: Any) -> None:
        self._held.append((route, route.fetch()))

    def wait(self) -> None:
        """Until the server has answered."""
        for _ in range(DEADLINE_MS // WAIT_MS):
            if self._held:
                return
            self._page.wait_for_timeout(WAIT_MS)
        raise TimeoutError(f"the page has not asked for {self._question.pattern}")

    def let_go(self) -> None:
        """Let the page have it, as it was given, and time to show it, if it does."""
        self.wait()
        [(route, answer)] = self._held
        with self._page.expect_response(self._question) as response:
            route.fulfill(response=answer)
        response.value.finished()
        self._page.unroute(self._question)
        self._page.wait_for_timeout(SHOWN_MS)


def copied(watch: Watch, name: str) -> Path:
    """A run that a test may change."""
    return Path(shutil.copytree(watch.directory / "second", watch.directory / name))


def cut_back(run: Path, step: int) -> None:
    """As a run does that goes on from a checkpoint of this step."""
    kept = (run / "metrics.jsonl").read_text().splitlines(keepends=True)[: step + 1]
    (run / "metrics.new").write_text("".join(kept))
    os.replace(run / "metrics.new", run / "metrics.jsonl")
