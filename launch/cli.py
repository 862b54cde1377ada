"""The command line: verbs, their arguments, and how a user's mistakes are reported.

Imports only the standard library at the top: help must appear at once, so each verb imports what it needs.
"""

import argparse
import difflib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn

USER_ERROR = 2
INTERRUPTED = 130


class UsageError(Exception):
    """The command line cannot be parsed: one line says why."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


@dataclass(frozen=True, slots=True)
class Verb:
    """One verb: what it does, how its arguments are declared, and what runs it."""

    summary: str
    example: str
    declare: Callable[[argparse.ArgumentParser], None]
    handle: Callable[[argparse.Namespace], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 2 user's mistake (one line each on stderr), 130 Ctrl-C."""
    try:
        return _main(list(sys.argv[1:] if argv is None else argv))
    except UsageError as error:
        return _report(str(error))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


def _main(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(_overview(), file=sys.stdout if argv else sys.stderr)
        return 0 if argv else USER_ERROR
    name, *rest = argv
    if name not in VERBS:
        near = difflib.get_close_matches(name, VERBS, 1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise UsageError(f"verb: must be one of {', '.join(VERBS)}{hint}, got {name}")
    arguments = _parse(name, rest)
    # The console script does not put the working directory on the path, but rewards and generators live there.
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    from actors.config import UserError

    try:
        return VERBS[name].handle(arguments)
    except UserError as error:
        return _report(*error.problems)


def _parse(name: str, rest: list[str]) -> argparse.Namespace:
    verb = VERBS[name]
    parser = _Parser(
        prog=f"tandem {name}",
        description=verb.summary,
        epilog=f"example:\n  {verb.example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    verb.declare(parser)
    try:
        return parser.parse_intermixed_args(rest)
    except SystemExit as done:  # argparse has printed the help
        sys.exit(done.code)


def _report(*problems: str) -> int:
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return USER_ERROR


def _overview() -> str:
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {name:{width}}  {verb.summary}" for name, verb in VERBS.items())
    examples = "\n".join(f"  {verb.example}" for verb in VERBS.values())
    return (
        "usage: tandem VERB ...\n\n"
        "Reinforcement learning for language models on Ray: DeepSpeed trains, vLLM generates.\n\n"
        f"verbs:\n{verbs}\n\nexamples:\n{examples}\n\n`tandem VERB --help` says more about one verb."
    )


def _config_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", help="YAML file with what differs from the defaults")
    parser.add_argument("overrides", metavar="a.b=c", nargs="*", help="set a field; the value is YAML")


def _check_arguments(parser: argparse.ArgumentParser) -> None:
    _config_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")


def _data_arguments(parser: argparse.ArgumentParser) -> None:
    _config_arguments(parser)
    parser.add_argument("--rows", metavar="N", type=_count, default=3, help="rows to show (default: 3)")


def _chat_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="run directory (its export is used) or model directory")
    parser.add_argument("--prompt", metavar="TEXT", help="answer this and end, instead of a conversation")
    parser.add_argument(
        "--temperature", metavar="T", type=_temperature, default=0.0, help="sampling temperature (default: 0, greedy)"
    )
    parser.add_argument(
        "--max-tokens", metavar="N", type=_count, default=512, help="longest answer, in tokens (default: 512)"
    )


def _export_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="run directory, such as outputs/demo, or a PEFT directory to merge")
    parser.add_argument("--output", metavar="DIR", help="copy the model there (default: only print where it is)")
    parser.add_argument("--adapter", action="store_true", help="the LoRA adapters alone, a PEFT directory")


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1, got {text}")
    return int(text)


def _temperature(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number from 0, got {text}")
    return value


def _run(arguments: argparse.Namespace) -> int:
    from launch.check import preflight
    from launch.config import load

    config = load(arguments.config, arguments.overrides)
    for warning in preflight(config):
        print(f"warning: {warning}", file=sys.stderr)
    from launch.run import run  # imports ray: only once the mistakes are out

    return run(config)


def _check(arguments: argparse.Namespace) -> int:
    from launch.check import report
    from launch.config import load

    report(load(arguments.config, arguments.overrides), as_json=arguments.json)
    return 0


def _data(arguments: argparse.Namespace) -> int:
    from launch.config import load
    from launch.preview import preview

    preview(load(arguments.config, arguments.overrides), arguments.rows)
    return 0


def _chat(arguments: argparse.Namespace) -> int:
    from launch.chat import chat

    return chat(
        arguments.model,
        prompt=arguments.prompt,
        temperature=arguments.temperature,
        max_tokens=arguments.max_tokens,
    )


def _export(arguments: argparse.Namespace) -> int:
    from launch.export import export

    return export(arguments.run, output=arguments.output, adapter=arguments.adapter)


VERBS = {
    "run": Verb(
        "trains: starts a local Ray, or joins the one at RAY_ADDRESS",
        "tandem run configs/own-task.yaml run.name=first policy.optimizer.lr=1e-4",
        _config_arguments,
        _run,
    ),
    "check": Verb(
        "validates, and prints the resolved config, placement, batch arithmetic and memory; starts nothing",
        "tandem check configs/own-task.yaml policy.ranks=2",
        _check_arguments,
        _check,
    ),
    "data": Verb(
        "shows rendered rows with what is masked, and length statistics",
        "tandem data configs/sft.yaml --rows 5",
        _data_arguments,
        _data,
    ),
    "chat": Verb(
        "talks to a trained model",
        'tandem chat outputs/first --prompt "sort: dab"',
        _chat_arguments,
        _chat,
    ),
    "export": Verb(
        "says where a finished run's model is, or copies it: a Hugging Face directory",
        "tandem export outputs/first --output my-model",
        _export_arguments,
        _export,
    ),
}
