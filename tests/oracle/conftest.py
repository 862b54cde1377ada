"""Comparisons with TRL 1.12.0 on random inputs: `make oracle`, in an environment of its own."""

import pytest

from tests.oracle.difference import table


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what was compared with what, and the largest differences."""
    terminalreporter.section("largest differences (absolute, or relative to magnitudes above 1)")
    for line in table():
        terminalreporter.write_line(line)
