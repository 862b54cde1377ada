"""Which numbers of a run are tiles and which are curves: the first look at a job of any kind."""

from typing import Any

import numpy as np

from launch.page.metric_table import MetricTable
from launch.tracking.curves import panel_metrics

MOST_TILES, MOST_LISTED = 6, 4
_ROUNDING = 1e-6
"""A metric that never leaves this is zero but for rounding."""
_TILES = (  # metric, title, and which way is better
    ("eval/reward/mean", "held-out reward", "up"),
    ("reward/mean", "reward", "up"),
    ("eval/accuracy", "held-out accuracy", "up"),
    ("eval/rewards/accuracy", "held-out accuracy", "up"),
    ("reward_model/accuracy", "accuracy", "up"),
    ("rewards/accuracy", "accuracy", "up"),
    ("eval/ndcg@10", "held-out nDCG@10", "up"),
    ("eval/spearman", "held-out Spearman", "up"),
    ("embedding/accuracy", "accuracy in batches", "up"),
    ("reranker/accuracy", "accuracy in batches", "up"),
    ("eval/loss", "held-out loss", "down"),
    ("loss/nll", "loss", "down"),
    ("loss/dpo", "loss", "down"),
    ("loss/reward_model", "loss", "down"),
    ("loss/embedding", "loss", "down"),
    ("loss/reranker", "loss", "down"),
    ("policy/kl", "KL to the reference", None),
    ("policy/entropy", "entropy", None),
    ("rollout/response_tokens_mean", "response length", None),
    ("grad_norm", "gradient norm", None),
    ("tokens_per_second", "tokens per second", "up"),
    ("time/step", "seconds per step", "down"),
)
_OF_SETS = ("/ndcg@10", "/spearman", "/map")
"""Ends of names of what is measured on each held-out set of a job on texts."""


def tile_metrics(names: set[str]) -> list[tuple[str, str, str | None]]:
    """Metric, title and better way (up, down, None) of each tile, the most telling ones first."""
    found = [tile for tile in _TILES if tile[0] in names]
    sets = sorted(name for name in names if name.startswith("eval/") and name.endswith(_OF_SETS))
    known = {tile[0] for tile in found}
    of_sets = [(name, name.removeprefix("eval/"), "up") for name in sets if name not in known]
    return [*of_sets[:2], *found][:MOST_TILES]


def tiles(table: MetricTable) -> list[dict[str, Any]]:
    """The tiles of a run, with their last and first values."""
    return [
        {"metric": name, "title": title, "value": table.last(name), "first": table.first(name), "better": better}
        for name, title, better in tile_metrics(set(table.names))
    ]


def panels(table: MetricTable) -> list[dict[str, Any]]:
    """Title, metrics and kind of axis of each panel, as curves.png has them."""

    def is_seen(name: str) -> bool:
        column = table.column(name)
        return bool((np.abs(column[~np.isnan(column)]) > _ROUNDING).any())

    found = panel_metrics(table.names, is_seen)
    return [{"title": title, "metrics": metrics, "log": log} for title, metrics, log in found]
