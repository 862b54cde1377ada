"""What the tests of the page in a browser share, as a plugin of theirs: a browser, a server of two runs, and a tab."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.page_reader import CHROMIUM, Reader
from tests.page_runs import Watch, add_faults, write_run

STEPS = 40


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # As root, Chromium has no sandbox; what is shown here is our own page.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def watch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watch]:
    directory = tmp_path_factory.mktemp("outputs")
    write_run(directory / "first", steps=STEPS, seed=1)
    add_faults(directory / "first", STEPS)
    write_run(directory / "second", steps=20, seed=2, lr=3e-6)
    watch = Watch(directory)
    yield watch
    watch.end()


@pytest.fixture(scope="module")
def tab(browser: Any, watch: Watch) -> Reader:
    return Reader(browser, watch)


@pytest.fixture
def reader(tab: Reader) -> Iterator[Reader]:
    yield tab
    wrong, tab.wrong = tab.wrong, []
    assert wrong == []
