"""Where metrics and samples go: files of the run's directory, and beside them W&B and TensorBoard.

metrics.jsonl and samples.jsonl are always there, tokens.jsonl and eval_samples.jsonl where there are any. They are
written at once, in the caller's thread. W&B and TensorBoard take seconds to import and start, so a thread of their own
feeds them, started by the first `log`; their failure is a warning and never stops a run.
"""

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Protocol

from actors.secret_text import masked
from launch.config import RunConfig
from launch.kinds.table import job_kind
from launch.settings.literal_secrets import public_values
from launch.tracking.history import History, cut, gaps, steps_in_words
from launch.tracking.lines import Lines, Waiting, Warn, unwritable
from launch.tracking.wandb_run import known_run

_METRICS, _SAMPLES, _TOKENS, _EVALUATIONS = "metrics.jsonl", "samples.jsonl", "tokens.jsonl", "eval_samples.jsonl"
_SOMETIMES = (_TOKENS, _EVALUATIONS)
"""Files that not every job writes."""
CLOSE_DEADLINE_S = 60.0
"""Longest time `close` waits for W&B to finish an upload."""

Metrics = dict[str, float]


class Sink(Protocol):
    """A service that takes metrics."""

    def log(self, step: int, metrics: Metrics) -> None:
        """Take the metrics of one step."""
        ...

    def close(self) -> None:
        """Write what is left."""
        ...


class Tracker:
    """Writes the metrics and samples of a run.

    Args:
        directory: the run directory; it is created when missing.
        config: of the run; W&B shows it.
        resumed_step: last step whose results are kept; later lines are cut off, as they will be written again.
            0 starts both files anew.
        warn: called, perhaps from another thread, with one line when W&B or TensorBoard fails, and with what is missing
            of the steps that are done.

    Raises:
        UserError: a file cannot be opened, or, later, written: the disk is gone, or full for too many lines.
    """

    def __init__(self, directory: Path, config: RunConfig, resumed_step: int = 0, warn: Warn | None = None) -> None:
        self._directory, self._config, self._warn = directory, config, warn or _to_stderr
        self._open(resumed_step)
        for name in _SOMETIMES:
            if name not in self._files and not resumed_step:  # of an earlier run of this name, another kind of job
                (directory / name).unlink(missing_ok=True)
        makers: list[Callable[[], Sink]] = []
        if config.tracking.wandb and os.environ.get("WANDB_MODE") != "disabled":
            makers.append(lambda: _WandbSink(directory, config, goes_on=self._resumed_step > 0))
        if config.tracking.tensorboard:
            makers.append(lambda: _TensorboardSink(directory / "tensorboard", self._resumed_step))
        self._feeders = [_Feeder(maker, self._warn) for maker in makers]

    def rewind(self, resumed_step: int) -> None:
        """Keep only results up to an earlier step than was said, before anything is logged; may raise UserError."""
        self._close_files()
        self._open(resumed_step)

    def _open(self, resumed_step: int) -> None:
        self._resumed_step = resumed_step
        waiting = Waiting(self._warn)
        self._files: dict[str, Lines] = {}
        wanted = _wanted(self._config)
        for name in (_METRICS, _SAMPLES, *_SOMETIMES):
            path = self._directory / name
            # What an earlier start has written of steps that come again goes, also where this one writes no more.
            if name not in wanted and not (resumed_step and path.is_file()):
                continue
            with unwritable(path):
                self._directory.mkdir(parents=True, exist_ok=True)
                if resumed_step:
                    for line in _told(name, self._config, resumed_step, cut(path, resumed_step)):
                        self._warn(line)
                self._files[name] = Lines(path, anew=not resumed_step, warn=self._warn, waiting=waiting)

    def log(self, step: int, metrics: Metrics, left_out: Mapping[str, list[str]] | None = None) -> None:
        """Write one line: `step` and the metrics; NaN and infinities become null. The names of prompts that are
        `left_out`, by why, are in the file alone."""
        self._files[_METRICS].write({"step": step, **metrics} | ({"left_out": dict(left_out)} if left_out else {}))
        for feeder in self._feeders:
            feeder.log(step, metrics)

    def samples(self, step: int, rows: Iterable[Mapping[str, object]]) -> None:
        """Write one line per sample: `step` and the columns of the row."""
        self._write(_SAMPLES, step, rows)

    def tokens(self, step: int, rows: Iterable[Mapping[str, object]]) -> None:
        """Write one line per sample whose tokens are told: `step` and the columns of the row."""
        self._write(_TOKENS, step, rows)

    def evaluation(self, step: int, rows: Iterable[Mapping[str, object]]) -> None:
        """Write one line per completion of an evaluation: `step` and the columns of the row."""
        self._write(_EVALUATIONS, step, rows)

    def _write(self, name: str, step: int, rows: Iterable[Mapping[str, object]]) -> None:
        for row in rows:
            self._files[name].write({"step": step, **row})

    def close(self) -> None:
        """Close the files and wait, up to a deadline, until the services have everything."""
        for feeder in self._feeders:
            feeder.close()
        self._close_files()

    def _close_files(self) -> None:
        for file in self._files.values():
            file.close()


