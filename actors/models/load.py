"""Causal language models: built tiny from numbers or loaded from a directory, and wrapped to yield token logprobs."""

from typing import Any

import torch
import torch.distributed as dist
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.auto_factory import _BaseAutoModelClass
from transformers.utils.import_utils import is_flash_attn_2_available

from actors.config import ModelConfig, UserError
from actors.files.stored import only_data
from actors.models.attention import PACKED_ATTENTION, register_packed_attention
from actors.models.balance import Balance
from actors.models.body import Body, body_of
from actors.models.class_traits import family_of_class, family_of_model
from actors.models.counted_loading import counted_loading
from actors.models.dividing import Divider, drawing, loading
from actors.models.experts import experts_in_order, route_in_float32
from actors.models.family import Family
from actors.models.hub_cache import local_directory
from actors.models.logprobs import LogprobHead
from actors.models.lora import quantization_config
from actors.models.mixture_limits import refuse_divided
from actors.models.packed import PackedBatch
from actors.models.precision import TORCH_DTYPES
from actors.models.quiet import quiet_config, quiet_routers
from actors.models.rope import fix_rope, refuse_unknown_ropes
from actors.models.state import state_tensors
from actors.models.tensor_files import unread_tensors
from actors.models.trial import is_tried, try_out
from actors.models.unfit import (
    check_attention,
    check_checkpointing,
    check_dtype,
    check_scores_are_known,
    check_tried_whole,
    without_score,
)


def load_model(
    model: ModelConfig, directory: str, divider: Divider | None = None, *, engine_length: int | None = None
) -> PreTrainedModel:
    """The policy's initial model: random weights for `model.init`, else the weights of `model.path`.

    `directory` holds config.json and the tokenizer (and the weights, unless `model.init` is given), or is a model of
    the hub as `located` names it. With a `divider`, which all ranks must have, the weights are the same and divided
    over the ranks as they come. `engine_length` is the max_model_len of the engines that sample from it, if any do:
    see `fix_rope`.
    """
    directory = local_directory(directory)
    config = quiet_config(_config_in(directory, "model.path"))
    refuse_unknown_ropes(config)
    options = _options(model, family_of_class(AutoModelForCausalLM, config))
    if model.init:
        torch.manual_seed(model.init.seed)
        with drawing(divider):
            built = AutoModelForCausalLM.from_config(config, trust_remote_code=False, **options)
    else:
        built, loaded = _from_directory(AutoModelForCausalLM, directory, config, options, divider)
        _require_weights(built, loaded["missing_keys"], directory, "model.path")
    ready = _ready_to_train(built, model, engine_length)
    if not is_tried(ready):
        check_tried_whole(config.model_type, config.get_text_config().model_type, divided=divider is not None)
        try_out(TokenLogprobs(ready))
    return ready


def load_value_model(
    model: ModelConfig,
    directory: str,
    divider: Divider | None = None,
    *,
    needs_head: bool = False,
    field: str = "model.path",
    engine_length: int | None = None,
) -> PreTrainedModel:
    """A sequence-classification model with one score; a causal model's directory gives its body a new head.

    For `model.init` it has the policy's initial body. `directory`, `divider` and `engine_length` are as for
    `load_model`, `field` is the setting that names the directory. Raises UserError with `needs_head`, as a reward
    model, when the directory holds no trained head.
    """
    directory, field = local_directory(directory), "reward.models" if needs_head else field
    config = quiet_config(_config_in(directory, field, num_labels=1))
    refuse_unknown_ropes(config)
    options = _options(model, family_of_class(AutoModelForSequenceClassification, config, field))
    # Positions are read by our own index; a padding token would only mislead whoever loads the export.
    text = config.get_text_config()  # where a model has parts, its text part has the tokens
    ends = text.eos_token_id if isinstance(text.eos_token_id, list) else [text.eos_token_id]
    if text.pad_token_id in ends:
        text.pad_token_id = None
    missing = set[str]()
    if model.init:
        body = body_of(load_model(model, directory, divider)).state_dict(keep_vars=True)
        with drawing(divider):
            built: Any = AutoModelForSequenceClassification.from_config(config, trust_remote_code=False, **options)
        # Its very parameters: there is nothing to copy in those that are divided.
        getattr(built, built.base_model_prefix).load_state_dict(body, assign=True)
    else:
        built, loaded = _from_directory(AutoModelForSequenceClassification, directory, config, options, divider)
        missing = loaded["missing_keys"]
        if needs_head and any(name.startswith("score.") for name in missing):
            raise UserError(f"{field}: must hold the weights of a score head (score.weight), got none in {directory}")
    check_scores_are_known(config.model_type, built.config.get_text_config().model_type, field)
    if not isinstance(getattr(built, "score", None), torch.nn.Linear):
        raise without_score(type(built).__name__, directory, field)
    _require_weights(built, {name for name in missing if not name.startswith("score.")}, directory, field)
    return _ready_to_train(built, model, engine_length)


