"""A process of its own that feeds Weights & Biases from lines on its standard input, until these end.

It is no child of the driver: a job that is stopped signals those, and W&B would lose what it has not written yet. It
ends by itself, with everything delivered, also when the driver is killed. What fails is one line on standard output.

    first line: keyword arguments of wandb.init; then one [step, metrics] a line
"""

import json
import os
import sys
from typing import Any


def feed() -> None:
    """Leave the driver's family, then deliver."""
    if os.fork():
        os._exit(0)
    os.setsid()
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
    run = wandb.init(**settings, settings=wandb.Settings(silent=True, console="off"))
    for line in sys.stdin:
        step, metrics = json.loads(line)
        run.log(metrics, step=step)
    run.finish()


if __name__ == "__main__":
    feed()
