"""How vLLM 0.32 serves a family of models, and what it must be told for it; or why it does not. No torch, no vllm.

By a class of its own, or by the code of transformers with vLLM's attention, experts and linear layers in it.

What stands here was tried family by family on CPU (`python -m benchmarks.model_families`, docs/models.md): two versions
of the weights through an update in place, and logprobs of prompts and of sampled tokens against plain transformers.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from actors.config import UserError

Implementation = Literal["auto", "transformers"]
Values = Mapping[str, Any]
"""Fields of a model's (text) configuration, those that its class fills in included."""


@dataclass(frozen=True, slots=True)
class Served:
    """How engines serve a model."""

    implementation: Implementation = "auto"
    """vLLM's `model_impl`: its own class where it has one, or the code of transformers with vLLM's layers in it."""
    overrides: dict[str, object] = field(default_factory=dict)
    """Fields that vLLM reads, and config.json may lack or say otherwise."""
    plain_rotary: bool = False
    """Whether rotary positions are computed by torch: vLLM's kernel for CPU turns the first head alone of what comes
    head by head."""


_Check = Callable[[Values, bool], str]
"""Why vLLM's own class is not right for a model, on GPUs or else on CPU; empty where it is."""


def served(values: Values, *, composite: bool, on_gpu: bool, asked: object = None, torchvision: bool = True) -> Served:
    """How engines serve a model with these fields: of a kind that nobody has tried, as vLLM chooses, and the canary
    tells.

    Args:
        values: of its text part.
        composite: whether it has other parts.
        on_gpu: whether they compute on GPUs.
        asked: `model_impl` of rollout.vllm, if it is given.
        torchvision: whether that package is installed.

    Raises:
        UserError: they do not.
    """
    kind = str(values.get("model_type"))
    refused = _REFUSED.get(kind) or (None if on_gpu else _NOT_ON_CPU.get(kind))
    if (composite or kind in _NEED_TORCHVISION) and not torchvision:
        refused = refused or "has a class in vLLM that needs torchvision, which is not installed"
    if refused:
        raise _unserved(kind, refused, on_gpu)
    if not any(kind in table for table in (_OWN_CLASS, _OWN_CLASS_ON_GPU, _BACKEND)):
        return Served("transformers" if asked == "transformers" else "auto")
    backend = _beyond_transformers(values)
    if kind not in _BACKEND:
        backend = "is not served right by the code of transformers within vLLM"
    own = _of_own_class(kind, values, on_gpu)
    if asked in ("transformers", "vllm") and (problem := backend if asked == "transformers" else own):
        raise UserError(f"rollout.vllm: model_impl must not be {asked} for this {kind}, which {problem}, got {asked}")
    if own and backend:
        raise _unserved(kind, own if kind in _OWN_CLASS else backend, on_gpu)
    implementation: Implementation = "transformers" if asked == "transformers" or own else "auto"
    overrides = _OVERRIDES.get(kind, lambda _: {})(values)
    missing = {name: value for name, value in overrides.items() if name in _ALWAYS or values.get(name) is None}
    return Served(implementation, missing, plain_rotary=not on_gpu and implementation == "auto" and kind in _BY_HEAD)


def _unserved(kind: str, reason: str, on_gpu: bool) -> UserError:
    where = "" if on_gpu else " on CPU"
    return UserError(f"model.path: must be a model that vLLM 0.32 serves{where}, got a {kind}, which {reason}")


def _of_own_class(kind: str, values: Values, on_gpu: bool) -> str:
    checks = _OWN_CLASS.get(kind)
    if on_gpu and checks is None:
        checks = _OWN_CLASS_ON_GPU.get(kind)
    if checks is None:
        return "has no class of vLLM's own that computes what transformers does"
    return next(filter(None, (check(values, on_gpu) for check in checks)), "")