def _config_in(directory: str, field: str, **options: object) -> PretrainedConfig:
    """What config.json says; raises UserError, with `field`, for what its class does not take."""
    try:
        return AutoConfig.from_pretrained(directory, trust_remote_code=False, **options)
    except (StrictDataclassError, ArithmeticError, LookupError, TypeError, ValueError) as error:
        reason = str(error.__cause__ or error)
        raise UserError(
            f"{field}: config.json must be as transformers reads it, got {reason.splitlines()[0]:.300} ({directory})"
        ) from error


def _from_directory(
    loader: type[_BaseAutoModelClass],
    directory: str,
    config: PretrainedConfig,
    options: dict[str, object],
    divider: Divider | None,
) -> tuple[Any, dict[str, set[str]]]:
    """A model with the weights of a directory, and what transformers says about them, such as the `missing_keys`."""
    if divider:
        refuse_divided(config.to_dict(), "zero_stage")
    tensors = unread_tensors(directory, reads=dist.get_rank() == 0) if divider else None
    # Its own is not read: training samples nothing by it, and some cannot be read. An export gets the file.
    loaded_with = options | {"generation_config": GenerationConfig()}
    with only_data(directory), loading(divider), counted_loading():
        if tensors is None:
            return loader.from_pretrained(
                directory, config=config, output_loading_info=True, trust_remote_code=False, **loaded_with
            )
        with torch.device("meta"):  # for its class, the only one that takes tensors instead of a directory
            model = loader.from_config(config, trust_remote_code=False, **options)
        built, loaded = type(model).from_pretrained(
            None,
            config=model.config,
            state_dict=tensors,
            output_loading_info=True,
            trust_remote_code=False,
            **loaded_with,
        )
    # Rank 0 alone has read them, and they stay whole.
    for _, tensor in state_tensors(built):
        if divider and not isinstance(tensor, torch.nn.Parameter):
            divider.share(tensor)
    built.config.name_or_path = directory  # where an export finds the settings of its source
    return built, loaded


def _require_weights(built: PreTrainedModel, missing: set[str], directory: str, field: str) -> None:
    """Raise UserError for parameters that a directory lacks: transformers draws new ones without a word."""
    # Buffers, which older files do not have, are as the class makes them.
    lacks = [name for name, _ in built.named_parameters() if name in missing]
    if lacks:
        more = f" and {len(lacks) - 1} others" if len(lacks) > 1 else ""
        raise UserError(f"{field}: weights must hold {lacks[0]}{more}, as config.json says, got none in {directory}")


def _options(model: ModelConfig, family: Family) -> dict[str, object]:
    """How a model is made or loaded: precision, attention, quantisation."""
    check_dtype(model.dtype, family)
    options: dict[str, object] = {"dtype": TORCH_DTYPES[model.dtype], "attn_implementation": _attention(model, family)}
    if model.quantize:
        device = {"": torch.cuda.current_device()} if torch.cuda.is_available() else None
        options |= {"quantization_config": quantization_config(model), "device_map": device}
    return options


def _ready_to_train(built: PreTrainedModel, model: ModelConfig, engine_length: int | None) -> PreTrainedModel:
    rope = fix_rope(built, engine_length)
    # A training pass reads whole sequences: nobody would ask for keys and values again.
    built.config.use_cache = False
    quiet_routers(built)
    experts_in_order(built)
    route_in_float32(built)
    # Loaded models are in evaluation mode, in which gradient checkpointing does nothing.
    built.train()
    asked, kind = model.gradient_checkpointing, built.config.model_type
    check_checkpointing(kind, asked=asked, supported=built.supports_gradient_checkpointing)
    if asked:
        # The reentrant kind needs an input that has a gradient: below adapters, none has.
        options = {"use_reentrant": False, "context_fn": rope.checkpointed}
        built.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
    return built


