"""Rules about rows: the sets they are divided into, how long they may be, and what the jobs that read them leave out.

Every failure is a ValueError whose text begins with the field.
"""

import re
from collections.abc import Iterable

from actors.config import changed, refuse_unused
from launch.config import RunConfig


def check_positions(config: RunConfig, setting: str, longest: int) -> None:
    """Raise ValueError when a new model has fewer positions than tokens are read at one time, as `setting` says."""
    # Of a model that is there, `check` reads it from config.json.
    positions = config.model.init.max_positions if config.model.init else None
    if positions is not None and longest > positions:
        raise ValueError(f"{setting} must not exceed model.init.max_positions ({positions}), got {longest}")


def check_nothing_is_sampled(config: RunConfig) -> None:
    """Raise ValueError for settings of rewards and engines, where no response is sampled."""
    for name, section in {"reward": config.reward, "rollout": config.rollout}.items():
        if given := changed(section):
            raise ValueError(
                f"{name} must be left out for {config.algorithm.name}, which samples no responses, "
                f"got {', '.join(given)}"
            )


def check_nothing_is_searched(config: RunConfig) -> None:
    """Raise ValueError for what only embedding models and rerankers read."""
    data, model, name = config.data, config.model, config.algorithm.name
    refuse_unused(data, "corpus", why=f"for {name}, which searches nothing", section="data.")
    if isinstance(data.eval, dict):
        raise ValueError(f"data.eval must be one source for {name}, got {', '.join(data.eval) or 'none'}")
    if isinstance(data.train, dict):
        check_sets_are_named(data.train, "data.train")
    if model.init and model.init.family == "bert":
        raise ValueError(f"model.init.family must be qwen2 or llama for {name}, which reads forward only, got bert")


def check_sets_are_named(sets: Iterable[str], field: str) -> None:
    """Raise ValueError for no set, and for a name that no metric could have as a part of its own."""
    if not sets:
        raise ValueError(f"{field} must name at least one set, got {{}}")
    for name in sets:
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise ValueError(
                f"{field} must have names of letters, digits, _, . and - (they are parts of metrics' names), "
                f"got {name!r}"
            )