def _beyond_transformers(values: Values) -> str:
    """What vLLM adds to the code of transformers."""
    if values.get("attn_logit_softcapping") and values.get("model_type") == "gemma3_text":
        return "has attn_logit_softcapping, which transformers leaves out, and vLLM does not"
    return ""


def _silu(values: Values, _: bool) -> str:
    act = values.get("hidden_act", "silu")
    return "" if act in ("silu", "swish") else f"computes silu alone in vLLM, and has hidden_act {act}"


def _without(*names: str) -> _Check:
    def check(values: Values, _: bool) -> str:
        name = next((name for name in names if values.get(name)), None)
        return f"has {name}, which vLLM's class leaves out" if name else ""

    return check


def _no_window(values: Values, _: bool) -> str:
    kinds = values.get("layer_types") or ["sliding_attention"]
    windowed = values.get("use_sliding_window") and values.get("sliding_window") and "sliding_attention" in kinds
    return "has windows in some layers, which vLLM's class leaves out or refuses" if windowed else ""


def _four_times_wide(values: Values, _: bool) -> str:
    width = values.get("ffn_hidden_size")
    wrong = width is not None and width != 4 * values.get("hidden_size", 0)
    return "has another ffn_hidden_size than 4 x hidden_size, which vLLM's class takes for granted" if wrong else ""


def _one_group(name: str) -> _Check:
    def check(values: Values, on_gpu: bool) -> str:
        groups = values.get(name, 1)
        return "" if on_gpu or groups == 1 else f"has {name} {groups}, of which vLLM computes 1 right on CPU"

    return check


def _rotated_in_pairs(values: Values, _: bool) -> str:
    return "" if values.get("rope_interleave", True) else "has rope_interleave false, which vLLM's class leaves out"


def _every_so_many(values: Values, _: bool) -> str:
    layers, step = values.get("moe_layers"), _step(values)
    regular = layers is None or list(layers) == [*range(step - 1, values.get("num_hidden_layers", 0), step)]
    return "" if regular else f"has experts in layers {layers}, and vLLM in every so many alone"


def _whole_chunks(values: Values, on_gpu: bool) -> str:
    size = values.get("attention_chunk_size")
    fits = on_gpu or not size or size % _CPU_BLOCK == 0
    return "" if fits else f"has attention_chunk_size {size}, no multiple of the {_CPU_BLOCK} tokens of vLLM's blocks"


