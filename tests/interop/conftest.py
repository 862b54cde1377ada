"""Exports, written by this project's environment and read by transformers 4.57: `make interop`."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="session")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory with those of tests/interop/write.py, which the interpreter TANDEM_PYTHON runs."""
    directory = tmp_path_factory.mktemp("exports")
    command = [os.environ["TANDEM_PYTHON"], "-m", "tests.interop.write", str(directory)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return directory
