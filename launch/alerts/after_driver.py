"""Alerts to what a driver could not tell, as it was killed and there is to be no other one; a program of its own.

The process that starts drivers runs it (`launch.run.attempts`), as it imports nothing of this itself.
"""

import sys
from pathlib import Path

from actors.config import UserError
from launch.alerts.alerts import Alerts
from launch.config import load
from launch.screen.stdout import tell
from launch.tracking.events import Events
from launch.tracking.now import read_now


def alert_after(directory: Path, *, restarted: bool = False) -> None:
    """Tell of the faults of a run's last attempt that nobody was alerted to, and of what it did not deliver; what
    cannot be read is not told. `restarted`: it was not the first of its command."""
    try:
        config = load(str(directory / "config.json"), [])  # its paths are as the driver's were
    except UserError:  # there was no configuration yet, or somebody has edited it
        return
    events = Events(directory)
    events.attempt -= 1  # that of the driver, and no further one
    if where := read_now(directory):
        events.step, events.phase = where.step, where.phase
    alerts = Alerts(
        config,
        events,
        show=lambda level, text: None,
        warn=lambda line: tell(f"warning: {line}"),
        untried_from=events.attempt - restarted,
    )
    alerts.close()


if __name__ == "__main__":
    alert_after(Path(sys.argv[1]), restarted="restarted" in sys.argv[2:])
