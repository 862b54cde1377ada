"""Embedding models and rerankers: loaded with sentence-transformers, or built tiny from numbers; written with it too.

A directory that says how it pools (modules.json) is loaded as it is. Any other encoder or decoder gets the pooling that
the configuration names, and for a reranker a head with one score.
"""

import json
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from tokenizers.processors import TemplateProcessing
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from actors.config import EncoderHead, ModelConfig, UserError
from actors.failure import reason_of
from actors.files.readable import make_readable
from actors.files.stored import only_data
from actors.models.as_source import restore_settings
from actors.models.counted_loading import counted_loading
from actors.models.dividing import Divider, OnlySettings, loading
from actors.models.export import planned_files, save_settings, save_weights
from actors.models.hub_cache import local_directory
from actors.models.load import linear_in_float32
from actors.models.lora import Gather
from actors.models.precision import TORCH_DTYPES
from actors.models.tensor_files import Meta
from actors.models.tokenizer_files import restore_tokenizer
from actors.models.unfit import unlisted

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder, SentenceTransformer

    Encoder = SentenceTransformer | CrossEncoder

_NO_CODE = {"trust_remote_code": False}
_POOLING = {"cls": "cls", "mean": "mean", "last": "lasttoken", "max": "max"}
"""Our name -> that of sentence-transformers."""
_CHANGED = "_separates_pairs_by_tandem"
"""Attribute of a tokenizer that encodes otherwise than the files that it was loaded from."""
_TURNED = "_is_padded_on_the_right_by_tandem"
"""Attribute of a tokenizer that pads on the other side than those files say."""


def load_encoder(model: ModelConfig, head: EncoderHead, directory: str, divider: Divider | None = None) -> Any:
    """A SentenceTransformer, or for a reranker a CrossEncoder with one score, on CPU.

    `directory` holds config.json and the tokenizer (and the weights, unless `model.init` is given). A `divider` divides
    the transformer's weights over the ranks as they are read; those of `model.init`, of which each rank writes itself
    files first, are small.

    Raises:
        UserError: a directory without pooling information where the configuration gives none, with another one than
            the configuration gives, of the other kind, or a reranker without exactly one score.
    """
    if model.init is None:
        return _load(model, head, local_directory(directory), divider)
    with tempfile.TemporaryDirectory() as scratch:  # sentence-transformers loads from directories only
        shutil.copytree(directory, scratch, dirs_exist_ok=True)
        # The weights depend on their own seed, and nothing drawn later on them.
        with torch.random.fork_rng():
            torch.manual_seed(model.init.seed)
            config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
            body = AutoModel.from_config(config, trust_remote_code=False)
        # save_pretrained would write on rank 0 only.
        save_file(body.state_dict(), Path(scratch) / "model.safetensors", metadata={"format": "pt"})
        return _load(model, head, scratch, divider)


def _load(model: ModelConfig, head: EncoderHead, directory: str, divider: Divider | None) -> Any:
    _require_kind(head, directory)
    try:
        with only_data(directory), loading(divider), counted_loading():
            loaded: Any = (
                _load_reranker(model, directory) if head.kind == "reranker" else _load_embedding(model, head, directory)
            )
    except (ImportError, OSError) as error:  # of what models of more than text are read with
        raise UserError(f"model.path: cannot be loaded to read texts, {reason_of(error)}, got {directory}") from error
    if loaded.transformers_model is None:
        raise UserError(f"model.path: must have a transformer, which this job trains, got none in {directory}")
    pad_behind(loaded)
    _limit_length(loaded, head)
    loaded[0].unpad_inputs = False  # the ranks cut padded inputs into micro-batches
    pooler = getattr(loaded.transformers_model, "pooler", None)
    if head.kind == "embedding" and isinstance(pooler, torch.nn.Module):
        pooler.requires_grad_(False)  # never read: weight decay would move it where ranks share gradients
    if model.dtype != "fp32":
        _read_out_in_float32(loaded)
    loaded.transformers_model.config.use_cache = False
    if model.gradient_checkpointing:
        # The reentrant kind needs an input that has a gradient: below adapters, none has.
        loaded.transformers_model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    # Loaded models are in evaluation mode, in which dropout and gradient checkpointing do nothing.
    return loaded.train()


