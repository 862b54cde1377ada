"""Which jobs read a setting; of others it is refused unless it equals its default (`refuse_unused`).

Each kind of job says it in `reads`; `tests/test_settings.py` compares that with what is refused.
"""

from algorithms.rl.baselines import WITHOUT_CRITIC
from algorithms.rl.surrogates import SURROGATES
from launch.kinds.table import KINDS
from launch.settings.tree import by_path, jobs

READ_BY = {
    path: tuple(name for name, kind in KINDS.items() if path in kind.reads)
    for path in sorted(set().union(*(kind.reads for kind in KINDS.values())))
}
"""Setting, or section with all that is below it -> the jobs that read it; what is not here, all read."""


def readers(path: str) -> tuple[str, ...]:
    """Names of the jobs that read the setting of this dotted name (`launch.settings.tree`), in their usual order."""
    own = by_path()[path]
    if path.startswith("algorithm."):
        return tuple(job for job in jobs() if any(job in item.jobs for item in own))
    while path and path not in READ_BY:  # a section stands for all that is below it
        path = path.rpartition(".")[0]
    return READ_BY[path] if path else tuple(jobs())


def readers_text(path: str) -> str:
    """The same in words."""
    found = readers(path)
    return "all jobs" if len(found) == len(jobs()) else ", ".join(found)


def read_with(path: str) -> str:
    """Choices of grpo with which it reads the setting of this dotted name: `loss clip or gspo`; empty if with all."""
    name = path.removeprefix("algorithm.")
    for field, table in (("advantage", WITHOUT_CRITIC), ("loss", SURROGATES)):
        if reading := [choice for choice, entry in table.items() if name in entry.reads]:
            return f"{field} {' or '.join(reading)}"
    return ""
