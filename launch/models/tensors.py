"""Whether the tensors of a model directory are those that its config.json means, by names and shapes. No torch.

Of the Llama, Mistral, Qwen2, Qwen3 and BERT families every tensor is known; of others the names in layers, the
embedding and the number of layers are compared.
"""

import difflib
import re
from collections.abc import Collection, Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path

from actors.config import LoraConfig, UserError
from actors.models.safetensors_header import StoredTensor, layer_count, pickled_names, stored_tensors
from launch.models.families import check_family
from launch.models.transformers_source import causal_architectures, further_rows
from launch.models.values import BERTS, DECODERS, REQUIRED, Role, architecture_of, model_values
from launch.sizes.estimate import decoder_shape, size_in

Shapes = dict[str, tuple[int, ...]]
"""Name of a parameter -> its shape. Example: {"model.norm.weight": (64,)}."""

_EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings", "embed_in", "tok_embeddings")
_EMBEDDED = ("hidden_size", "n_embd", "d_model", "embedding_size", "word_embed_proj_dim")
_OWN_PARAMETER = re.compile(r"layers?\.\d+\.(self_attn|mlp|attention|\w*layernorm).*\.(weight|bias)$")
"""Tensors of a layer that a model either has or is wrong without; old files hold tables beside them."""
_APART = re.compile(r"(^|\.)(embed_tokens|lm_head|score|pooler|classifier|embeddings)\.")
"""Matrices that are no linear layers with adapters: see `linear_layers` of actors/models/adaptable.py."""


def check_whole(directory: Path, field: str) -> dict[str, object]:
    """The fields of config.json of a directory that holds a whole model, of any kind; raises UserError with `field`."""
    values = model_values(directory, field)
    causal = architecture_of(values) in causal_architectures().get(str(values["model_type"]), ())
    check_tensors(values, directory, field, "causal" if causal else "encoder")
    return values


def check_tensors(
    values: Mapping[str, object], directory: Path, field: str, role: Role
) -> dict[str, StoredTensor] | None:
    """Compare the weights of a directory with the fields of its config.json.

    Returns:
        What is stored; None where only a look from outside is possible (*.bin).

    Raises:
        UserError: with `field`: a file that is damaged, or tensors that are missing, too many, or of another shape.
    """
    try:
        stored = stored_tensors(directory)
    except ValueError as error:
        raise UserError(f"{field}: weights in {directory} cannot be read, {error}") from None
    if stored is None:
        _check_names(values, directory, field, role)
        return None
    expected = expected_tensors(values, role, set(stored))
    if expected is None:
        check_family(values, stored, directory, field, causal=role != "encoder")
    _check_layers(values, stored, directory, field)
    if expected is None:
        _check_embedding(values, stored, directory, field)
    else:
        _compare(expected, stored, directory, field)
    return stored


def _check_names(values: Mapping[str, object], directory: Path, field: str, role: Role) -> None:
    """For weights of which only the names are known, among other texts: *.bin."""
    try:
        names = {_modern(text) for text in pickled_names(directory)}
    except ValueError as error:
        raise UserError(f"{field}: weights in {directory} cannot be read, {error}") from None
    expected = expected_tensors(values, role, names)
    if expected is not None:
        _require_all(expected, names, directory, field)
    else:
        check_family(values, _like_tensors(names), directory, field, causal=role != "encoder")


def _like_tensors(texts: Iterable[str]) -> list[str]:
    return [text for text in texts if re.fullmatch(r"\w+(\.\w+)+", text)]


def expected_tensors(values: Mapping[str, object], role: Role, stored: Iterable[str] = ()) -> Shapes | None:
    """Every parameter of a model with these fields of config.json, named as in the files among whose names are
    `stored`; None for a family that is not known here."""
    if not all(isinstance(values.get(name), int) for name in REQUIRED):
        return None
    if values["model_type"] in DECODERS:
        # Saved from the model without its head, whose names begin with model. otherwise.
        bare = "embed_tokens.weight" in stored
        found = _decoder(values, "" if bare else "model.")
        if role == "causal" and not values.get("tie_word_embeddings", False):
            found["lm_head.weight"] = (size_in(values, "vocab_size"), size_in(values, "hidden_size"))
        return found
    if values["model_type"] in BERTS:
        word = "embeddings.word_embeddings.weight"
        # bert., roberta. or nothing, as whoever saved it has had a head or not.
        prefix = next((name.removesuffix(word) for name in stored if name.endswith(word)), "")
        return _bert(values, prefix)
    return None


