"""How many faults in a row a run survives, by its configuration and by the command line."""

from actors.config import UserError
from launch.config import RunConfig


def restarts_of(config: RunConfig, retries: int | None) -> int:
    """Most faults in a row; 0 where each start would begin anew.

    Args:
        retries: of the command line, which goes before `run.max_restarts`.

    Raises:
        UserError: there shall be some, and none could resume.
    """
    if config.checkpoint.resume:
        return config.run.max_restarts if retries is None else retries
    if retries:
        raise UserError(f"--retries: must be 0 with checkpoint.resume false: each would start anew, got {retries}")
    return 0
