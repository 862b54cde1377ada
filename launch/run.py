"""The verb `run`: directory, cluster, groups, loop, export; and an end that leaves no process behind."""

import json
import signal
import sys
import traceback
from pathlib import Path
from types import FrameType
from typing import Any

from actors.config import UserError
from actors.group import GroupError, first_line
from algorithms.config import GRPOConfig
from launch.checkpoint import Checkpoints
from launch.cluster import place, ray_cluster, release
from launch.config import RunConfig
from launch.display import Display
from launch.reporter import RunReporter
from launch.tracking import Tracker


def run(config: RunConfig) -> int:
    """Train, export and report; returns the exit code: 0 done, 1 failed, 2 the user's mistake, 130 interrupted."""
    directory = config.directory
    (directory / "logs").mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config.model_dump(mode="json"), indent=2))
    display = Display()
    found = Checkpoints(directory / "checkpoints", config.checkpoint).latest()
    tracker = Tracker(directory, config, found.state["step"] if found else 0, display.warning)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        _train(config, RunReporter(display, tracker), display)
    except KeyboardInterrupt:
        display.close()
        print(f"interrupted; continue with the same command, results so far are in {directory}", file=sys.stderr)
        return 130
    except UserError as error:
        display.close()
        raise error
    except Exception as error:  # Whatever it was: the cause in a few lines, the rest in the log.
        display.close()
        _explain(error, directory)
        return 1
    finally:
        display.close()
        tracker.close()
    _farewell(directory)
    return 0


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _train(config: RunConfig, reporter: RunReporter, display: Display) -> None:
    display.phase("starting Ray")
    with ray_cluster(config, config.directory / "logs"):
        from launch.build import Groups, build_grpo, build_sft

        build = build_grpo if isinstance(config.algorithm, GRPOConfig) else build_sft
        groups = Groups()
        placement = place(config, lambda text: display.phase("waiting", text))
        try:
            loop = build(config, placement, reporter, groups)
            loop.train()
            display.phase("exporting")
            _export(loop.policy, config.directory / "export")
        finally:
            groups.shutdown()
            release(placement)


def _export(policy: Any, directory: Path) -> None:
    from actors.policy import PolicyWorker

    policy.call(PolicyWorker.export, directory.absolute())


def _explain(error: Exception, directory: Path) -> None:
    log = directory / "logs" / "driver.log"
    with log.open("a") as file:
        traceback.print_exception(error, file=file)
    group = str(error).partition(".")[0].replace("[", "-").rstrip("]")
    worker_log = directory / "logs" / f"{group}.log"
    path = worker_log if isinstance(error, GroupError) and worker_log.exists() else log
    kind = "" if isinstance(error, GroupError) else f"{type(error).__name__}: "
    print(f"run failed: {kind}{first_line(str(error))}", file=sys.stderr)
    print(f"full log: {path}", file=sys.stderr)


def _farewell(directory: Path) -> None:
    print(f"model:   {directory / 'export'}")
    print(f"metrics: {directory / 'metrics.jsonl'}")
    print(f"samples: {directory / 'samples.jsonl'}")
    print(f"talk to it: tandem chat {directory}")