def trained_parameters(values: Mapping[str, object], role: Role, *, rerank: bool = False) -> Shapes | None:
    """Every parameter of the model that a job makes, by the names that it has there, tied ones by both; None for a
    family that is not known here."""
    if not all(isinstance(values.get(name), int) for name in REQUIRED):
        return None
    bare = role == "encoder" and not rerank
    hidden, rows = size_in(values, "hidden_size"), size_in(values, "vocab_size")
    if values["model_type"] in DECODERS:
        head = {"lm_head.weight": (rows, hidden)} if role == "causal" else {"score.weight": (1, hidden)}
        return _decoder(values, "" if bare else "model.") | ({} if bare else head)
    if values["model_type"] in BERTS:
        body = "" if bare else str(values["model_type"]).removeprefix("xlm-") + "."
        ends = [f"{body}pooler.dense"] + ([] if bare else ["classifier", "classifier.dense", "classifier.out_proj"])
        further = {f"{name}.weight": (hidden, hidden) for name in ends} | {f"{name}.bias": (hidden,) for name in ends}
        return _bert(values, body) | further
    return None


def _decoder(values: Mapping[str, object], prefix: str) -> Shapes:
    shape = decoder_shape(values)
    assert shape is not None, "the caller has looked for its fields"
    hidden, inner = shape.hidden_size, shape.intermediate_size
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    layer: Shapes = {"input_layernorm.weight": (hidden,), "post_attention_layernorm.weight": (hidden,)}
    matrices = {
        "self_attn.q_proj": (queries, hidden, shape.qkv_bias),
        "self_attn.k_proj": (keys, hidden, shape.qkv_bias),
        "self_attn.v_proj": (keys, hidden, shape.qkv_bias),
        "self_attn.o_proj": (hidden, queries, shape.output_bias),
        "mlp.gate_proj": (inner, hidden, shape.mlp_bias),
        "mlp.up_proj": (inner, hidden, shape.mlp_bias),
        "mlp.down_proj": (hidden, inner, shape.mlp_bias),
    }
    for name, (rows, columns, biased) in matrices.items():
        layer[f"{name}.weight"] = (rows, columns)
        if biased:
            layer[f"{name}.bias"] = (rows,)
    if shape.qk_norm:
        layer |= {f"self_attn.{name}_norm.weight": (shape.head_dim,) for name in "qk"}
    found: Shapes = {f"{prefix}embed_tokens.weight": (shape.vocab_size, hidden), f"{prefix}norm.weight": (hidden,)}
    for number in range(shape.layers):
        found |= {f"{prefix}layers.{number}.{name}": size for name, size in layer.items()}
    return found


def _bert(values: Mapping[str, object], prefix: str) -> Shapes:
    hidden, inner = size_in(values, "hidden_size"), size_in(values, "intermediate_size")
    found: Shapes = {
        f"{prefix}embeddings.word_embeddings.weight": (size_in(values, "vocab_size"), hidden),
        f"{prefix}embeddings.LayerNorm.weight": (hidden,),
        f"{prefix}embeddings.LayerNorm.bias": (hidden,),
    }
    for name, count in {"position": "max_position_embeddings", "token_type": "type_vocab_size"}.items():
        if isinstance(rows := values.get(count), int):
            found[f"{prefix}embeddings.{name}_embeddings.weight"] = (rows, hidden)
    linear = {f"attention.self.{name}": (hidden, hidden) for name in ("query", "key", "value")}
    linear |= {"attention.output.dense": (hidden, hidden), "intermediate.dense": (inner, hidden)}
    linear |= {"output.dense": (hidden, inner)}
    for number in range(size_in(values, "num_hidden_layers")):
        layer = f"{prefix}encoder.layer.{number}."
        found |= {f"{layer}{name}.weight": size for name, size in linear.items()}
        found |= {f"{layer}{name}.bias": size[:1] for name, size in linear.items()}
        for norm in ("attention.output.LayerNorm", "output.LayerNorm"):
            found |= {f"{layer}{norm}.weight": (hidden,), f"{layer}{norm}.bias": (hidden,)}
    return found


