"""A process of its own that feeds Weights & Biases from lines on its standard input, until these end.

It is no child of the driver: a job that is stopped signals those, and W&B would lose what it has not written yet. It
ends by itself, with everything delivered, also when the driver is killed. What fails is one line on standard output.

    first line: arguments of wandb.init, and the file of `launch.tracking.wandb_run`; then one [step, metrics] a line
"""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import wandb


def feed() -> None:
    """Leave the driver's family, then deliver."""
    if os.fork():  # the driver waits for this process; the other one has no parent then, and is nobody's child
        os._exit(0)
    os.setsid()  # no terminal, and so no Ctrl-C of it
    try:
        _deliver()
    except Exception as error:  # services fail in many ways (network, quota, login): the driver warns of it
        print(f"{type(error).__name__}: {' '.join(str(error).split())}", flush=True)


def _deliver() -> None:
    import wandb

    settings: dict[str, Any] = json.loads(sys.stdin.readline())
    if settings["mode"] is None:
        known = bool(os.environ.get("WANDB_API_KEY")) or wandb.login(prompt=False)
        settings["mode"] = "online" if known else "offline"
    file = Path(settings.pop("file"))
    # save_code: else WANDB_SAVE_CODE lets it send files and diffs of the repository, which may hold anything.
    options = wandb.Settings(silent=True, console="off", save_code=False)
    run = wandb.init(**settings, settings=options)
    known = json.loads(file.read_text(encoding="utf-8"))
    reached = _reached(known["step"], run)
    for line in sys.stdin:
        step, metrics = json.loads(line)
        if step > reached:  # a step that is taken again after a resume is there already
            run.log(metrics, step=step)
            _keep(file, known | {"step": step})
    run.finish()


def _reached(kept: int, run: "wandb.Run") -> int:
    """The last step that the run at Weights & Biases has: of those given, a lost node may not have delivered all."""
    there = getattr(run, "step", None) if getattr(run, "resumed", False) is True else None
    return min(kept, there - 1) if isinstance(there, int) else kept  # run.step is that of the next `log`


def _keep(file: Path, known: Mapping[str, object]) -> None:
    partial = file.with_name(f"{file.name}.partial")
    partial.unlink(missing_ok=True)
    with partial.open("x", encoding="utf-8") as there:  # "x" follows no link that somebody has put there
        there.write(json.dumps(known))
    os.replace(partial, file)


if __name__ == "__main__":
    feed()
