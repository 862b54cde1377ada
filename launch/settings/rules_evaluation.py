"""Rules about evaluation, and what it decides: that there are rows to evaluate on, and a metric of the name.

Every failure is a ValueError whose text begins with the field.
"""

from algorithms.loop import less_is_better
from launch.config import RunConfig
from launch.settings.metric_names import UNORDERED, require_metric


def check_held_out_is_given(config: RunConfig, rows: str) -> None:
    """Raise ValueError when evaluation decides something and never takes place; `rows`: the settings that give rows."""
    algorithm = config.algorithm
    if algorithm.stop_when and not config.data.evaluates:
        raise ValueError(f"algorithm.stop_when needs {rows}, got none")
    if algorithm.best_by and not config.data.evaluates:
        raise ValueError(f"algorithm.best_by needs {rows}, got {algorithm.best_by} without")


def check_asked_metrics(config: RunConfig, known: list[str]) -> None:
    """Raise ValueError when stop_when or best_by name none of the `known` metrics, or one that orders nothing."""
    algorithm = config.algorithm
    if algorithm.stop_when:
        require_metric(known, "algorithm.stop_when.metric", algorithm.stop_when.metric)
        if algorithm.stop_when.at_least is not None and less_is_better(algorithm.stop_when.metric):
            raise ValueError(
                f"algorithm.stop_when.at_least must be at_most for {algorithm.stop_when.metric}, of which less is "
                f"better (best_by takes the lowest), got {algorithm.stop_when.at_least:g}"
            )
    if algorithm.best_by:
        require_metric(known, "algorithm.best_by", algorithm.best_by, UNORDERED)