class _Feeder:
    """Hands metrics to a sink that is made, fed and closed in one background thread."""

    def __init__(self, maker: Callable[[], Sink], warn: Warn) -> None:
        self._maker, self._warn = maker, warn
        self._waiting: queue.SimpleQueue[tuple[int, Metrics] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._failed = False
        """Whether there can be no thread."""

    def log(self, step: int, metrics: Metrics) -> None:
        if self._failed:
            return
        self._waiting.put((step, dict(metrics)))  # a copy: the caller goes on with its own
        if self._thread is None:
            # Daemon: a service that hangs must not keep a finished run alive.
            thread = threading.Thread(target=self._feed, name="tracking", daemon=True)
            try:
                thread.start()
            except RuntimeError as error:  # the system gives this user no further one
                self._failed = True
                self._warn(f"tracking: {error}; files are written as before")
                return
            self._thread = thread

    def close(self) -> None:
        if self._thread is None:
            return
        self._waiting.put(None)
        self._thread.join(CLOSE_DEADLINE_S)
        if self._thread.is_alive():
            self._warn(f"tracking: metrics were not all delivered within {CLOSE_DEADLINE_S:g} s; files are complete")

    def _feed(self) -> None:
        try:
            sink = self._maker()
            while (item := self._waiting.get()) is not None:
                sink.log(*item)
            sink.close()
        except Exception as error:  # services fail in many ways (network, quota, login); none may stop a run
            # A RuntimeError holds the feeder's own line, which needs no class.
            kind = "" if type(error) is RuntimeError else f"{type(error).__name__}: "
            self._warn(f"tracking: {kind}{masked(' '.join(str(error).split()))}; files are written as before")


class _WandbSink:
    """The driver's end of `launch.tracking.wandb_feeder`.

    The run there is that of the run directory: a resumed one `goes_on`, and so does one that begins anew as it was
    configured, because its first try has ended before its first checkpoint.
    """

    def __init__(self, directory: Path, config: RunConfig, *, goes_on: bool = False) -> None:
        # -P: the file's directory, whose modules have names like those of libraries, is no place to import from.
        self._feeder = subprocess.Popen(
            [sys.executable, "-P", str(Path(__file__).with_name("wandb_feeder.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # W&B's own chatter; what fails comes on standard output
            text=True,
        )
        public = public_values(config)
        settings = {
            **known_run(directory, public, same=goes_on, may_be=config.checkpoint.resume),
            "project": config.tracking.project,
            "name": config.run.name,
            "group": config.tracking.group or config.run.name,
            "entity": config.tracking.entity,
            "tags": config.tracking.tags,
            "dir": os.environ.get("WANDB_DIR") or str(directory),
            "config": public,
            "mode": os.environ.get("WANDB_MODE"),
        }
        self._write(settings)
        self._feeder.wait()  # for the process that has put the feeder into the background

    def log(self, step: int, metrics: Metrics) -> None:
        self._write([step, metrics])

    def close(self) -> None:
        assert self._feeder.stdin is not None and self._feeder.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._feeder.stdin.close()
        if said := self._feeder.stdout.read():  # up to its end
            raise RuntimeError(said.strip())

    def _write(self, value: object) -> None:
        assert self._feeder.stdin is not None and self._feeder.stdout is not None
        try:
            self._feeder.stdin.write(json.dumps(value) + "\n")
            self._feeder.stdin.flush()
        except BrokenPipeError:
            raise RuntimeError(self._feeder.stdout.read().strip() or "Weights & Biases ended") from None


class _TensorboardSink:
    def __init__(self, directory: Path, resumed_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # What an earlier try has written of the steps that come again is not shown.
        self._writer = SummaryWriter(str(directory), purge_step=resumed_step + 1 if resumed_step else 0)

    def log(self, step: int, metrics: Metrics) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


def _wanted(config: RunConfig) -> set[str]:
    """Names of the files that the run writes."""
    kind = job_kind(config)
    found = {_METRICS, _SAMPLES}
    found |= {_TOKENS} if kind.samples_responses and config.tracking.token_samples else set()
    return found | ({_EVALUATIONS} if kind.samples_held_out else set())


def _told(name: str, config: RunConfig, reached: int, found: History) -> list[str]:
    """What a file lacks of the steps that are done, and which of its steps are done again."""
    wanted = range(1, reached + 1)
    sampled = job_kind(config).samples_responses and config.tracking.samples_per_step
    expected = {_METRICS: wanted, _SAMPLES: wanted if sampled else ()}
    lines = [gaps(name, found, expected.get(name, ()))]
    if found.again and name == _METRICS:
        those = "it is" if len(found.again) == 1 else "they are"
        lines.append(f"{steps_in_words(found.again)} came after the checkpoint of step {reached}: {those} done again")
    return [line for line in lines if line]


def _to_stderr(line: str) -> None:
    print(f"warning: {line}", file=sys.stderr, flush=True)