_CPU_BLOCK = 128
"""Tokens of a block of keys and values on CPU."""
_OWN_CLASS: dict[str, tuple[_Check, ...]] = {
    "qwen2": (_silu, _no_window),
    "qwen3": (_silu, _no_window, _without("attention_bias")),
    "llama": (_silu,),
    "mistral": (_silu,),
    "phi3": (_silu,),
    "glm4": (_silu,),
    "cohere": (_silu, _without("attention_bias")),
    "exaone4": (_silu,),
    "granite": (_silu,),
    "granite_swa": (_silu,),
    "hyperclovax": (_silu,),
    "ernie4_5": (_silu, _without("use_bias")),
    "stablelm": (_silu, _without("qk_layernorm")),
    **dict.fromkeys(("gemma", "gemma2", "gemma3_text", "gemma4_text", "nemotron", "opt", "gptj", "minicpm3"), ()),
    **dict.fromkeys(
        ("gpt2", "gpt-sw3"),
        (_without("scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn", "add_cross_attention"),),
    ),
    "falcon": (_four_times_wide,),
    "qwen2_moe": (_silu, _no_window),
    "qwen3_moe": (_silu, _no_window, _without("attention_bias")),
    "mixtral": (_silu,),
    "llama4_text": (_silu, _every_so_many, _whole_chunks),
    "exaone_moe": (_silu,),
    "glm4_moe": (_silu,),
    "hy_v3": (_silu,),
    **dict.fromkeys(("granitemoe", "granitemoe_swa", "granitemoeshared"), (_silu,)),
    "granitemoehybrid": (_silu, _one_group("mamba_n_groups")),
    "falcon_h1": (_silu, _without("mamba_rms_norm"), _one_group("mamba_n_groups")),
    "mamba2": (_one_group("n_groups"),),
    "lfm2": (),
    "lfm2_moe": (),
}
"""Families that a class of vLLM's own serves right, updated in place, and when it does not."""
_OWN_CLASS_ON_GPU: dict[str, tuple[_Check, ...]] = {
    **dict.fromkeys(("deepseek_v2", "axk1", "glm4_moe_lite"), ()),
    "deepseek_v3": (_rotated_in_pairs,),
    **dict.fromkeys(("olmoe", "dbrx"), (_without("clip_qkv"),)),
    **dict.fromkeys(("afmoe", "ernie4_5_moe", "minimax_m2", "laguna", "nemotron_h", "mamba", "falcon_mamba"), ()),
    **dict.fromkeys(("jamba", "kimi_linear", "olmo_hybrid", "deepseek_v32", "glm_moe_dsa", "hy_v4", "deepseek_v4"), ()),
    **dict.fromkeys(("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text", "qwen4_exp_text", "inkling_text"), ()),
}
"""Families whose class of vLLM's own is for GPUs: there, the canary alone has been asked."""
_BACKEND = frozenset(
    {
        *("afmoe", "apertus", "arcee", "axk1", "biogpt", "bitnet", "cohere", "cohere2", "cohere2_moe", "cwm", "dbrx"),
        *("deepseek_v2", "deepseek_v3", "dots1", "ernie4_5", "ernie4_5_moe", "exaone4", "exaone_moe", "flex_olmo"),
        *("gemma", "gemma2", "gemma3_text", "gemma3n_text", "gemma4_text", "gemma4_unified_text", "glm", "glm4"),
        *("glm4_moe", "glm4_moe_lite", "gpt_bigcode", "gpt_neox", "gpt_oss", "helium", "hunyuan_v1_dense"),
        *("hunyuan_v1_moe", "jais2", "llama", "mellum", "ministral", "ministral3", "mistral", "mixtral", "nanochat"),
        *("nemotron", "olmo", "olmo2", "olmo3", "olmoe", "persimmon", "phi3", "phi4_multimodal", "qwen2"),
        *("qwen2_moe", "qwen3", "qwen3_moe", "seed_oss", "smollm3", "solar_open", "stablelm", "starcoder2"),
        *("vaultgemma", "youtu"),
    }
)
"""Families that the code of transformers serves right within vLLM, updated in place."""
_NO_CLASS = "has no class in vLLM, and attention that vLLM cannot replace"
_OTHER = "gives other logprobs in vLLM than in transformers"
_ROUTES = "routes tokens to experts as vLLM does on GPUs alone"
_REFUSED: dict[str, str] = {
    **dict.fromkeys(("bloom", "doge", "hrm_text", "jetmoe", "moshi", "zamba2", "zaya"), _OTHER),
    **dict.fromkeys(("bamba", "diffllama", "minimax", "recurrent_gemma", "rwkv", "xlstm", "zamba"), _NO_CLASS),
    **dict.fromkeys(("codegen", "gpt_neo", "gpt_neox_japanese", "mpt", "openai-gpt", "xglm"), _NO_CLASS),
    **dict.fromkeys(("bart", "bigbird_pegasus", "blenderbot", "blenderbot-small", "git", "marian"), _NO_CLASS),
    **dict.fromkeys(("mbart", "mvp", "pegasus", "plbart", "trocr", "whisper"), _NO_CLASS),
    **dict.fromkeys(("aria_text", "axk2", "ctrl", "longcat_flash", "minimax_m3_vl_text"), "fails in vLLM"),
    # Where nothing was loaded before, as in a run, which starts engines without weights.
    "phi": "has a head with a bias, which the code of transformers does not take in an update within vLLM",
    "phimoe": "has a router whose answer the code of transformers cannot take within vLLM",
    "cohere_compass_text": "has rotary positions of several axes, which vLLM cannot give to the code of transformers",
    "mimo_v2_flash": "has sinks of attention that vLLM's class does not take in an update",
    "mllama_text_model": "has a class that vLLM does not know",
}
"""Families that engines do not serve, wherever they compute."""
_NOT_ON_CPU: dict[str, str] = {
    **dict.fromkeys(("mamba", "falcon_mamba", "jamba"), "has recurrent layers that vLLM computes on GPUs alone"),
    **dict.fromkeys(("kimi_linear", "olmo_hybrid"), "has linear attention that vLLM computes on GPUs alone"),
    **dict.fromkeys(("minimax_m2", "laguna"), _ROUTES),
    **dict.fromkeys(
        ("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"),
        "has linear attention that vLLM computes on CPU in bf16 alone",
    ),
    "nemotron_h": "has experts without a gate, which vLLM computes on GPUs alone",
    **dict.fromkeys(("deepseek_v32", "glm_moe_dsa", "hy_v4", "deepseek_v4"), "has sparse attention, which is for GPUs"),
    **dict.fromkeys(("qwen4_exp_text", "inkling_text"), "has attention that vLLM computes on GPUs alone"),
}
_NEED_TORCHVISION = ("qwen3_5_text", "qwen3_5_moe_text", "qwen4_exp_text")
_BY_HEAD = ("lfm2", "lfm2_moe")
"""Families whose class in vLLM hands queries and keys to rotary positions head by head."""

