"""vLLM of this project's environment serves all exports as transformers 4.57 computes them."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.interop.agreement import assert_served_as_trained
from tests.interop.conftest import ROOT
from tests.interop.test_transformers_4 import FAST, NEW

NAMES = [kind + way for kind in FAST for way in ("", "-merged")] + list(NEW)


@pytest.fixture(scope="module")
def served(exports: Path) -> Path:
    command = [os.environ["TANDEM_PYTHON"], "-m", "tests.served", str(exports), *NAMES]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return exports


@pytest.mark.parametrize("name", NAMES)
def test_an_engine_serves_an_export_as_it_was_trained(name: str, served: Path) -> None:
    assert_served_as_trained(served / name)
