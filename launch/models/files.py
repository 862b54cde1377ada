"""What a model directory says of itself, read without torch: its configuration, its weights' names, its tokenizer."""

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from actors.config import UserError
from actors.failure import reason_of
from actors.models.family import Family
from actors.models.hub_cache import cached_snapshot, has_tokenizer, is_complete, is_hub_id
from actors.models.safetensors_header import StoredTensor, parse_json
from actors.models.skeleton import hf_config, vocabulary_size
from actors.models.tokenizer import load_tokenizer, tokenizer_for
from launch.config import RunConfig
from launch.kinds.table import job_kind
from launch.models.class_fields import filled
from launch.models.mixtures import check_mixture
from launch.models.tensors import check_patterns, check_targets, check_tensors, trained_parameters
from launch.models.trained_as import causal_family, scoring_family
from launch.models.values import (
    architecture_of,
    check_architecture,
    config_values,
    model_values,
)
from launch.models.vllm_source import serves_adapters
from launch.sizes.estimate import counted_parameters

if TYPE_CHECKING:
    from transformers.tokenization_utils_tokenizers import PreTrainedTokenizerFast


@dataclass(frozen=True, slots=True)
class Policy:
    """What is known of the policy's model without loading it."""

    values: Mapping[str, object]
    """The fields of its config.json."""
    fields: Mapping[str, object]
    """Those of its text part, with what its class fills in where that is known."""
    directory: Path | None = None
    """Where all its files are; None for `model.init`, and where the hub's cache does not hold all."""
    parameters: int | None = None
    tokenizer: bool = True
    """Whether its tokenizer can be read without the hub."""
    family: Family | None = None
    """How it is trained, where that is known: of models that are read, not of `model.init` or encoders."""


def read_policy(config: RunConfig) -> Policy | None:
    """Read the model that is trained, as far as it is on this machine; None where nothing of it is.

    Raises:
        UserError: it is no model, damaged, or none that the job can train.
    """
    model, role = config.model, job_kind(config).role
    if model.init is not None:
        values = hf_config(model.init, model.dtype, vocabulary_size(model.init), 0, 0)
        return Policy(values, values, parameters=counted_parameters(values))
    assert model.path is not None, "ModelConfig guarantees exactly one of path and init"
    if model.revision and os.path.exists(model.path):
        raise UserError(f"model.revision: must be left out for a local directory ({model.path}), got {model.revision}")
    directory = Path(model.path)
    if is_hub_id(model.path):
        directory = cached_snapshot(model.path, model.revision)
        if directory is None:
            return None
        if not is_complete(directory):
            values = config_values(directory, "model.path")
            check_architecture(values, role, directory, "model.path", config.algorithm.name)
            family = _family_of(config, values, directory)
            parameters = counted_parameters(values) or indexed_parameters(values, directory)
            fields = _fields(config, values)
            return Policy(values, fields, None, parameters, has_tokenizer(directory), family)
    values = model_values(directory)
    check_architecture(values, role, directory, "model.path", config.algorithm.name)
    family = _family_of(config, values, directory)
    stored = check_tensors(values, directory, "model.path", role)
    if role == "scores":
        _require_one_score(stored or {}, directory, "model.path")
    parameters = stored_parameters(stored) or counted_parameters(values)
    return Policy(values, _fields(config, values), directory, parameters, family=family)


def _fields(config: RunConfig, values: Mapping[str, object]) -> Mapping[str, object]:
    return values if job_kind(config).role == "encoder" else filled(values)


def _family_of(config: RunConfig, values: Mapping[str, object], directory: Path) -> Family | None:
    """How the policy's model is trained; raises UserError when it, or the critic that starts from it, cannot be."""
    role = job_kind(config).role
    if role == "encoder":
        return None
    if role == "scores":
        return scoring_family(values, config.model, directory, "model.path")
    if config.critic and config.critic.path is None and len(config.reward.models) != 1:
        scoring_family(values, config.model, directory, "critic.path")
    holding = ["policy", *["reference"] * config.reference_group]
    return causal_family(values, config.model, [name for name in holding if getattr(config, name).zero_stage == 3])


def stored_parameters(stored: Mapping[str, StoredTensor] | None) -> int | None:
    """Parameters in safetensors files; None where there are no such files."""
    return sum(math.prod(tensor.shape) for tensor in stored.values()) if stored else None


