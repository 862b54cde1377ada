"""The command line: verbs, their arguments, and how a user's mistakes are reported.

Imports only the standard library at the top: help must appear at once, so each verb imports what it needs.
"""

import argparse
import contextlib
import gc
import os
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING

from launch.checks.shadowing import reach_code
from launch.jobs import cluster_verbs
from launch.run.attempt_link import say_loaded
from launch.run.attempts import with_restarts
from launch.screen.stdout import show_what_acts
from launch.sweep.verb import on_sweep
from launch.telemetry import switch_off
from launch.verbs import arguments as takes
from launch.verbs import model_verbs
from launch.verbs.arguments import UsageError, Verb
from launch.verbs.parsing import parse_verb, unknown_verb

if TYPE_CHECKING:
    from launch.checks.tokenizer_process import Aside
    from launch.config import RunConfig
    from launch.page.beside import Beside
    from launch.screen.display import Display

USER_ERROR, INTERRUPTED, BROKEN_PIPE = 2, 130, 141
_LONGEST_LINE = 2000
_STARTED = time.monotonic()  # the user waits from here on, also for what is imported later


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 2 user's mistake (one line each on stderr), 130 Ctrl-C."""
    try:
        if argv is None and "_ARGCOMPLETE" in os.environ:  # a shell asks, not a person
            from launch.verbs.completion import complete

            complete(VERBS)
        # Arguments that are given come from a program, which has not asked for a second process of itself.
        code = _main(list(sys.argv[1:] if argv is None else argv), may_fork=argv is None)
        sys.stdout.flush()
        return code
    except UsageError as error:
        return _report(*map(str, error.args))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # `| head`: whoever read the output has seen enough, as after SIGPIPE
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except ModuleNotFoundError as error:
        return _report(_missing_package(error))


def _main(argv: list[str], *, may_fork: bool) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(_overview(), file=sys.stdout if argv else sys.stderr)  # without a verb, it tells of a mistake
        return 0 if argv else USER_ERROR
    name, *rest = argv
    switch_off()  # before any library is imported that would tell its maker of its use
    show_what_acts()
    if name in ("--version", "-V"):
        print(f"tandem {_version()}")
        return 0
    if name not in VERBS:
        raise unknown_verb(name, VERBS)
    arguments = parse_verb(name, VERBS[name], rest)
    code = not getattr(arguments, "no_code", False)
    workers = getattr(arguments, "step", None) is not None  # `export --step` starts the policy's ranks
    if problem := reach_code(_working_directory(), name, code=code, workers=workers):
        raise UsageError(problem)
    handle = partial(_handled, VERBS[name], arguments)
    return with_restarts(handle) if name == "run" and may_fork else handle()


def _handled(verb: Verb, arguments: argparse.Namespace) -> int:
    from actors.config import UserError

    try:
        return verb.handle(arguments)
    except UserError as error:
        return _report(*error.problems)


def _version() -> str:
    import importlib.metadata

    try:
        return importlib.metadata.version("tandem-rlhf")
    except importlib.metadata.PackageNotFoundError:
        return "of a directory that is not installed"


def _working_directory() -> str:
    try:
        return os.getcwd()
    except OSError as error:
        raise UsageError(f"working directory: must exist ({error.strerror}), got one that is gone") from None


def _report(*problems: str) -> int:
    for problem in problems:
        print(f"error: {_one_line(problem)}", file=sys.stderr)
    return USER_ERROR


def _one_line(problem: str) -> str:
    """A line that any terminal can show: what was given may be of any length, and hold anything."""
    from actors.secret_text import masked

    # More is masked than is shown: half a secret, cut at the edge, would not be known for one.
    public = masked(problem[: 2 * _LONGEST_LINE])[:_LONGEST_LINE] + " ..." * (len(problem) > _LONGEST_LINE)
    shown = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in public)
    encoding = getattr(sys.stderr, "encoding", None) or "utf-8"
    return shown.encode(encoding, "backslashreplace").decode(encoding)


def _missing_package(error: ModuleNotFoundError) -> str:
    """One line about a package that Tandem needs and this Python lacks; one of its own modules is a fault of ours."""
    package = (error.name or "").partition(".")[0]
    if package in ("", "launch", "algorithms", "actors"):  # no matter of installing: the traceback says more
        raise error
    return (
        f"package {package}: must be installed for {sys.executable} on {socket.gethostname()}, as "
        f"docs/installing.md says (make setup, or pip install tandem-rlhf with its dependencies), got nothing"
    )


