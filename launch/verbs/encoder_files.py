"""Embedding models and rerankers as directories: where one is, which of the two it is, and loading it; and passages.

Both are what sentence-transformers saves and loads: a directory with modules.json, or for a reranker also any
sequence-classification model with one score.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

from actors.config import UserError
from actors.failure import reason_of
from actors.models.hub_cache import has_tokenizer, is_hub_id, local_directory
from actors.models.tokenizer import load_tokenizer
from algorithms.data.sources import read_rows
from algorithms.encoder.held_out import passage_of_row
from launch.models.tensors import check_whole
from launch.models.transformers_source import causal_architectures
from launch.models.values import architecture_of, scores_given
from launch.verbs.chat import model_directory

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder, SentenceTransformer

Model = TypeVar("Model", bound="SentenceTransformer | CrossEncoder")
EncoderForm = Literal["embedding", "reranker"]


def encoder_directory(model: str, field: str = "MODEL") -> Path:
    """The directory meant by `model`: the export of a run directory, the directory itself, or a hub id's local copy.

    Raises:
        UserError: with `field`, when there is none.
    """
    directory = Path(model)
    for candidate in (directory / "export", directory):
        if (candidate / "modules.json").is_file():  # before the hub: a directory that is here goes first
            return _whole(candidate, field)
    if is_hub_id(model):
        return _whole(Path(local_directory(model, field)), field)
    return _whole(model_directory(model, field), field)


def _whole(directory: Path, field: str) -> Path:
    """`directory`; raises UserError, before torch is imported, when what lies at its top is no whole model."""
    if not (directory / "config.json").exists():
        return directory  # its modules lie below, or read no transformer
    check_whole(directory, field)
    try:
        if (directory / "tokenizer.json").is_file() or not has_tokenizer(directory):
            load_tokenizer(str(directory))
    except UserError as error:
        raise UserError(*(problem.replace("model.path", field, 1) for problem in error.problems)) from None
    return directory


def encoder_kind(directory: Path, field: str = "MODEL") -> EncoderForm:
    """Whether a directory holds an embedding model or a reranker; reads only its JSON files.

    Raises:
        UserError: with `field`, when it holds neither: it does not say how it pools, or gives several scores.
    """
    kind = str(_json(directory / "config_sentence_transformers.json", field).get("model_type", "SentenceTransformer"))
    values = _json(directory / "config.json", field)
    architecture = architecture_of(values)
    if kind == "CrossEncoder":
        return "reranker"
    if (directory / "modules.json").is_file():
        if kind != "SentenceTransformer":
            raise UserError(
                f"{field}: must give one vector for a text, or one score for two, got {kind} in {directory}"
            )
        return "embedding"
    if architecture.endswith("ForSequenceClassification"):
        labels = scores_given(values)
        if labels != 1:
            raise UserError(f"{field}: must give one score, got {architecture} with {labels} in {directory}")
        return "reranker"
    if architecture in causal_architectures().get(str(values.get("model_type")), ()):
        raise UserError(
            f"{field}: must be an embedding model or a reranker, got {architecture}, which generates text (`tandem "
            f"chat {directory}`), in {directory}"
        )
    raise UserError(f"{field}: must say how it pools (modules.json), got {directory}")


def _json(path: Path, field: str) -> dict[str, object]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{field}: {path} must be JSON ({error})") from None
    return found if isinstance(found, dict) else {}


def load_embedding_model(directory: Path, field: str = "MODEL") -> "SentenceTransformer":
    """On a GPU when there is one. Raises UserError with `field`: a reranker, or a model that does not pool."""
    if encoder_kind(directory, field) == "reranker":
        raise UserError(f"{field}: must be an embedding model, which gives vectors, got a reranker in {directory}")
    _quiet()
    from sentence_transformers import SentenceTransformer

    model = _loaded(SentenceTransformer, directory, field)
    # A transformer alone gives a vector for each token, not one for the text.
    if len(model) == 1 and getattr(model[0], "module_output_name", None) == "token_embeddings":
        raise UserError(f"{field}: must say how it pools (modules.json has no Pooling), got {directory}")
    return model


def load_reranker(directory: Path, field: str) -> "CrossEncoder":
    """On a GPU when there is one. Raises UserError with `field`: an embedding model, or one with several scores."""
    if encoder_kind(directory, field) == "embedding":
        raise UserError(f"{field}: must be a reranker, which scores pairs, got an embedding model in {directory}")
    _quiet()
    from sentence_transformers import CrossEncoder

    model = _loaded(CrossEncoder, directory, field)
    if model.num_labels != 1:
        raise UserError(f"{field}: must give one score, got {model.num_labels} in {directory}")
    return model


def _loaded(loader: Callable[..., Model], directory: Path, field: str) -> Model:
    from actors.models.encoders import keep_texts  # imports torch

    try:
        model = loader(str(directory), trust_remote_code=False)
        keep_texts(model, str(directory), field)
        return model
    except UserError:
        raise
    except Exception as error:  # each module has its own way not to load
        raise UserError(f"{field}: cannot be loaded ({reason_of(error)}), got {directory}") from error


def _quiet() -> None:
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def read_passages(source: str, field: str = "--corpus") -> list[str]:
    """The passages of `source`: rows of text (or passage) and perhaps title, which is put before it, in any form that
    data may have (see read_rows); or a .txt file with one passage a line, where blank lines are skipped.

    Raises:
        UserError: with `field`: no such file, unreadable, without passages, or a row without text.
    """
    if not source.endswith(".txt"):
        rows = read_rows(source, split="train", arguments={}, limit=None, field=field)
        return [passage_of_row(row, number, field) for number, row in enumerate(rows, start=1)]
    try:
        # Without the mark that editors on Windows put first; by "\n" alone, as a passage may hold other separators.
        lines = Path(source).read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise UserError(f"{field}: cannot be read ({reason}), got {source}") from None
    if found := [line.strip() for line in lines if line.strip()]:
        return found
    raise UserError(f"{field}: must hold at least one passage, got none in {source}")


def say(line: str) -> None:
    """A line about progress, on standard error."""
    print(line, file=sys.stderr, flush=True)
