"""The model card of an exported embedding model or reranker: how it was trained, and what held-out data says of it."""

import json

from launch.config import RunConfig
from launch.kinds.encoder import EncoderKind


def write_model_card(kind: EncoderKind, step: int) -> None:
    """Add training and evaluation to the README.md that sentence-transformers has written into the export.

    Args:
        step: after which the exported model was saved.
    """
    config = kind.config
    path = config.directory / "export" / "README.md"
    card = path.read_text(encoding="utf-8") if path.is_file() else ""
    sections = [_training(kind, step)]
    if metrics := _evaluation(config, step):
        rows = "".join(f"| {name} | {value:.4f} |\n" for name, value in metrics.items())
        sections.append(f"## Evaluation on held-out data\n\n| metric | value |\n|---|---|\n{rows}")
    path.write_text("\n".join([card.rstrip(), "", *sections]), encoding="utf-8")


def _training(kind: EncoderKind, step: int) -> str:
    config, algorithm, optimizer = kind.config, kind.algorithm, kind.config.policy.optimizer
    facts = {
        "Job": algorithm.name,
        "Base model": _base(config) or f"none (a new {config.model.init and config.model.init.family} model)",
        "Updates": f"{step} of {algorithm.samples_per_update} rows",
        "Optimizer": f"{optimizer.name}, learning rate {optimizer.lr:g}, {optimizer.schedule}",
        "Precision": config.model.dtype,
        **({"Weights": f"moving average, decay {config.policy.ema_decay:g}"} if config.policy.ema_decay else {}),
        **kind.card_facts(),
    }
    return "## Training with Tandem\n\n" + "".join(f"- **{name}:** {value}\n" for name, value in facts.items())


def _base(config: RunConfig) -> str | None:
    revision = config.model.revision
    return f"{config.model.path} at {revision}" if revision else config.model.path


def _evaluation(config: RunConfig, step: int) -> dict[str, float]:
    """The evaluation that metrics.jsonl has of this step; values that are not finite are null there."""
    with (config.directory / "metrics.jsonl").open(encoding="utf-8") as file:
        rows = [row for row in map(json.loads, file) if row["step"] == step]
    return {
        name.removeprefix("eval/"): value
        for row in rows
        for name, value in row.items()
        if name.startswith("eval/") and value is not None
    }
