"""What a verb of the command line is, and what each one takes.

Imports only the standard library: help must appear at once.
"""

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass

from launch.page.access_token import RULE, is_token


class UsageError(Exception):
    """The command line cannot be parsed: one line says why."""


@dataclass(frozen=True, slots=True)
class Verb:
    """One verb: what it does, how its arguments are declared, and what runs it."""

    summary: str
    example: str
    declare: Callable[[argparse.ArgumentParser], None]
    handle: Callable[[argparse.Namespace], int]


def init_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of `init`."""
    parser.add_argument(
        "directory", metavar="DIR", nargs="?", help="gets configs/ and examples/, which it must not have yet"
    )
    parser.add_argument(
        "--job",
        choices=("sft", "grpo", "ppo", "dpo", "reward", "embedding", "reranker"),
        help="write a configuration instead, of this job",
    )
    parser.add_argument("--model", metavar="MODEL", help="directory or hub id of the model to train")
    parser.add_argument("--data", metavar="FILE", help="rows to train on; their columns decide how they are read")
    parser.add_argument("--output", metavar="FILE.yaml", help="file to be written (default: JOB.yaml)")
    parser.add_argument(
        "--reward",
        metavar="FUNCTION",
        help="of grpo and ppo: math, exact_match or file.py:function (default: by the data)",
    )


def completion_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of `completion`."""
    parser.add_argument("shell", choices=("bash", "zsh", "fish"), help="whose script is printed")


def config_arguments(
    parser: argparse.ArgumentParser, *, optional: bool = False, values: str = "set a field; the value is YAML"
) -> None:
    """A configuration: file and overrides; `values`: what an override may be."""
    number = "?" if optional else None
    parser.add_argument("config", metavar="CONFIG", nargs=number, help="YAML file with what differs from the defaults")
    parser.add_argument("overrides", metavar="a.b=c", nargs="*", help=values)


def run_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of `run`."""
    config_arguments(parser)
    _retries_argument(parser)
    parser.add_argument(
        "--watch", action="store_true", help="serve the run's page meanwhile, at the address that is printed first"
    )


def sweep_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of `sweep`."""
    config_arguments(parser, optional=True, values="set a field, or sweep it: a,b,c uniform(a,b) loguniform(a,b) ...")
    parser.add_argument("--metric", metavar="NAME", help="metric of evaluations that is to be best: eval/reward/mean")
    parser.add_argument("--mode", choices=("max", "min"), help="whether more is better (default: by the metric)")
    parser.add_argument(
        "--trials", metavar="N", type=_count, help="runs in all; left out for a grid, which has its own"
    )
    parser.add_argument("--parallel", metavar="N", type=_count, default=1, help="runs at a time (default: 1)")
    parser.add_argument(
        "--search", choices=("random", "optuna"), help="how values are chosen (default: random; of lists all are tried)"
    )
    parser.add_argument(
        "--early-stop", choices=("asha", "none"), default="asha", help="end runs that fall behind (default: asha)"
    )
    parser.add_argument("--grace", metavar="N", type=_count, help="steps that each run has (default: a quarter)")
    parser.add_argument(
        "--reduction", metavar="N", type=_several, default=3, help="one in N runs goes on then (default: 3)"
    )
    parser.add_argument("--seed", metavar="N", type=_whole, default=0, help="of what is drawn (default: 0)")
    parser.add_argument("--name", metavar="NAME", help="of its directory in run.output (default: run.name, and -sweep)")
    parser.add_argument("--table", metavar="DIRECTORY", help="instead: show the table of a sweep, running or not")


def check_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of `check`."""
    config_arguments(parser)
    _code_argument(parser, "nothing is called")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")


def data_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of `data`."""
    config_arguments(parser)
    parser.add_argument("--rows", metavar="N", type=_count, default=3, help="rows to show (default: 3)")
    _code_argument(parser, "converters and generators are refused")


def chat_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of `chat`."""
    parser.add_argument("model", metavar="MODEL", help="run directory (its export is used) or model directory")
    parser.add_argument("--prompt", metavar="TEXT", help="answer this and end, instead of a conversation")
    parser.add_argument(
        "--temperature", metavar="T", type=_temperature, default=0.0, help="sampling temperature (default: 0, greedy)"
    )
    parser.add_argument(
        "--max-tokens", metavar="N", type=_count, help="longest answer, in tokens (default: 512, or what the model has)"
    )


def export_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of `export`."""
    parser.add_argument("run", metavar="RUN", help="run directory, such as outputs/demo, or a PEFT directory to merge")
    parser.add_argument(
        "--output", metavar="DIR", help="copy the model there, also to a URL (default: only print where it is)"
    )
    parser.add_argument("--adapter", action="store_true", help="the LoRA adapters alone, a PEFT directory")
    parser.add_argument("--step", metavar="N", type=_count, help="the model of this checkpoint, one that is kept")
    parser.add_argument("--push", metavar="OWNER/NAME", help="upload it to this repository of the Hugging Face hub")
    parser.add_argument("--private", action="store_true", help="with --push, make that a private one")


