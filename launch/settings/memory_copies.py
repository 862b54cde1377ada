"""Whether the state of groups that learn is copied into memory between checkpoints: `checkpoint.memory_every`."""

from actors.config import refuse_unused
from algorithms.config_rl import RLConfig
from launch.config import MemoryEvery, RunConfig


def copied_every(config: RunConfig) -> MemoryEvery:
    """Steps between copies, or auto; None where there are none, as no group goes back to one."""
    return None if _why_none(config) else config.checkpoint.memory_every


def check_copies(config: RunConfig) -> None:
    """Raise ValueError where the setting has no effect."""
    if why := _why_none(config):
        refuse_unused(config.checkpoint, "memory_every", why=why, section="checkpoint.")


def _why_none(config: RunConfig) -> str | None:
    algorithm = config.algorithm
    if not isinstance(algorithm, RLConfig):
        return f"for {algorithm.name}, whose groups go back to checkpoints alone"
    if algorithm.overlaps_gradients:
        return "with algorithm.overlap_gradients, where groups go back to checkpoints alone"
    return None if config.run.max_restarts else "with run.max_restarts 0, where no group is brought back"
