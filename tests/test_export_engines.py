"""vLLM serves exports as they were trained: whole and merged, and of a class of tokenizers that it reads otherwise.

All others are served by `make interop`.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.interop.agreement import assert_ends_at_each, assert_served_as_trained
from tests.interop.write import main

NAMES = ("llama", "llama-merged", "qwen2")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, environment: dict[str, str]) -> Path:
    directory = tmp_path_factory.mktemp("exports")
    main(directory, kinds=("llama", "qwen2"), families=())
    command = [sys.executable, "-m", "tests.served", str(directory), *NAMES]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return directory


@pytest.mark.parametrize("name", NAMES)
def test_an_engine_serves_an_export_as_it_was_trained(name: str, served: Path) -> None:
    assert_served_as_trained(served / name)


@pytest.mark.parametrize("name", NAMES)
def test_transformers_ends_an_answer_at_each_of_an_exports_tokens_for_that(name: str, served: Path) -> None:
    assert_ends_at_each(served / name)