def curves_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of `curves`."""
    parser.add_argument("run", metavar="RUN", help="run directory, such as outputs/demo")


def metrics_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of `metrics`."""
    parser.add_argument("run", metavar="RUN", help="run directory, such as outputs/demo")
    parser.add_argument("--last", metavar="N", type=_count, help="the last N of these steps (default: all)")
    parser.add_argument(
        "--names", metavar="REGEX", help="metrics whose names have it, such as 'reward|kl' (default: the main ones)"
    )
    parser.add_argument("--every", metavar="N", type=_count, default=1, help="steps that are multiples of N")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--csv", action="store_true", help="comma-separated, of all metrics unless --names chooses")
    form.add_argument("--json", action="store_true", help="the same as one JSON object per step")


def watch_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of `watch`."""
    parser.add_argument(
        "directory",
        metavar="DIRECTORY",
        nargs="?",
        default="outputs",
        help="run, or directory of runs (default: outputs)",
    )
    parser.add_argument(
        "--host", metavar="ADDRESS", default="127.0.0.1", help="listen there (default: 127.0.0.1, this machine alone)"
    )
    parser.add_argument("--port", metavar="N", type=_port, help="listen there (default: 8400, or the next free one)")
    parser.add_argument(
        "--token", metavar="T", type=_token, help="lets see and stop runs (default: $TANDEM_WATCH_TOKEN, else random)"
    )


def report_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of `report`."""
    parser.add_argument("runs", metavar="RUN", nargs="+", help="run directory, such as outputs/demo")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--output", metavar="FILE", default="report.html", help="write it there (default: report.html)")
    form.add_argument("--json", action="store_true", help="of one run: print one JSON object for programs instead")


def mine_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of `mine`."""
    parser.add_argument("model", metavar="MODEL", help="embedding model: run directory, model directory or hub id")
    parser.add_argument(
        "--data",
        metavar="FILE",
        required=True,
        help="rows of a query with positives; data.train or data.eval: those of the run that MODEL is, with its corpus",
    )
    parser.add_argument("--output", metavar="FILE.jsonl", required=True, help="rows of query, pos and neg")
    parser.add_argument(
        "--corpus", metavar="FILE", help="more passages: rows of text (and title), or a .txt of one passage a line"
    )
    parser.add_argument("--negatives", metavar="N", type=_count, default=7, help="negatives of a row (default: 7)")
    parser.add_argument(
        "--range",
        metavar=("A", "B"),
        dest="window",  # `range` would stand for Python's own wherever it is read
        nargs=2,
        type=_whole,
        help="of the candidates that limits and margins leave, those from place A, counted from 0, to before B "
        "(default: from 0, to N, or 10 N where some may be excluded, and the most positives of a query)",
    )
    parser.add_argument("--max-score", metavar="X", type=_any_number, help="no negative scores more")
    parser.add_argument("--min-score", metavar="X", type=_any_number, help="no negative scores less")
    parser.add_argument(
        "--absolute-margin",
        metavar="X",
        type=_any_number,
        help="negatives score X less than the query's worst positive",
    )
    parser.add_argument(
        "--relative-margin", metavar="X", type=_share, help="the same as a share of the positive's score, such as 0.05"
    )
    parser.add_argument(
        "--sampling", choices=("top", "random"), default="top", help="which candidates (default: top, the best ones)"
    )
    parser.add_argument(
        "--reranker", metavar="DIR", help="write its scores too; score limits and margins are about its scores"
    )
    parser.add_argument("--rescore", action="store_true", help="let its scores choose, also without limit or margin")
    parser.add_argument(
        "--rank", action="store_true", help="write the top N passages of a query instead, positives among them"
    )
    parser.add_argument("--batch-size", metavar="N", type=_count, default=32, help="texts at once (default: 32)")
    parser.add_argument("--seed", metavar="N", type=_whole, default=0, help="of random sampling (default: 0)")
    parser.add_argument("--query-prompt", metavar="TEXT", help="before queries (default: what the model keeps)")
    parser.add_argument("--passage-prompt", metavar="TEXT", help="before passages (default: what the model keeps)")


def search_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of `search`."""
    parser.add_argument("model", metavar="MODEL", help="embedding model or reranker: run or model directory, or hub id")
    parser.add_argument(
        "--corpus",
        metavar="FILE",
        help="rows of text (and title), or a .txt of one passage a line (default: the passages of the run's own data)",
    )
    parser.add_argument("--query", metavar="TEXT", help="search for this and end, instead of asking for queries")
    parser.add_argument("--top", metavar="N", type=_count, default=5, help="passages shown (default: 5)")
    parser.add_argument("--first-stage", metavar="DIR", help="embedding model that finds what a reranker orders")
    parser.add_argument(
        "--candidates", metavar="N", type=_count, help="passages that the first stage finds (default: 50)"
    )