def _overview() -> str:
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {name:{width}}  {verb.summary}" for name, verb in VERBS.items())
    examples = "\n".join(f"  {verb.example}" for verb in VERBS.values())
    return (
        "usage: tandem VERB ... | --version\n\n"
        "Reinforcement learning for language models on Ray: DeepSpeed trains, vLLM generates.\n\n"
        f"verbs:\n{verbs}\n\nexamples:\n{examples}\n\n`tandem VERB --help` says more about one verb."
    )


def _run(arguments: argparse.Namespace) -> int:
    from launch.checks.capacity import check_nodes
    from launch.checks.tokenizer_process import Aside
    from launch.run.ray_address import check_ray_address
    from launch.run.restarts import restarts_of
    from launch.sizes.machine import this_machine

    with Aside() as aside:
        config = _loaded(arguments, aside)
        say_loaded(restarts_of(config, arguments.retries), config.run.heartbeat_s, config.directory)
        check_nodes(config, this_machine())  # before the other checks, as it needs no model and no data
        check_ray_address(os.environ.get("RAY_ADDRESS"))
        return _checked_and_run(config, aside, watched=arguments.watch)


def _loaded(arguments: argparse.Namespace, aside: "Aside") -> "RunConfig":
    """The configuration, whose environment is this process' from now on: it may say where the hub's cache is."""
    from launch.config import load

    config = load(arguments.config, arguments.overrides)
    if config.cluster.env:
        from launch.settings.environment import taken_here

        aside.close()  # it has imported libraries that read the environment, as the hub's does HF_HOME
        code = not getattr(arguments, "no_code", False)
        os.environ.update(taken_here(config.cluster.env, os.environ, code=code))
    return config


def _checked_and_run(config: "RunConfig", aside: "Aside", *, watched: bool) -> int:
    from launch.run.signals import interruptible
    from launch.screen.display import Display
    from launch.screen.opening import opening_lines

    with interruptible(), _page_of(config, watched) as page, Display(started=_STARTED) as display:
        display.open(opening_lines(config) + ([f"page: {page.address}"] if page else []))
        display.phase("checking the configuration")
        _preflight(config, aside, display)
        aside.close()
        if page:
            page.start()
        display.phase("loading libraries")
        from launch.run.run import run  # imports ray: only once the mistakes are out

        try:
            return run(config, display)
        finally:
            # Else the interpreter's end walks through all objects of thousands of modules, for seconds, in silence.
            gc.freeze()


def _page_of(config: "RunConfig", watched: bool) -> "AbstractContextManager[Beside | None]":
    """The server of the run's page, where it is to be watched."""
    if watched:
        from launch.page.beside import page_beside

        return page_beside(config.directory) or contextlib.nullcontext()
    return contextlib.nullcontext()


def _preflight(config: "RunConfig", aside: "Aside", display: "Display") -> None:
    from actors.config import UserError
    from launch.checks.check import examine

    try:
        findings = examine(config, aside)
    except UserError:
        display.discard()  # else the opening of a run that never began would stand above the mistake
        raise
    rows = f": {findings.rows:,} rows to train on" if findings.rows is not None else ""
    display.note(f"configuration checked{rows}")
    for warning in findings.warnings:
        display.warning(warning)


def _check(arguments: argparse.Namespace) -> int:
    from launch.checks.tokenizer_process import Aside

    with Aside() as aside:
        config = _loaded(arguments, aside)
        from launch.checks.check import report

        report(config, aside, as_json=arguments.json, code=not arguments.no_code)
    return 0


def _data(arguments: argparse.Namespace) -> int:
    from launch.config import load
    from launch.verbs.preview import preview

    preview(load(arguments.config, arguments.overrides), arguments.rows, code=not arguments.no_code)
    return 0


def _help(arguments: argparse.Namespace) -> int:
    topic = arguments.topic
    if arguments.markdown or arguments.migrating:
        from launch.peers.tables import migrating_markdown
        from launch.verbs.help import settings_markdown

        print(settings_markdown() if arguments.markdown else migrating_markdown(), end="")
    elif topic is None:
        print(_overview())
    elif topic in VERBS:
        _help_of_verb(topic)
    else:
        from launch.verbs.help import help_text

        print(help_text(topic))
    return 0


def _help_of_verb(name: str) -> None:
    """The verb's own help, and that of the section of this name (`data`, `run`), if there is one."""
    with contextlib.suppress(SystemExit):  # argparse ends the process once it has printed help
        parse_verb(name, VERBS[name], ["--help"])
    from launch.verbs.help import help_text, is_setting

    if is_setting(name):
        print(f"\n{help_text(name)}")


