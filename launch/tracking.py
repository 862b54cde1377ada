"""Where metrics and samples go: metrics.jsonl and samples.jsonl always, eval_samples.jsonl where there are any; W&B and
TensorBoard beside them.

The files are written at once, in the caller's thread. W&B and TensorBoard take seconds to import and start, so a
thread of their own feeds them, started by the first `log`; their failure is a warning and never stops a run.
"""

import contextlib
import json
import math
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TextIO

from actors.secret_text import masked
from algorithms.config_rl import RLConfig
from launch.config import RunConfig
from launch.literal_secrets import public_values
from launch.wandb_run import known_run

CLOSE_DEADLINE_S = 60.0
"""Longest time `close` waits for W&B to finish an upload."""

Metrics = dict[str, float]
Warn = Callable[[str], None]


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
        warn: called, perhaps from another thread, with one line when W&B or TensorBoard fails.
    """

    def __init__(self, directory: Path, config: RunConfig, resumed_step: int = 0, warn: Warn | None = None) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._metrics = _reopen(directory / "metrics.jsonl", resumed_step)
        self._samples = _reopen(directory / "samples.jsonl", resumed_step)
        self._evaluations = (
            _reopen(directory / "eval_samples.jsonl", resumed_step) if _samples_held_out(config) else None
        )
        if self._evaluations is None and not resumed_step:
            (directory / "eval_samples.jsonl").unlink(missing_ok=True)
        makers: list[Callable[[], Sink]] = []
        if config.tracking.wandb and os.environ.get("WANDB_MODE") != "disabled":
            makers.append(lambda: _WandbSink(directory, config, goes_on=resumed_step > 0))
        if config.tracking.tensorboard:
            makers.append(lambda: _TensorboardSink(directory / "tensorboard", resumed_step))
        self._feeders = [_Feeder(maker, warn or _to_stderr) for maker in makers]

    def log(self, step: int, metrics: Metrics) -> None:
        """Write one line: `step` and the metrics; NaN and infinities become null."""
        _write_line(self._metrics, {"step": step, **metrics})
        for feeder in self._feeders:
            feeder.log(step, metrics)

    def samples(self, step: int, rows: list[dict[str, Any]]) -> None:
        """Write one line per sample: `step` and the columns of the row."""
        for row in rows:
            _write_line(self._samples, {"step": step, **row})

    def evaluation(self, step: int, rows: list[dict[str, Any]]) -> None:
        """Write one line per completion of an evaluation: `step` and the columns of the row."""
        assert self._evaluations is not None, "only jobs that sample responses to held-out prompts have any"
        for row in rows:
            _write_line(self._evaluations, {"step": step, **row})

    def close(self) -> None:
        """Close the files and wait, up to a deadline, until the services have everything."""
        for feeder in self._feeders:
            feeder.close()
        self._metrics.close()
        self._samples.close()
        if self._evaluations is not None:
            self._evaluations.close()


class _Feeder:
    """Hands metrics to a sink that is made, fed and closed in one background thread."""

    def __init__(self, maker: Callable[[], Sink], warn: Warn) -> None:
        self._maker, self._warn = maker, warn
        self._waiting: queue.SimpleQueue[tuple[int, Metrics] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def log(self, step: int, metrics: Metrics) -> None:
        self._waiting.put((step, dict(metrics)))
        if self._thread is None:
            # Daemon: a service that hangs must not keep a finished run alive.
            self._thread = threading.Thread(target=self._feed, name="tracking", daemon=True)
            self._thread.start()

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
            kind = "" if type(error) is RuntimeError else f"{type(error).__name__}: "
            self._warn(f"tracking: {kind}{masked(' '.join(str(error).split()))}; files are written as before")


class _WandbSink:
    """The driver's end of `launch.wandb_feeder`.

    The run there is that of the run directory: a resumed one `goes_on`, and so does one that begins anew as it was
    configured, because its first try has ended before its first checkpoint.
    """

    def __init__(self, directory: Path, config: RunConfig, *, goes_on: bool = False) -> None:
        # -P: the file's directory, whose modules have names like those of libraries, is no place to import from.
        self._feeder = subprocess.Popen(
            [sys.executable, "-P", str(Path(__file__).with_name("wandb_feeder.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
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

    def _write(self, value: Any) -> None:
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


def _samples_held_out(config: RunConfig) -> bool:
    return isinstance(config.algorithm, RLConfig) and config.algorithm.eval_every is not None


def _reopen(path: Path, resumed_step: int) -> TextIO:
    """Keep the lines up to `resumed_step` (none for 0), drop the rest, and open for appending line by line."""
    if resumed_step and path.exists():
        kept = path.with_suffix(".jsonl.new")
        with path.open(encoding="utf-8") as old, kept.open("w", encoding="utf-8") as new:
            new.writelines(line for line in old if _belongs(line, resumed_step))
        os.replace(kept, path)
    # A lone surrogate, which UTF-8 lacks, is written as the escape that JSON has for it.
    return path.open("a" if resumed_step else "w", encoding="utf-8", errors="backslashreplace", buffering=1)


def _belongs(line: str, resumed_step: int) -> bool:
    try:
        return line.endswith("\n") and json.loads(line)["step"] <= resumed_step
    except json.JSONDecodeError:
        return False  # the line a killed run was writing


def _write_line(file: TextIO, row: dict[str, Any]) -> None:
    # Columns of a generator's rows may hold anything: what JSON lacks is written as text.
    file.write(json.dumps(_strict(row), ensure_ascii=False, allow_nan=False, default=str) + "\n")


def _strict(value: Any) -> Any:
    """JSON has no NaN and no infinity: null stands for them."""
    if isinstance(value, dict):
        return {str(key): _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _to_stderr(line: str) -> None:
    print(f"warning: {line}", file=sys.stderr, flush=True)