def submit_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of `submit`."""
    config_arguments(parser)
    _code_argument(parser, "nothing is called here")
    _cluster_arguments(parser, namespace="cluster.kubernetes.namespace")
    _retries_argument(parser)
    parser.add_argument(
        "--id", metavar="ID", help="id of the job (default: name, time and a random part); one that failed is resumed"
    )
    parser.add_argument("--wait", action="store_true", help="follow the log, and end with the driver's exit code")
    parser.add_argument("--json", action="store_true", help="print one JSON object; all else goes to standard error")


def status_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of `status`."""
    _job_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def logs_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of `logs`."""
    _job_arguments(parser)
    parser.add_argument(
        "-f", "--follow", action="store_true", help="until the job ends; ends with the driver's exit code"
    )
    parser.add_argument("--tail", metavar="N", type=_count, help="begin N lines before the end (default: all)")


def stop_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of `stop`."""
    _job_arguments(parser)
    parser.add_argument(
        "--timeout",
        metavar="S",
        type=_seconds,
        help="seconds to wait (default: the job's cluster.stop_wait_s, and 30; with --kube: its pods' grace, and 60)",
    )


def list_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of `list`."""
    _cluster_arguments(parser)
    parser.add_argument("--all", action="store_true", help="also jobs that Tandem did not submit")
    parser.add_argument("--json", action="store_true", help="print a list of objects")


def k8s_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of `k8s`."""
    config_arguments(parser, optional=True)
    _code_argument(parser, "nothing is called here")
    parser.add_argument(
        "--kind",
        choices=("rayjob", "raycluster"),
        help="rayjob: the run with its cluster (default); raycluster: a cluster alone, for development",
    )
    parser.add_argument("--check", metavar="FILE", help="instead: validate a file of manifests, edited by hand perhaps")


def help_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of `help`."""
    parser.add_argument("topic", metavar="NAME", nargs="?", help="policy.optimizer.lr, rollout, learning_rate, check")
    parser.add_argument("--markdown", action="store_true", help=argparse.SUPPRESS)  # makes docs/settings.md
    parser.add_argument("--migrating", action="store_true", help=argparse.SUPPRESS)  # makes docs/migrating.md


def _code_argument(parser: argparse.ArgumentParser, then: str) -> None:
    parser.add_argument(
        "--no-code",
        action="store_true",
        help=f"import no reward function, converter or generator that the configuration names: {then}",
    )


def _retries_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--retries",
        metavar="N",
        type=_whole,
        help="faults in a row, without a finished step between them, that the run survives (default: run.max_restarts)",
    )


def _job_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", metavar="ID", help="the job's id, as `submit` prints it")
    _cluster_arguments(parser)


def _cluster_arguments(parser: argparse.ArgumentParser, namespace: str = "the context's") -> None:
    """`namespace`: the default of --namespace, in words; only `submit` has a configuration to ask."""
    parser.add_argument(
        "--address", metavar="URL", help="Ray's dashboard (default: RAY_API_SERVER_ADDRESS, then an http RAY_ADDRESS)"
    )
    parser.add_argument("--kube", action="store_true", help="a RayJob on Kubernetes instead of a job on a Ray cluster")
    parser.add_argument("--namespace", metavar="NAME", help=f"with --kube: namespace (default: {namespace})")
    parser.add_argument("--context", metavar="NAME", help="with --kube: context of the kubeconfig (default: current)")


def _port(text: str) -> int:
    if not text.isdecimal() or len(text) > 5 or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"must be a port from 1 to 65535, got {_cut(text)}")
    return int(text)


def _token(text: str) -> str:
    if not is_token(text):
        raise argparse.ArgumentTypeError(RULE)
    return text


def _count(text: str) -> int:
    return _integer(text, 1)


def _several(text: str) -> int:
    return _integer(text, 2)


def _whole(text: str) -> int:
    return _integer(text, 0)


def _integer(text: str, lowest: int) -> int:
    # int() takes no longer text: Python bounds the time of the conversion.
    if not text.isdecimal() or len(text) > 4300 or not lowest <= int(text) < 2**31:
        big = f" to {2**31 - 1}" if text.isdecimal() and len(text) > 9 else ""
        raise argparse.ArgumentTypeError(f"must be a whole number from {lowest}{big}, got {_cut(text)}")
    return int(text)


def _cut(text: str) -> str:
    return (text if len(text) <= 80 else f"{text[:77]}...") or "''"


def _temperature(text: str) -> float:
    return _number(text, "must be a number from 0")


def _seconds(text: str) -> float:
    return _number(text, "must be seconds from 0")


def _any_number(text: str) -> float:
    return _number(text, "must be a number", lowest=-math.inf)


def _share(text: str) -> float:
    return _number(text, "must be a number from 0 to 1", highest=1)


def _number(text: str, rule: str, *, lowest: float = 0, highest: float = math.inf) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan  # of which no comparison below is true
    if not (lowest <= value <= highest and math.isfinite(value)):
        raise argparse.ArgumentTypeError(f"{rule}, got {_cut(text)}")
    return value