VERBS = {
    "init": Verb(
        "writes a configuration for your data, or copies configs and examples into a directory",
        "tandem init my-project",
        takes.init_arguments,
        model_verbs.on_init,
    ),
    "run": Verb(
        "trains: starts a local Ray, or joins the one at RAY_ADDRESS",
        "tandem run configs/own-task.yaml run.name=first policy.optimizer.lr=1e-4",
        takes.run_arguments,
        _run,
    ),
    "sweep": Verb(
        "trains with several values of settings, each a run of its own, and says which are best",
        "tandem sweep configs/own-task.yaml policy.optimizer.lr=3e-4,1e-3 --metric eval/reward/mean",
        takes.sweep_arguments,
        on_sweep,
    ),
    "check": Verb(
        "validates, and prints the resolved config, placement, batch arithmetic and memory; starts nothing",
        "tandem check configs/own-task.yaml policy.ranks=2",
        takes.check_arguments,
        _check,
    ),
    "data": Verb(
        "shows rendered rows with what is masked, and length statistics",
        "tandem data configs/sft.yaml --rows 5",
        takes.data_arguments,
        _data,
    ),
    "chat": Verb(
        "talks to a trained model",
        'tandem chat outputs/first --prompt "sort: dab"',
        takes.chat_arguments,
        model_verbs.on_chat,
    ),
    "export": Verb(
        "says where a finished run's model is, or copies it: a Hugging Face directory",
        "tandem export outputs/first --output my-model",
        takes.export_arguments,
        model_verbs.on_export,
    ),
    "curves": Verb(
        "draws the metrics of a run, finished or not, and says where the picture is",
        "tandem curves outputs/first",
        takes.curves_arguments,
        model_verbs.on_curves,
    ),
    "metrics": Verb(
        "prints the metrics of a run, finished or not: a table, CSV, or JSON lines for programs",
        "tandem metrics outputs/first --last 5 --names 'reward|kl'",
        takes.metrics_arguments,
        model_verbs.on_metrics,
    ),
    "watch": Verb(
        "serves a page about runs, live or finished: curves, completions, faults, logs",
        "tandem watch outputs",
        takes.watch_arguments,
        model_verbs.on_watch,
    ),
    "report": Verb(
        "writes the page of runs, with their data, as one HTML file that needs no server and no network; or --json",
        "tandem report outputs/first --output first.html",
        takes.report_arguments,
        model_verbs.on_report,
    ),
    "mine": Verb(
        "finds hard negatives for queries with an embedding model; a reranker may judge them",
        "tandem mine outputs/first --data pairs.jsonl --output mined.jsonl --relative-margin 0.05",
        takes.mine_arguments,
        model_verbs.on_mine,
    ),
    "search": Verb(
        "shows the passages that an embedding model or reranker finds for a query",
        'tandem search outputs/first --corpus passages.txt --query "capital of France"',
        takes.search_arguments,
        model_verbs.on_search,
    ),
    "submit": Verb(
        "runs a configuration as a job on a Ray cluster (--kube: on Kubernetes), with this directory's files",
        "tandem submit configs/own-task.yaml run.output=/shared/outputs --address http://head:8265 --wait",
        takes.submit_arguments,
        cluster_verbs.on_submit,
    ),
    "status": Verb(
        "says in one line how a job is",
        "tandem status run-20260801-120000-3fa2 --address http://head:8265",
        takes.status_arguments,
        cluster_verbs.on_status,
    ),
    "logs": Verb(
        "prints what a job has printed, or follows it (-f); Ctrl-C leaves the job alone",
        "tandem logs run-20260801-120000-3fa2 -f --address http://head:8265",
        takes.logs_arguments,
        cluster_verbs.on_logs,
    ),
    "stop": Verb(
        "stops a job, which saves a checkpoint first, and waits for its end",
        "tandem stop run-20260801-120000-3fa2 --address http://head:8265",
        takes.stop_arguments,
        cluster_verbs.on_stop,
    ),
    "list": Verb(
        "lists the jobs on a cluster",
        "tandem list --address http://head:8265",
        takes.list_arguments,
        cluster_verbs.on_list,
    ),
    "k8s": Verb(
        "prints manifests for Kubernetes: a RayJob, or a RayCluster for development",
        "tandem k8s configs/own-task.yaml run.output=/shared/outputs > run.yaml",
        takes.k8s_arguments,
        cluster_verbs.on_k8s,
    ),
    "completion": Verb(
        "prints what a shell must read to complete verbs, options, files and settings with Tab",
        'eval "$(tandem completion bash)"',
        takes.completion_arguments,
        model_verbs.on_completion,
    ),
    "help": Verb(
        "explains a setting or section, ours or by another project's name, or a verb",
        "tandem help policy.optimizer.lr",
        takes.help_arguments,
        _help,
    ),
}