def _require_kind(head: EncoderHead, directory: str) -> None:
    """Raise UserError unless transformers has a model of this kind for the job."""
    if not (Path(directory) / "config.json").is_file():
        return
    task, loader = "", AutoModel
    if head.kind == "reranker":
        task, loader = "SequenceClassification", AutoModelForSequenceClassification
    config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
    classes: Any = loader._model_mapping
    if type(config) not in classes:
        raise unlisted(config.model_type, task or "texts")


def pad_behind(loaded: "Encoder") -> None:
    """Let texts be padded at their ends: no token of a causal model sees that, and none is counted from another place.

    At their beginnings, recurrent state would run through it, and most models would count it.
    """
    tokenizer: Any = loaded.tokenizer
    if tokenizer.padding_side == "left":
        tokenizer.padding_side = "right"
        setattr(tokenizer, _TURNED, True)


def _read_out_in_float32(loaded: Any) -> None:
    """Compute what is left after the transformer's layers in float32: bf16 would make different scores, or vectors,
    equal. A dense layer behind the pooling stays in the model's dtype, and what comes before it."""
    for layer in loaded.transformers_model.modules():
        if isinstance(layer, torch.nn.Linear) and layer.out_features == 1:
            layer.forward = partial(linear_in_float32, layer)  # type: ignore[method-assign]
    behind = [parameter for module in list(loaded)[1:] for parameter in module.parameters()]
    if not behind:
        loaded[0].register_forward_hook(_tokens_in_float32)


