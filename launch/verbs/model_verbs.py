"""The verbs of models and finished runs: which function does what was asked.

Imports only the standard library at the top, as the command line does: each verb imports what it needs.
"""

import argparse
import sys

from launch.verbs.arguments import UsageError


def on_chat(arguments: argparse.Namespace) -> int:
    """Talk to a model. Raises UserError."""
    from launch.verbs.chat import chat

    return chat(
        arguments.model,
        prompt=arguments.prompt,
        temperature=arguments.temperature,
        max_tokens=arguments.max_tokens,
    )


def on_completion(arguments: argparse.Namespace) -> int:
    """Print a shell's script for completion."""
    from launch.verbs.completion import script

    print(script(arguments.shell))
    return 0


def on_curves(arguments: argparse.Namespace) -> int:
    """Draw the curves of a run. Raises UserError."""
    from launch.tracking.redraw import curves_of

    print(curves_of(arguments.run))
    return 0


def on_export(arguments: argparse.Namespace) -> int:
    """Say where a run's model is, copy or upload it. Raises UserError, UsageError."""
    from launch.exports.hub import check_can_push, push_model
    from launch.verbs.export import export

    if arguments.private and not arguments.push:
        raise UsageError("--private: needs --push, got none")
    if arguments.push:
        check_can_push("--push", arguments.push)  # before the export, which may take minutes
    source = arguments.run
    if arguments.step is not None:
        from launch.verbs.export_step import export_step

        source = export_step(arguments.run, arguments.step)
    code = export(source, output=arguments.output, adapter=arguments.adapter)
    if arguments.push:
        push_model(source, arguments.push, private=arguments.private, adapter=arguments.adapter)
    return code


def on_init(arguments: argparse.Namespace) -> int:
    """Copy configs and examples into a directory, or write a job's configuration. Raises UserError, UsageError."""
    asked = {name: getattr(arguments, name) for name in ("job", "model", "data", "output", "reward")}
    given = [f"--{name}" for name, value in asked.items() if value is not None]
    if arguments.directory is not None:
        if given:
            raise UsageError(f"DIR: must be left out with {given[0]}, got {arguments.directory}")
        from launch.verbs.init import init

        return init(arguments.directory)
    missing = [f"--{name}" for name in ("job", "model", "data") if asked[name] is None]
    if missing and not (sys.stdin.isatty() and sys.stdout.isatty()):
        what = ", ".join(missing) if given else "DIR, or --job, --model and --data"
        raise UsageError(f"{what}: required, got nothing (see tandem init --help)")
    from launch.verbs.asking import ask
    from launch.verbs.new_job import NewJob, write_job

    return write_job(ask(**asked) if missing else NewJob(**asked))


def on_metrics(arguments: argparse.Namespace) -> int:
    """Print the metrics of a run. Raises UserError."""
    from launch.verbs.metrics import show_metrics

    form = "csv" if arguments.csv else "json" if arguments.json else "table"
    return show_metrics(arguments.run, last=arguments.last, names=arguments.names, every=arguments.every, form=form)


def on_mine(arguments: argparse.Namespace) -> int:
    """Find hard negatives. Raises UserError."""
    from launch.verbs.mine import MineOptions, mine

    return mine(MineOptions(**vars(arguments)))


def on_search(arguments: argparse.Namespace) -> int:
    """Show passages for a query. Raises UserError."""
    from launch.verbs.search import search

    return search(
        arguments.model,
        corpus=arguments.corpus,
        query=arguments.query,
        top=arguments.top,
        first_stage=arguments.first_stage,
        candidates=arguments.candidates,
    )


def on_watch(arguments: argparse.Namespace) -> int:
    """Serve the page of runs until Ctrl-C. Raises UserError."""
    from launch.page.server import watch

    return watch(arguments.directory, host=arguments.host, port=arguments.port, token=arguments.token)


def on_report(arguments: argparse.Namespace) -> int:
    """Write a report of runs, or say what has become of one. Raises UserError, UsageError."""
    if not arguments.json:
        from launch.page.report_file import write_report

        return write_report(arguments.runs, arguments.output)
    if len(arguments.runs) > 1:
        raise UsageError(f"--json: tells of one run, got {len(arguments.runs)}")
    from launch.verbs.report import print_summary

    return print_summary(arguments.runs[0])
