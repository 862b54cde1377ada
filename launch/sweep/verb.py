"""What `tandem sweep` takes, and what it does with it.

Imports only the standard library at the top, as the command line does.
"""

import argparse
from pathlib import Path

from launch.verbs.arguments import UsageError, config_arguments, count, more_than_one, whole


def sweep_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of `sweep`."""
    config_arguments(parser, optional=True, values="set a field, or sweep it: a,b,c uniform(a,b) loguniform(a,b) ...")
    parser.add_argument("--metric", metavar="NAME", help="metric of evaluations that is to be best: eval/reward/mean")
    parser.add_argument("--mode", choices=("max", "min"), help="whether more is better (default: by the metric)")
    parser.add_argument("--trials", metavar="N", type=count, help="runs in all; left out for a grid, which has its own")
    parser.add_argument("--parallel", metavar="N", type=count, default=1, help="runs at a time (default: 1)")
    parser.add_argument(
        "--search", choices=("random", "optuna"), help="how values are chosen (default: random; of lists all are tried)"
    )
    parser.add_argument(
        "--early-stop", choices=("asha", "none"), default="asha", help="end runs that fall behind (default: asha)"
    )
    parser.add_argument("--grace", metavar="N", type=count, help="steps that each run has (default: a quarter)")
    parser.add_argument(
        "--reduction", metavar="N", type=more_than_one, default=3, help="one in N runs goes on then (default: 3)"
    )
    parser.add_argument("--seed", metavar="N", type=whole, default=0, help="of what is drawn (default: 0)")
    parser.add_argument("--name", metavar="NAME", help="of its directory in run.output (default: run.name, and -sweep)")
    parser.add_argument("--table", metavar="DIRECTORY", help="instead: show the table of a sweep, running or not")


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