_SIGMOID = {"topk_method": "noaux_tc", "scoring_func": "sigmoid"}


def _dense_layers(values: Values) -> int:
    """Layers before the first with experts."""
    kinds = list(values.get("mlp_layer_types") or [])
    return kinds.index("sparse") if "sparse" in kinds else len(kinds)


_OVERRIDES: dict[str, Callable[[Values], dict[str, object]]] = {
    "deepseek_v2": lambda _: {"norm_topk_prob": False},  # transformers does not read it
    "deepseek_v3": lambda _: dict(_SIGMOID),
    "axk1": lambda _: dict(_SIGMOID),
    "glm4_moe_lite": lambda values: {**_SIGMOID, "first_k_dense_replace": _dense_layers(values)},
    "hy_v3": lambda values: {
        "first_k_dense_replace": _dense_layers(values),
        "expert_hidden_dim": values.get("moe_intermediate_size"),
        "route_norm": True,
        "qk_norm": True,
    },
    "minimax_m2": lambda values: {
        "rotary_dim": int(values["head_dim"] * (values.get("rope_parameters") or {}).get("partial_rotary_factor", 1)),
        "scoring_func": "sigmoid",
        "use_routing_bias": True,
    },
    **dict.fromkeys(
        ("lfm2", "lfm2_moe"), lambda values: dict.fromkeys(("conv_dim", "block_dim"), values["hidden_size"])
    ),
    "llama4_text": lambda values: {"interleave_moe_layer_step": _step(values)},
    "afmoe": lambda values: {"score_func": "sigmoid", "route_norm": True},
    **dict.fromkeys(
        ("gpt_neox", "persimmon"), lambda values: {"num_key_value_heads": values.get("num_attention_heads")}
    ),
}
"""Fields that published models of a family have in config.json, and transformers' own configurations may lack."""
_ALWAYS = ("norm_topk_prob", "interleave_moe_layer_step", "num_key_value_heads")
"""Those in which vLLM follows config.json, and transformers does not."""


def _step(values: Values) -> int:
    """Every how many layers of Llama 4 have experts."""
    layers = values.get("moe_layers")
    if layers is None:
        return int(values.get("interleave_moe_layer_step", 1))
    return int(layers[0] if layers else values.get("num_hidden_layers", 1)) + 1