def _check_layers(
    values: Mapping[str, object], stored: Mapping[str, StoredTensor], directory: Path, field: str
) -> None:
    said = values.get("num_hidden_layers") or values.get("n_layer")
    held, further = layer_count(stored), values.get("num_nextn_predict_layers")
    further = further if isinstance(further, int) else 0
    # DeepSeek's and others keep layers that predict several tokens behind the last one.
    if isinstance(said, int) and held is not None and not said <= held <= said + further:
        raise UserError(
            f"{field}: weights must be of the {said} layers that config.json says, got {held} layers in {directory}"
        )


def _check_embedding(
    values: Mapping[str, object], stored: Mapping[str, StoredTensor], directory: Path, field: str
) -> None:
    """For a family that is not known: the rows and columns of its embedding."""
    found = [name for name in stored if name.removesuffix(".weight").rpartition(".")[2] in _EMBEDDINGS]
    # Of several, nobody says which is meant.
    if len(found) != 1 or len(stored[found[0]].shape) != 2:
        return
    rows, width = stored[found[0]].shape
    widths = [values[name] for name in _EMBEDDED if isinstance(values.get(name), int)]
    vocabulary = values.get("vocab_size")
    known = (vocabulary, vocabulary + further_rows(str(values["model_type"]))) if isinstance(vocabulary, int) else ()
    if (known and rows not in known) or (widths and width not in widths):
        raise UserError(
            f"{field}: {found[0]} must have the shape that config.json says (vocab_size {vocabulary}, width "
            f"{' or '.join(map(str, dict.fromkeys(widths)))}), got {[rows, width]} in {directory}"
        )


def _compare(expected: Shapes, stored: Mapping[str, StoredTensor], directory: Path, field: str) -> None:
    found = {_modern(name): tensor for name, tensor in stored.items()}
    _require_all(expected, found, directory, field)
    for name, shape in expected.items():
        if found[name].shape != shape:
            raise UserError(
                f"{field}: {name} must have the shape {list(shape)} that config.json says, got "
                f"{list(found[name].shape)} in {directory}/{found[name].file}"
            )
    further = [name for name in found if name not in expected and _OWN_PARAMETER.search(name)]
    if further:
        raise UserError(
            f"{field}: config.json describes no model with {further[0]}, which would be left out, got it in "
            f"{directory}/{found[further[0]].file}"
        )


def _require_all(expected: Shapes, found: Collection[str], directory: Path, field: str) -> None:
    missing = [name for name in expected if name not in found]
    if missing:
        more = f" and {len(missing) - 1} others" if len(missing) > 1 else ""
        raise UserError(f"{field}: weights must hold {missing[0]}{more}, as config.json says, got none in {directory}")


def _modern(name: str) -> str:
    """BERT's first files call a norm's weight and bias gamma and beta."""
    return re.sub(r"LayerNorm\.(gamma|beta)$", lambda match: f"LayerNorm.{_RENAMED[match[1]]}", name)


_RENAMED = {"gamma": "weight", "beta": "bias"}


def check_patterns(patterns: list[str], names: Iterable[str], field: str, *, tied: bool = False) -> None:
    """Raise UserError for a pattern of names that matches no parameter; its rule is that of `freeze_parameters`.

    `tied`: lm_head.weight is the input embedding, by a second name.
    """
    known = list(names)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in known):
            near = difflib.get_close_matches(pattern, known, 1, cutoff=0.4)
            hint = f" (for example {near[0]})" if near else ""
            raise UserError(f"{field}: each pattern must match a parameter{hint}, got {pattern}")
    # With the embedding frozen, a tied head is no parameter that is left.
    own = [name for name in known if not (tied and name == "lm_head.weight")]
    if patterns and all(any(fnmatchcase(name, pattern) for pattern in patterns) for name in own):
        raise UserError(f"{field}: must leave something to train, got {patterns}")


def check_targets(lora: LoraConfig, expected: Shapes, field: str) -> None:
    """Raise UserError for a target of adapters that is no linear layer; its rule is that of `add_adapters`."""
    if isinstance(lora.targets, str):
        return
    matrices = [name.removesuffix(".weight") for name, shape in expected.items() if len(shape) == 2]
    layers = [name for name in matrices if not _APART.search(f"{name}.")]
    for target in lora.targets:
        # PEFT's rule: the whole name, or its end from a dot on.
        if any(f".{name}".endswith(f".{target}") for name in layers):
            continue
        kinds = sorted({name.rpartition(".")[2] for name in layers})
        near = difflib.get_close_matches(target.rpartition(".")[2], kinds, 1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(kinds)}"
        raise UserError(
            f"{field}: must be linear layers other than the output embedding or a score head ({hint}), got {target}"
        )
