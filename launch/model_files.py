"""What a model directory says of itself, read without torch: its configuration, its weights' names, its tokenizer."""

import difflib
import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actors.config import UserError
from actors.tokenizer import load_tokenizer, tokenizer_for
from algorithms.config_encoder import EmbeddingConfig
from launch.config import RunConfig

if TYPE_CHECKING:
    from transformers.tokenization_utils_tokenizers import PreTrainedTokenizerFast

_POOLING_MODES = {
    "cls": ("cls", "cls_token"),
    "mean": ("mean", "mean_tokens"),
    "last": ("lasttoken",),
    "max": ("max", "max_tokens"),
}
"""Our name -> those of sentence-transformers, in the files that it writes and in older ones."""


def is_hub_id(path: str) -> bool:
    """`owner/name` on the hub, unless a local directory `owner` says that a path was meant."""
    if os.environ.get("HF_HUB_OFFLINE", "0").lower() not in ("", "0", "false", "off", "no"):
        return False
    return bool(re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", path)) and not Path(path).parent.exists()


def model_values(directory: Path, field: str = "model.path") -> dict[str, Any]:
    """The fields of config.json; raises UserError when this is no model directory."""
    if not (directory / "config.json").is_file():
        candidates = [str(path.parent) for path in directory.parent.glob("*/config.json")]
        near = difflib.get_close_matches(str(directory), candidates, 1)
        if (directory / "export/config.json").is_file():
            near = [f"{directory}/export"]
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise UserError(f"{field}: must be a model directory with a config.json{hint}, got {directory}")
    if not any(any(directory.glob(pattern)) for pattern in ("*.safetensors", "*.bin")):
        raise UserError(f"{field}: must hold weights (*.safetensors or *.bin), got {directory}")
    try:
        values = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{field}: {directory}/config.json cannot be read, {error}") from None
    return values


def check_reward_model(config: RunConfig, directory: Path, field: str) -> None:
    """Check that a directory holds a model with one score, and reads the policy's tokens.

    Raises:
        UserError: no model, no score head, several scores, or another tokenizer.
    """
    values = model_values(directory, field)
    architecture = next(iter(values.get("architectures") or []), "none")
    if not architecture.endswith("ForSequenceClassification"):
        raise UserError(
            f"{field}: must be a sequence-classification model, as the reward job exports it, got {architecture} in "
            f"{directory}"
        )
    try:
        shapes = weight_shapes(directory)
    except (OSError, ValueError) as error:
        raise UserError(f"{field}: weights in {directory} cannot be read, {error}") from None
    heads = [shape for name, shape in shapes.items() if name.rpartition(".")[0].endswith("score")]
    if not heads and any(directory.glob("*.safetensors")):
        raise UserError(f"{field}: must hold the weights of a score head (score.weight), got none in {directory}")
    if heads and heads[0][0] != 1:
        raise UserError(f"{field}: must give one score, got {heads[0][0]} classes in {directory}")
    check_vocabulary(config, directory, field)


def check_critic(config: RunConfig, directory: Path, field: str) -> None:
    """Check that a critic can start from a directory: a model of any kind that reads the policy's tokens."""
    model_values(directory, field)
    check_vocabulary(config, directory, field)


def check_encoder(config: RunConfig, values: dict[str, Any], directory: Path | None) -> None:
    """Check that a model can become the embedding model or reranker that the configuration asks for.

    Args:
        values: the fields of its config.json.
        directory: where it is; None for `model.init`.

    Raises:
        UserError: the directory does not say how it pools and neither does the configuration, or they contradict each
            other, it holds a model of the other kind or with several scores, or vectors are shorter than their cuts.
    """
    algorithm = config.algorithm
    if isinstance(algorithm, EmbeddingConfig):
        size = values.get("hidden_size")
        if directory and (directory / "modules.json").is_file():
            check_embedding_model(config, directory, "model.path")
            size = _check_modules(algorithm, size, directory)
        elif directory and algorithm.pooling is None:
            raise UserError(
                f"algorithm.pooling: must be cls, mean, last or max for a model that does not say how it pools (no "
                f"modules.json in {directory}), got nothing"
            )
        if size:
            require_size(algorithm, size)
        return
    # A configuration that names no classes has two.
    classes = len(values.get("id2label") or range(values.get("num_labels", 2)))
    if str(next(iter(values.get("architectures") or []), "")).endswith("ForSequenceClassification") and classes != 1:
        raise UserError(f"model.path: must give one score, got {classes} classes in {directory}")


def _check_modules(algorithm: EmbeddingConfig, size: int | None, directory: Path) -> int | None:
    """Compare pooling and normalisation with what a directory says.

    Returns the size of its vectors: `size`, that of its tokens' vectors, or None where other modules may change it.
    """
    file = directory / "modules.json"
    try:
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
    given = values.get("pooling_mode", [name for name in written if name != "include_prompt"])
    modes = [given] if isinstance(given, str) else given
    if algorithm.pooling and modes not in [[mode] for mode in _POOLING_MODES[algorithm.pooling]]:
        raise UserError(
            f"algorithm.pooling: must be left out for a model that says how it pools ({', '.join(modes)} in "
            f"{directory}), got {algorithm.pooling}"
        )
    return size if modules.keys() <= {"Transformer", "Pooling", "Normalize"} and len(modes) == 1 else None


def require_size(algorithm: EmbeddingConfig, size: int) -> None:
    """Raise UserError when embeddings of this size are too short for a task's cuts."""
    for name, task in algorithm.by_name.items():
        if task.matryoshka and max(task.matryoshka) > size:
            field = f"algorithm.tasks.{name}.matryoshka" if name else "algorithm.matryoshka"
            raise UserError(f"{field}: must not exceed the embedding's size ({size}), got {max(task.matryoshka)}")


def check_embedding_model(config: RunConfig, directory: Path, field: str) -> None:
    """Check that a directory holds an embedding model that says how it pools; raises UserError."""
    model_values(directory, field)
    if not (directory / "modules.json").is_file():
        raise UserError(f"{field}: must be an embedding model that says how it pools (modules.json), got {directory}")
    settings = directory / "config_sentence_transformers.json"
    kind = _json_of(settings, field).get("model_type") if settings.is_file() else None
    if kind not in (None, "SentenceTransformer"):
        what = {"CrossEncoder": "reranker", "SparseEncoder": "sparse one"}.get(kind, kind)
        raise UserError(f"{field}: must be an embedding model of dense vectors, got a {what} in {directory}")


def _json_of(file: Path, field: str) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{field}: {file} cannot be read, {error}") from None


def check_vocabulary(config: RunConfig, directory: Path, field: str) -> None:
    """Check that a model reads the policy's tokens; a policy that is not here is not looked at.

    Raises:
        UserError: it has another tokenizer, or one that cannot be read.
    """
    path = config.model.path
    if path is not None and not Path(path).exists():
        return
    try:
        own = load_tokenizer(str(directory))
    except UserError as error:
        raise UserError(*(problem.replace("model.path", field, 1) for problem in error.problems)) from None
    if vocabulary(own) != vocabulary(tokenizer_for(config.model)):
        raise UserError(
            f"{field}: must have the policy's tokenizer, as it reads the tokens of rollouts, got another one in "
            f"{directory}"
        )


def require_same_tokens(policy: str, other: str, field: str) -> None:
    """Raise UserError unless the models in two directories, or of two hub ids, have the same tokens."""
    if policy != other and vocabulary(load_tokenizer(policy)) != vocabulary(load_tokenizer(other)):
        raise UserError(
            f"{field}: must have the policy's tokenizer, as it reads the tokens of rollouts, got another one in {other}"
        )


def weight_shapes(directory: Path) -> dict[str, list[int]]:
    """Name -> shape of every tensor in a directory's safetensors files, read from their headers.

    A header is 8 bytes of little-endian length and that many bytes of JSON: name -> {dtype, shape, data_offsets}.

    Raises:
        ValueError: a file that has no such header.
    """
    shapes: dict[str, list[int]] = {}
    for file in directory.glob("*.safetensors"):
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if length > file.stat().st_size:
                raise ValueError(f"{file.name} is cut off or no safetensors file")
            header = json.loads(stream.read(length))
        shapes |= {name: tensor["shape"] for name, tensor in header.items() if name != "__metadata__"}
    return shapes


def vocabulary(tokenizer: "PreTrainedTokenizerFast") -> dict[str, int]:
    """Token -> id."""
    return tokenizer.get_vocab()
