"""What `tandem sweep` was asked for: a sweep, or the table of one.

Imports only the standard library at the top, as the command line does.
"""

import argparse
from pathlib import Path

from launch.verbs.arguments import UsageError


def on_sweep(arguments: argparse.Namespace) -> int:
    """Run a sweep, or show one. Raises UserError, UsageError."""
    if arguments.table is not None:
        if given := arguments.config or ("--metric" if arguments.metric else None):
            raise UsageError(f"--table: must stand alone, without CONFIG and options, got {given}")
        from launch.sweep.table import show_table

        return show_table(Path(arguments.table))
    for name, given in (("CONFIG", arguments.config), ("--metric", arguments.metric)):
        if given is None:
            raise UsageError(f"{name}: required without --table, got nothing (see tandem sweep --help)")
    from launch.sweep.prepare import Options
    from launch.sweep.sweep import run_sweep

    values = {name: value for name, value in vars(arguments).items() if name != "table"}
    return run_sweep(Options(**values))
