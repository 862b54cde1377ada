"""What the directory of an embedding model or reranker says of itself, read without torch: pooling, vectors, scores."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from actors.config import UserError
from actors.models.unfit import unlisted
from algorithms.config_encoder import EmbeddingConfig
from launch.config import RunConfig
from launch.kinds.embedding import EmbeddingKind
from launch.models.model_classes import is_listed
from launch.models.tensors import check_tensors
from launch.models.values import architecture_of, model_values, scores_given

_POOLING_MODES = {
    "cls": ("cls", "cls_token"),
    "mean": ("mean", "mean_tokens"),
    "last": ("lasttoken",),
    "max": ("max", "max_tokens"),
}
"""Our name -> those of sentence-transformers, in the files that it writes and in older ones."""


def check_embedding_policy(kind: EmbeddingKind, values: Mapping[str, object], directory: Path | None) -> None:
    """Check that a model can become the embedding model that the configuration asks for.

    Args:
        values: the fields of its config.json.
        directory: where it is; None for `model.init`.

    Raises:
        UserError: the directory does not say how it pools and neither does the configuration, or they contradict each
            other, it holds a model of the other kind, or vectors are shorter than their cuts.
    """
    algorithm, hidden = kind.algorithm, values.get("hidden_size")
    size = hidden if isinstance(hidden, int) else None
    if directory and (directory / "modules.json").is_file():
        check_embedding_model(kind.config, directory, "model.path")
        size = _check_modules(algorithm, size, directory)
    elif directory and algorithm.pooling is None:
        raise UserError(
            f"algorithm.pooling: must be cls, mean, last or max for a model that does not say how it pools (no "
            f"modules.json in {directory}), got nothing"
        )
    if size:
        kind.check_size(size)


def check_reranker_policy(values: Mapping[str, object], directory: Path | None) -> None:
    """Raise UserError for a model that gives several scores, which no reranker does, or of a kind without any."""
    kind = str(values["model_type"])
    if is_listed(kind, "SequenceClassification") is False:
        raise unlisted(kind, "SequenceClassification")
    # A model without a head gets one of its own; a head that is there is kept.
    classes = scores_given(values)
    if architecture_of(values).endswith("ForSequenceClassification") and classes != 1:
        raise UserError(f"model.path: must give one score, got {classes} classes in {directory}")


def _check_modules(algorithm: EmbeddingConfig, size: int | None, directory: Path) -> int | None:
    """Compare pooling and normalisation with what a directory says.

    Returns the size of its vectors: `size`, that of its tokens' vectors, or None where other modules may change it.
    """
    file = directory / "modules.json"
    try:
        # By the last word alone: the package before it differs between versions.
        modules = {item["type"].rpartition(".")[2]: item["path"] for item in _json_of(file, "model.path")}
    except (KeyError, TypeError):
        raise UserError(f"model.path: {file} must list modules with type and path, got something else") from None
    normalizes = "Normalize" in modules
    if algorithm.normalize is not None and algorithm.normalize != normalizes:
        raise UserError(
            f"algorithm.normalize: must be left out for a model that says whether it normalises "
            f"({str(normalizes).lower()} in {directory}), got {str(algorithm.normalize).lower()}"
        )
    if "Pooling" not in modules:
        return None
    values = _json_of(directory / modules["Pooling"] / "config.json", "model.path")
    written = [name.removeprefix("pooling_mode_") for name, on in values.items() if on is True]
    # Older files have a switch for each mode; include_prompt is a switch, and no mode.
    given = values.get("pooling_mode", [name for name in written if name != "include_prompt"])
    modes = [given] if isinstance(given, str) else given
    if algorithm.pooling and modes not in [[mode] for mode in _POOLING_MODES[algorithm.pooling]]:
        raise UserError(
            f"algorithm.pooling: must be left out for a model that says how it pools ({', '.join(modes)} in "
            f"{directory}), got {algorithm.pooling}"
        )
    # Several modes stand side by side, in vectors as many times as long.
    return size if modules.keys() <= {"Transformer", "Pooling", "Normalize"} and len(modes) == 1 else None


def check_embedding_model(config: RunConfig, directory: Path, field: str) -> None:
    """Check that a directory holds an embedding model that says how it pools; raises UserError."""
    values = model_values(directory, field)
    if not (directory / "modules.json").is_file():
        raise UserError(f"{field}: must be an embedding model that says how it pools (modules.json), got {directory}")
    settings = directory / "config_sentence_transformers.json"
    kind = _json_of(settings, field).get("model_type") if settings.is_file() else None
    if kind not in (None, "SentenceTransformer"):  # older versions do not write it
        what = {"CrossEncoder": "reranker", "SparseEncoder": "sparse one"}.get(kind, kind)
        raise UserError(f"{field}: must be an embedding model of dense vectors, got a {what} in {directory}")
    check_tensors(values, directory, field, "encoder")


def _json_of(file: Path, field: str) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{field}: {file} cannot be read, {error}") from None