def indexed_parameters(values: Mapping[str, object], directory: Path) -> int | None:
    """Parameters by the index of weights that need not be there; None without one, or with one that does not say."""
    try:
        content = (directory / "model.safetensors.index.json").read_bytes()
        total = parse_json(content, "the index")["metadata"]["total_size"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    dtype = str(values.get("dtype") or values.get("torch_dtype") or "float32")
    return int(total) // (4 if dtype.endswith("32") else 2) if isinstance(total, int | float) else None


def check_names(config: RunConfig, policy: Policy) -> None:
    """Check that the parameters and layers that the configuration names are some of the model's, where they are known.

    Raises:
        UserError: a pattern of model.freeze or a target of model.lora that matches nothing; adapters for vLLM where it
            serves none for this kind of model; see `check_mixture`.
    """
    kind = job_kind(config)
    check_mixture(config, policy.values, sampled=kind.samples_responses)
    if kind.samples_responses:
        _check_served(config, policy)
    names = trained_parameters(policy.values, kind.role, rerank=kind.reranks)
    if names is None:
        return
    tied = bool(policy.values.get("tie_word_embeddings"))  # one tensor by two names: to freeze one of them freezes both
    check_patterns(config.model.freeze, names, "model.freeze", tied=tied)
    if config.model.lora:
        check_targets(config.model.lora, names, "model.lora.targets")
    if config.critic and config.critic.lora and config.critic.path is None and len(config.reward.models) != 1:
        check_targets(config.critic.lora, names, "critic.lora.targets")


def _check_served(config: RunConfig, policy: Policy) -> None:
    """Raise UserError when the engines are to compute with adapters and the installed vLLM knows none for the model."""
    sends = config.model.lora and config.rollout.transfer.lora == "adapter"
    named = policy.values.get("architectures")
    for architecture in named if sends and isinstance(named, list) else []:
        if serves_adapters(architecture) is False:
            raise UserError(
                f"rollout.transfer.lora: must be merged for {architecture}, for which vLLM serves no adapters (in bf16 "
                f"with max_merge_error), got adapter"
            )


def check_tokenizer(config: RunConfig, policy: Policy) -> None:
    """Check that the policy's tokenizer can be read, and gives no tokens that the model does not know.

    Raises:
        UserError: without tokens, or with more than the model's embedding has rows; a string of rollout.stop that no
            text contains.
    """
    if config.rollout.stop:
        _check_stop_strings(config.rollout.stop, tokenizer_for(config.model))
    if config.model.init is None and policy.tokenizer:
        _check_ids(vocabulary(tokenizer_for(config.model)), policy.values, config.model.path, "model.path")


def _check_ids(tokens: Mapping[str, int], values: Mapping[str, object], path: object, field: str) -> None:
    """Raise UserError unless there are tokens, and a model with these fields of config.json has a row for each."""
    if not tokens:
        raise UserError(f"{field}: must have a tokenizer with at least one token, got none in {path}")
    rows = values.get("vocab_size")
    if not isinstance(rows, int):
        return
    # Placeholders of images and sound stand behind the vocabulary of models that read only text. More rows than tokens
    # are usual: models are padded.
    held_by_others = re.compile("image|audio|video|vision")
    beyond = [(index, token) for token, index in tokens.items() if index >= rows and not held_by_others.search(token)]
    if beyond:
        last, token = max(beyond)
        raise UserError(
            f"{field}: must have a tokenizer whose tokens the model's embedding holds (vocab_size {rows}, ids up to "
            f"{rows - 1}), got {len(beyond)} beyond, up to id {last} ({token!a}), in {path}"
        )


def _check_stop_strings(stop: list[str], tokenizer: "PreTrainedTokenizerFast") -> None:
    """The engine looks for them in text without special tokens."""
    special = {str(token): index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    for place, string in enumerate(stop):
        if token := next((each for each in special if each in string), None):
            raise UserError(
                f"rollout.stop.{place}: must hold no special token, as the text that is searched has none "
                f"(rollout.stop_token_ids=[{special[token]}] stops at it, the end-of-sequence token always does), "
                f"got {string!r}"
            )


def template_fault(tokenizer: "PreTrainedTokenizerFast") -> str | None:
    """What is wrong with a chat template that can render nothing; None where it can, refuses, or is not there."""
    from jinja2 import TemplateError, TemplateSyntaxError

    if not tokenizer.chat_template:
        return None
    from algorithms.data.rendering import run_template

    try:
        run_template(tokenizer, [{"role": "user", "content": "a"}], tokenize=False, add_generation_prompt=True)
    except TemplateSyntaxError as error:
        return f"line {error.lineno}: {reason_of(error)}"
    except TemplateError:  # it may want another conversation: the rows show it
        return None
    except Exception as error:  # whatever its expressions can raise
        complaint = reason_of(error)
        return complaint if isinstance(error, TimeoutError | MemoryError) else f"{type(error).__name__}: {complaint}"
    return None


def check_reward_model(config: RunConfig, directory: Path, field: str) -> None:
    """Check that a directory holds a model with one score, and reads the policy's tokens.

    Raises:
        UserError: no model, no score head, several scores, or another tokenizer.
    """
    values = model_values(directory, field)
    architecture = architecture_of(values) or "none"
    if not architecture.endswith("ForSequenceClassification"):
        raise UserError(
            f"{field}: must be a sequence-classification model, as the reward job exports it, got {architecture} in "
            f"{directory}"
        )
    check_architecture(values, "scores", directory, field, "a reward model")
    scoring_family(values, config.model, directory, field)
    stored = check_tensors(values, directory, field, "scores") or {}
    if not _require_one_score(stored, directory, field) and stored:
        raise UserError(f"{field}: must hold the weights of a score head (score.weight), got none in {directory}")
    check_vocabulary(config, directory, field, values)


def _require_one_score(stored: Mapping[str, StoredTensor], directory: Path, field: str) -> bool:
    """Whether there is a trained score head; raises UserError for one with several scores."""
    # score.weight [scores, hidden], as transformers calls a classifier's head on a decoder.
    heads = [tensor.shape for name, tensor in stored.items() if name.rpartition(".")[0].endswith("score")]
    if heads and heads[0][:1] != (1,):
        raise UserError(f"{field}: must give one score, got {heads[0][0]} classes in {directory}")
    return bool(heads)


def check_critic(config: RunConfig, directory: Path, field: str) -> None:
    """Check that a critic can start from a directory: a model of any kind that reads the policy's tokens."""
    values = model_values(directory, field)
    check_architecture(values, "scores", directory, field, "a critic")
    scoring_family(values, config.model, directory, field)
    _require_one_score(check_tensors(values, directory, field, "scores") or {}, directory, field)
    if config.critic and config.critic.lora and (names := trained_parameters(values, "scores")):
        check_targets(config.critic.lora, names, "critic.lora.targets")
    check_vocabulary(config, directory, field, values)


def check_vocabulary(config: RunConfig, directory: Path, field: str, values: Mapping[str, object]) -> None:
    """Check that a model with these fields of config.json reads the policy's tokens; a policy that is not here is not
    looked at.

    Raises:
        UserError: it has another tokenizer, or one that cannot be read, or fewer embeddings than the tokenizer tokens.
    """
    path = config.model.path
    if path is not None and not os.path.exists(path):
        snapshot = cached_snapshot(path, config.model.revision)
        if snapshot is None or not has_tokenizer(snapshot):
            return
    try:
        own = load_tokenizer(str(directory))
    except UserError as error:
        # load_tokenizer knows no other field.
        raise UserError(*(problem.replace("model.path", field, 1) for problem in error.problems)) from None
    if vocabulary(own) != vocabulary(tokenizer_for(config.model)):
        raise UserError(
            f"{field}: must have the policy's tokenizer, as it reads the tokens of rollouts, got another one in "
            f"{directory}"
        )
    _check_ids(vocabulary(own), values, directory, field)


def require_same_tokens(policy: str, other: str, field: str) -> None:
    """Raise UserError unless the models in two directories, or of two hub ids, have the same tokens."""
    if policy != other and vocabulary(load_tokenizer(policy)) != vocabulary(load_tokenizer(other)):
        raise UserError(
            f"{field}: must have the policy's tokenizer, as it reads the tokens of rollouts, got another one in {other}"
        )


def vocabulary(tokenizer: "PreTrainedTokenizerFast") -> dict[str, int]:
    """Token -> id."""
    return tokenizer.get_vocab()