def _tokens_in_float32(
    module: torch.nn.Module, inputs: object, features: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    if "token_embeddings" in features:
        features["token_embeddings"] = features["token_embeddings"].float()
    return features


def _limit_length(loaded: Any, head: EncoderHead) -> None:
    given = getattr(loaded.transformers_model.config, "max_position_embeddings", None)
    positions = given if isinstance(given, int) and given > 0 else None  # -1: without end
    for name, module in loaded.transformers_model.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            positions = module.num_embeddings - module.padding_idx - 1  # RoBERTa counts from behind the padding's
    if positions and head.max_tokens and head.max_tokens > positions:
        raise UserError(
            f"algorithm.max_tokens: must not exceed the positions that the model has ({positions}), "
            f"got {head.max_tokens}"
        )
    limits = [limit for limit in (head.max_tokens or loaded.max_seq_length, positions) if limit]
    if limits:
        loaded.max_seq_length = min(limits)


def _load_embedding(model: ModelConfig, head: EncoderHead, directory: str) -> "SentenceTransformer":
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    if _saved_as(directory) == "CrossEncoder":
        raise UserError(f"model.path: must be an embedding model or a plain one, got a reranker in {directory}")
    if _describes_itself(directory):
        loaded = SentenceTransformer(directory, device="cpu", model_kwargs=_options(model), trust_remote_code=False)
        keep_texts(loaded, directory, "model.path")
        _require_same_head(loaded, head, directory)
        return loaded
    if head.pooling is None:
        raise UserError(
            f"algorithm.pooling: must be cls, mean, last or max for a model that does not say how it pools "
            f"(no modules.json), got none for {directory}"
        )
    transformer = Transformer(
        directory,
        model_kwargs=_options(model) | _NO_CODE,
        processor_kwargs=_NO_CODE,
        config_kwargs=_NO_CODE,
        # Texts stay texts, also where the tokenizer has a chat template.
        modality_config={"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
        module_output_name="token_embeddings",
    )
    _require_padding(transformer.tokenizer, directory)
    pooling = Pooling(transformer.get_embedding_dimension(), _POOLING[head.pooling])  # type: ignore[arg-type]
    modules: list[torch.nn.Module] = [transformer, pooling]
    if head.normalize is not False:
        modules.append(Normalize())
    return SentenceTransformer(modules=modules, device="cpu", similarity_fn_name="cosine")


def _load_reranker(model: ModelConfig, directory: str) -> "CrossEncoder":
    from sentence_transformers import CrossEncoder
    from sentence_transformers.sentence_transformer.modules import Transformer

    if _saved_as(directory) == "CrossEncoder":
        loaded = CrossEncoder(directory, device="cpu", model_kwargs=_options(model), trust_remote_code=False)
        keep_texts(loaded, directory, "model.path")
    else:
        settings = AutoConfig.from_pretrained(directory, trust_remote_code=False)
        classifies = str((settings.architectures or [""])[0]).endswith("ForSequenceClassification")
        if classifies and settings.num_labels != 1:
            raise UserError(f"model.path: must give one score, got {settings.num_labels} classes in {directory}")
        transformer = Transformer(
            directory,
            transformer_task="sequence-classification",
            model_kwargs=_options(model) | _NO_CODE,
            processor_kwargs=_NO_CODE,
            config_kwargs={"num_labels": 1} | _NO_CODE,
            # Two texts stay two texts, also where the tokenizer has a chat template, which knows no such roles.
            modality_config={"text": {"method": "forward", "method_output_name": "logits"}},
            module_output_name="scores",
        )
        tokenizer: Any = transformer.tokenizer
        _require_padding(tokenizer, directory)
        transformer.model.config.pad_token_id = tokenizer.pad_token_id
        _separate_pairs(tokenizer)
        loaded = CrossEncoder(modules=[transformer], device="cpu")
    if loaded.num_labels != 1:
        raise UserError(f"model.path: must be a reranker with one score, got {loaded.num_labels} in {directory}")
    return loaded


def keep_texts(loaded: "Encoder", directory: str, field: str) -> None:
    """Let a sentence-transformers model take texts as they are, also where its tokenizer has a chat template.

    Raises UserError for one that is saved to write them by its template: that is a program, and would run without
    limits.
    """
    saved = [json.loads(file.read_text(encoding="utf-8")) for file in Path(directory).rglob("sentence_*_config.json")]
    told = any(isinstance(values, dict) and "message" in (values.get("modality_config") or {}) for values in saved)
    for module in loaded.modules():
        modalities = getattr(module, "modality_config", None)
        if isinstance(modalities, dict) and modalities.pop("message", None) and (told or "text" not in modalities):
            raise UserError(
                f"{field}: must take texts as they are, got a model that writes them by its chat template (message in "
                f"modality_config of its sentence-transformers settings) in {directory}"
            )


def _options(model: ModelConfig) -> dict[str, object]:
    options: dict[str, object] = {"dtype": TORCH_DTYPES[model.dtype]}
    flash = {"attn_implementation": "flash_attention_2"} if model.attention == "flash_attention_2" else {}
    return options | flash


def _describes_itself(directory: str) -> bool:
    return (Path(directory) / "modules.json").is_file()


def _saved_as(directory: str) -> str | None:
    """Class that a sentence-transformers directory says it holds."""
    path = Path(directory) / "config_sentence_transformers.json"
    return json.loads(path.read_text(encoding="utf-8")).get("model_type") if path.is_file() else None


def _require_same_head(loaded: "Encoder", head: EncoderHead, directory: str) -> None:
    kinds = [type(module).__name__ for module in loaded]
    pooling = next((module.pooling_mode for module in loaded if type(module).__name__ == "Pooling"), None)
    if head.pooling is not None and _POOLING[head.pooling] != pooling:
        raise UserError(
            f"algorithm.pooling: must be left out for a model that says how it pools ({pooling} in {directory}), "
            f"got {head.pooling}"
        )
    if head.normalize is not None and head.normalize != ("Normalize" in kinds):
        raise UserError(
            f"algorithm.normalize: must be left out for a model that says whether it normalises "
            f"({str('Normalize' in kinds).lower()} in {directory}), got {str(head.normalize).lower()}"
        )


def _require_padding(tokenizer: Any, directory: str) -> None:
    if tokenizer.pad_token_id is None:
        raise UserError(f"model.path: must have a tokenizer with a padding token, got none in {directory}")


def _separate_pairs(tokenizer: Any) -> None:
    """Let a tokenizer that writes two texts without a border between them (those of most decoders do) close each with
    its end-of-sequence token. It is saved with the tokenizer, so that the border is there in use as well."""
    two = tokenizer("a", "b", add_special_tokens=True).input_ids
    if two != [
        *tokenizer("a", add_special_tokens=False).input_ids,
        *tokenizer("b", add_special_tokens=False).input_ids,
    ]:
        return
    end = tokenizer.eos_token
    if end is None:
        raise UserError("model.path: must have a tokenizer that separates two texts, or an end-of-sequence token")
    setattr(tokenizer, _CHANGED, True)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(  # type: ignore[assignment]
        single="$A",
        pair=f"$A {end} $B:1 {end}:1",
        special_tokens=[(end, tokenizer.convert_tokens_to_ids(end))],
    )


def load_shell(model: ModelConfig, head: EncoderHead, directory: str) -> Any:
    """What `load_encoder` gives, with a transformer without values: to be written."""
    return load_encoder(model, head, directory, OnlySettings())


def other_parameters(model: Any, gather: Gather) -> dict[str, torch.Tensor]:
    """Whole parameters of all modules but the transformer, on CPU, by their names; collective."""
    found = {}
    for place, module in list(model.named_children())[1:]:
        for name, parameter in module.named_parameters():
            with gather([parameter]):
                found[f"{place}.{name}"] = parameter.detach().cpu().clone()
    return found


def write_encoder(
    model: Any,
    metas: Sequence[Meta],
    tensors: Iterable[tuple[str, torch.Tensor]] | None,
    others: dict[str, torch.Tensor],
    head: EncoderHead,
    directory: Path,
) -> None:
    """Write a directory that `SentenceTransformer(path)` or `CrossEncoder(path)` loads: with the head's instructions,
    and a card of its own.

    Args:
        model: `load_encoder`'s, of which the transformer may be without values.
        metas: of all weights of the transformer.
        tensors: those weights, one at a time; see `export_model`. None: all else is written, and read back.
        others: whole parameters of all other modules, by their names in the model.
        head: with the instructions.
        directory: to be written to.
    """
    model.prompts.update(head.prompts)
    if head.kind == "embedding":
        model.similarity_fn_name = "cosine"  # what training and evaluation compare by
    elif "query" in head.prompts:
        model.default_prompt_name = "query"
    model[0].unpad_inputs = None
    model._model_card_text = None  # the base model's, with its figures
    body = model.transformers_model
    if tensors is not None:
        _, unexpected = model.load_state_dict(others, strict=False)
        # By identity: a module may hold the transformer under any name.
        inside = {id(parameter) for parameter in body.parameters()}
        rest = {name for name, parameter in model.named_parameters() if id(parameter) not in inside}
        assert not unexpected and rest == others.keys(), (unexpected, rest ^ others.keys())
    _write_one_by_one(body, metas, tensors)
    model.model_card_data.local_files_only = True
    model.save(str(directory))
    source = body.config.name_or_path
    restore_settings(directory, source, scores=head.kind == "reranker")
    changed, turned = (getattr(model.tokenizer, name, False) for name in (_CHANGED, _TURNED))
    for file in list(directory.rglob("tokenizer_config.json")):
        restore_tokenizer(file.parent, source, changed=changed, turned=turned)
    make_readable(directory)
    if tensors is None:
        # What cannot be read back is noticed before training, not by the user.
        AutoTokenizer.from_pretrained(directory, trust_remote_code=False)


def _write_one_by_one(body: Any, metas: Sequence[Meta], tensors: Iterable[tuple[str, torch.Tensor]] | None) -> None:
    """Let a transformer write these weights wherever sentence-transformers has it written."""

    def save(path: str, **_: object) -> None:
        del body.save_pretrained
        save_settings(body, Path(path))
        if tensors is None:
            planned_files(body, metas)
        else:
            save_weights(body, metas, tensors, Path(path))

    body.save_pretrained = save


def load_guide(path: str, device: torch.device) -> Any:
    """A frozen embedding model. Raises UserError when the directory holds none."""
    from sentence_transformers import SentenceTransformer

    directory = local_directory(path, "algorithm.guide")
    if not _describes_itself(directory):
        raise UserError(f"algorithm.guide: must be an embedding model (with modules.json), got {path}")
    with only_data(directory):
        loaded = SentenceTransformer(directory, device=str(device), trust_remote_code=False)
        keep_texts(loaded, directory, "algorithm.guide")
        pad_behind(loaded)
        return loaded.requires_grad_(False).eval()