def _attention(model: ModelConfig, family: Family) -> str:
    flash = torch.cuda.is_available() and is_flash_attn_2_available()  # a module flash_attn may be another package's
    if model.attention == "flash_attention_2":
        if not flash:
            raise UserError("model.attention: flash_attention_2 needs a GPU and the flash-attn package, got neither")
        check_attention(model.attention, family)
    # Its kernels read half precision only.
    if flash and family.flash and model.attention != "packed_sdpa" and model.dtype == "bf16":
        return "flash_attention_2"
    if family.way == "rows":
        return family.own_attention
    register_packed_attention()
    return PACKED_ATTENTION


class TokenLogprobs(torch.nn.Module):
    """A causal language model that answers with the logprob of each action token of a packed batch."""

    def __init__(self, model: PreTrainedModel, balance: Balance | None = None) -> None:
        super().__init__()
        self.model = model
        family = family_of_model(model)
        self.body = Body(model, family, balance=balance)
        head: Any = model.get_output_embeddings()
        bias = getattr(head, "bias", None)
        self.head = LogprobHead(head.weight, bias, factor=family.logit_factor, cap=family.logit_cap)

    @property
    def shares_prompts(self) -> bool:
        """Whether batches may hold a prompt once for all its responses."""
        return self.body.shares_prompts

    def forward(self, batch: PackedBatch, temperature: float, chunk: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Logprobs and entropies of the tokens where `batch.action_mask` is True, both float32 [T], else 0.

        `temperature` divides the logits, as it did when the tokens were sampled; `chunk` bounds the number of tokens
        whose float32 logits exist at one time.
        """
        # Some families keep the sum over layers in float32, and cast it for their head.
        read = self.body.read(batch.inputs).to(self.head.weight.dtype)
        actions = batch.action_indices
        logprobs, entropies = self.head(read, batch.token_ids[actions], temperature, chunk)
        return _at(actions, logprobs, batch), _at(actions, entropies, batch)


def linear_in_float32(layer: "torch.nn.Linear | ScoreHead", hidden: torch.Tensor) -> torch.Tensor:
    """What a layer with `weight` and `bias` (or None) makes of [..., D], computed and answered at least in float32."""
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    bias = None if layer.bias is None else layer.bias.to(dtype)
    return torch.nn.functional.linear(hidden.to(dtype), layer.weight.to(dtype), bias)


class ScoreHead(torch.nn.Module):
    """A linear layer's very parameters, used in float32: of 64 scores in bf16, 20 equal another one.

    They are its own direct parameters, as those of `LogprobHead` are, for ZeRO-3 to find. vLLM, too, computes the
    scores of bf16 models in float32.
    """

    def __init__(self, layer: torch.nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[..., D] -> [..., scores], at least in float32."""
        return linear_in_float32(self, hidden)


class TokenValues(torch.nn.Module):
    """A sequence-classification model that answers with its score at each action token of a packed batch."""

    def __init__(self, model: PreTrainedModel, balance: Balance | None = None) -> None:
        super().__init__()
        self.model = model
        self.body = Body(model, family_of_model(model), balance=balance)
        self.head = ScoreHead(model.score)  # type: ignore[arg-type]

    @property
    def shares_prompts(self) -> bool:
        """See TokenLogprobs."""
        return self.body.shares_prompts

    def forward(self, batch: PackedBatch, temperature: float, chunk: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores at the tokens where `batch.action_mask` is True, float32 [T], else 0; and zeros [T].

        `temperature` and `chunk` are those of TokenLogprobs, for a common signature; nothing here depends on them.
        """
        scores = _at(batch.action_indices, self.head(self.body.read(batch.inputs))[:, 0], batch)
        return scores, torch.zeros_like(scores)


def _at(indices: torch.Tensor, values: torch.Tensor, batch: PackedBatch) -> torch.Tensor:
    """[A] values at their tokens, 0 elsewhere, [T]."""
    return torch.zeros(len(batch.token_ids), dtype=values.dtype, device=values.device).index_copy(0, indices, values)
