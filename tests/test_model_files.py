"""Model directories that are whole pass `check`, and broken ones are refused in one line that says what and where."""

import json
import os
import pickle
import struct
import time
import zipfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from actors.config import LoraConfig, ModelConfig, UserError
from actors.models.hub_cache import cached_snapshot, configured_directory, is_hub_id, located
from actors.models.safetensors_header import StoredTensor, read_header
from actors.models.tokenizer import _damaged, build_char_tokenizer, load_tokenizer, tokenizer_for
from launch.checks.check import examine
from launch.checks.findings import Findings
from launch.checks.known_sizes import memory_of
from launch.config import validate
from launch.kube.sizes import sized
from launch.models.families import check_family
from launch.models.files import check_reward_model
from launch.models.tensors import check_whole, expected_tensors
from launch.verbs.chat import chat
from launch.verbs.export import export
from launch.verbs.search import search
from tests.fake_models import INIT, cache_model, fake_model, header, write_safetensors, write_weights

ROWS = "".join(json.dumps({"prompt": "ab", "completion": text}) + "\n" for text in ("ba", "cd", "abc", "d"))
PAIRS = json.dumps({"prompt": "ab", "chosen": "ba", "rejected": "ab"}) + "\n"
BERT = {"family": "bert", "hidden_size": 32, "layers": 2, "heads": 2, "max_positions": 64}
JOBS: dict[str, dict[str, Any]] = {
    "sft": {"algorithm": {"name": "sft", "steps": 2, "samples_per_update": 2}},
    "reward": {
        "algorithm": {"name": "reward", "steps": 2, "samples_per_update": 2},
        "data": {"train": "pairs.jsonl", "max_length": 32},
    },
    "grpo": {
        "algorithm": {"name": "grpo", "steps": 2, "prompts_per_step": 2},
        "data": {"train": "rows.jsonl"},
        "reward": {"functions": [{"name": "my.py:score"}]},
        "rollout": {"max_prompt_tokens": 16, "max_response_tokens": 16},
    },
}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    Path("rows.jsonl").write_text(ROWS)
    Path("pairs.jsonl").write_text(PAIRS * 4)
    Path("my.py").write_text("def score(completion):\n    return 1.0\n")


def check(
    path: str | None = "model", *, job: str = "sft", model: dict[str, Any] | None = None, **more: Any
) -> Findings:
    """What `check` finds out about a job that starts from a model."""
    base = {"data": {"train": "rows.jsonl", "max_length": 32}, "cluster": {"cpus": 4}, "policy": {"zero_stage": 1}}
    chosen = {"model": ({"path": path} if path else {}) | (model or {})}
    return examine(validate(base | JOBS[job] | chosen | more))


def problem(path: str | None = "model", **options: Any) -> str:
    """The one line with which it is refused."""
    with pytest.raises(UserError) as caught:
        check(path, **options)
    [line] = caught.value.problems
    assert "\n" not in line
    return line


def change_config(**values: Any) -> None:
    path = Path("model/config.json")
    found = json.loads(path.read_text()) | values
    path.write_text(json.dumps({name: value for name, value in found.items() if value is not ...}))


def test_a_whole_model_passes() -> None:
    """One file or several, tied or not, and its parameters are counted."""
    fake_model(Path("model"))
    count = check().parameters
    fake_model(Path("model"), shards=3, tie_word_embeddings=False).joinpath("model.safetensors").unlink()
    tied = check().parameters
    assert count and tied == count + 15 * 64
    classifier = {"architectures": ["Qwen2ForSequenceClassification"], "id2label": {"0": "LABEL_0"}}
    fake_model(Path("score"), **classifier)
    check("score", job="reward")
    check("model", job="reward")


CONFIG_TEXTS = {
    "a list": ("[]", "must hold an object, got a list"),
    "a word": ('"a"', "must hold an object, got a string"),
    "nothing": ("", "model/config.json is empty"),
    "no JSON": ("{", "model/config.json is not JSON (Expecting property name"),
    "no text": ("\xff\xfe", None),
    "twice": ('{"model_type": "llama", "model_type": "llama"}', "gives model_type twice"),
    "deep": ("[" * 100_000, "is nested too deeply"),
    "a large number": ('{"model_type": "llama", "vocab_size": ' + "9" * 6000 + "}", "is not JSON (Exceeds the limit"),
    "no type": ("{}", "must say model_type, the name of an architecture, got nothing"),
    "a surrogate": ('{"model_type": "\\ud800"}', "got '\\ud800'"),
    "a web page": ("<!DOCTYPE html><html>", "is a web page"),
    "a pointer": ("version https://git-lfs.github.com/spec/v1\n", "is a Git-LFS pointer"),
}


@pytest.mark.parametrize("name", CONFIG_TEXTS)
def test_a_damaged_configuration_is_refused(name: str) -> None:
    text, expected = CONFIG_TEXTS[name]
    fake_model(Path("model"))
    Path("model/config.json").write_bytes(text.encode("latin-1"))
    line = problem()
    assert line.startswith("model.path: ")
    assert (expected or "is not UTF-8 text") in line


CONFIG_VALUES: dict[str, tuple[dict[str, Any], str]] = {
    "a word": (
        {"hidden_size": "wide"},
        "hidden_size in model/config.json must be a whole number of at least 1, got w",
    ),
    "negative": ({"num_hidden_layers": -2}, "num_hidden_layers in model/config.json must be a whole number"),
    "a fraction": ({"hidden_size": 64.5}, "must be a whole number of at least 1, got 64.5"),
    "no heads": ({"num_attention_heads": 0}, "num_attention_heads in model/config.json must be a whole number"),
    "no words": ({"vocab_size": 0}, "vocab_size in model/config.json must be a whole number"),
    "true": ({"vocab_size": True}, "vocab_size in model/config.json must be a whole number"),
    "left out": ({"vocab_size": ...}, "model/config.json must say vocab_size for qwen2, got nothing"),
    "heads that do not divide": ({"num_attention_heads": 3}, "num_attention_heads in model/config.json must divide"),
    "architectures": ({"architectures": "Qwen2ForCausalLM"}, "architectures in model/config.json must be a list"),
    "misspelt type": ({"model_type": "qwen22"}, "(did you mean qwen2?), got qwen22"),
    "foreign code": ({"model_type": "own", "auto_map": {"AutoModel": "x.Y"}}, "which Tandem never runs"),
    "gptq": ({"quantization_config": {"quant_method": "gptq"}}, "got weights quantised with gptq in model"),
    "t5": (
        {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]},
        "an encoder with a decoder, got T5",
    ),
    "bert": (
        {"model_type": "bert", "architectures": ["BertForMaskedLM"]},
        "must be a causal language model for sft, got",
    ),
    "bert as decoder": (
        {"model_type": "bert", "architectures": ["BertLMHeadModel"]},
        "must be a causal language model",
    ),
    "images": ({"vision_config": {}}, "not one of images, sound, or an encoder with a decoder, got Qwen2ForCausalLM"),
    "classifier": (
        {"architectures": ["Qwen2ForSequenceClassification"]},
        "and a classifier gives scores, got Qwen2",
    ),
    "no head": ({"architectures": ["Qwen2Model"]}, "for sft (it has Qwen2ForCausalLM), got Qwen2Model in model"),
    "width": (
        {"hidden_size": 128},
        "model.embed_tokens.weight must have the shape [15, 128] that config.json says",
    ),
    "layers": ({"num_hidden_layers": 3}, "must be of the 3 layers that config.json says, got 2 layers in model"),
    "fewer layers": ({"num_hidden_layers": 1}, "must be of the 1 layers that config.json says, got 2 layers in model"),
    "groups": ({"num_key_value_heads": 2}, "self_attn.k_proj.weight must have the shape [64, 64]"),
    "vocabulary": ({"vocab_size": 128}, "model.embed_tokens.weight must have the shape [128, 64]"),
    "inner": ({"intermediate_size": 100}, "mlp.gate_proj.weight must have the shape [100, 64]"),
    "untied": ({"tie_word_embeddings": False}, "weights must hold lm_head.weight, as config.json says, got none in"),
    "no biases": (
        {"model_type": "llama", "architectures": ["LlamaForCausalLM"]},
        "q_proj.bias, which would be",
    ),
    "other family": (
        {"model_type": "stablelm", "architectures": [], "vocab_size": 65},
        "(vocab_size 65, width 64), got [15",
    ),
}


@pytest.mark.parametrize("name", CONFIG_VALUES)
def test_a_configuration_that_is_wrong_or_of_other_weights_is_refused(name: str) -> None:
    values, expected = CONFIG_VALUES[name]
    fake_model(Path("model"))
    change_config(**values)
    line = problem()
    assert line.startswith("model.path: ")
    assert expected in line


def test_jobs_read_the_architectures_that_they_can() -> None:
    """A classifier is a start for a reward model, if it gives one score; an encoder is for embeddings alone."""
    fake_model(Path("model"), architectures=["Qwen2ForSequenceClassification"])
    assert problem(job="grpo").startswith(
        "model.path: must be a causal language model for grpo, and a classifier gives"
    )
    check(job="reward")
    shapes = expected_tensors(json.loads(Path("model/config.json").read_text()), "scores")
    assert shapes is not None
    write_weights(Path("model"), shapes | {"score.weight": (3, 64)})
    assert problem(job="reward") == "model.path: must give one score, got 3 classes in model"
    change_config(model_type="bert", architectures=["BertForSequenceClassification"])
    assert problem(job="reward").startswith("model.path: must be a causal language model for reward, got BertFor")


def _edit(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], Any]:
    def edited(file: Path) -> None:
        with file.open("rb") as stream:
            values = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        change(values)
        write_safetensors(file, values)

    return edited


NORM = "model.norm.weight"
FILES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "cut": (lambda file: os.truncate(file, file.stat().st_size - 1), "is cut off: it holds"),
    "cut in the header": (lambda file: os.truncate(file, 100), "is cut off: it ends within its header"),
    "longer": (lambda file: os.truncate(file, file.stat().st_size + 5), "has 5 bytes behind its tensors"),
    "empty": (lambda file: file.write_bytes(b""), "model.safetensors is empty"),
    "zeros": (lambda file: file.write_bytes(bytes(4096)), "has only zeros where its header should be"),
    "1 TiB": (lambda file: file.write_bytes(struct.pack("<Q", 2**40) + b"{}"), "would have 1099511627776 bytes"),
    "web page": (
        lambda file: file.write_bytes(b"<!DOCTYPE html>\n<html></html>"),
        "is a web page, not the file itself",
    ),
    "pointer": (
        lambda file: file.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"),
        "is a Git-LFS pointer, not the file itself (`git lfs pull` loads it)",
    ),
    "text": (lambda file: file.write_bytes(b"no weights here, none"), "is no safetensors file"),
    "no tensors": (lambda file: write_safetensors(file, {}), "there are no weights"),
    "no JSON": (
        lambda file: file.write_bytes(struct.pack("<Q", 3) + b"{a}"),
        "the header of model.safetensors is not JSON",
    ),
    "dtype": (_edit(lambda values: values[NORM].update(dtype="F31")), "has the unknown dtype F31"),
    "shape": (_edit(lambda values: values[NORM].update(shape=[65])), "has 256 bytes for F32 of shape [65]"),
    "negative": (_edit(lambda values: values[NORM].update(shape=[-64])), "must have counts for shape and data_offsets"),
    "no offsets": (_edit(lambda values: values[NORM].pop("data_offsets") and values.pop(NORM)), "leave a gap"),
    "no entry": (_edit(lambda values: values.pop("model.layers.1.mlp.up_proj.weight")), "leave a gap"),
    "overlap": (_edit(lambda values: values[NORM].update(data_offsets=[0, 256])), "tensors overlap at byte"),
    "missing": (lambda file: file.unlink(), "must hold weights (*.safetensors or *.bin)"),
    "other name": (lambda file: file.rename(file.with_name("x.safetensors")), "only x.safetensors"),
    "tensor left out": (
        lambda file: write_safetensors(file, header({NORM: (64,)})),
        "and 24 others, as config.json says",
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_refused(name: str) -> None:
    change, expected = FILES[name]
    change(fake_model(Path("model")) / "model.safetensors")
    line = problem()
    assert line.startswith("model.path: ")
    assert expected in line


def test_an_index_is_compared_with_its_files() -> None:
    fake_model(Path("model"), shards=3)
    index = Path("model/model.safetensors.index.json")
    values = json.loads(index.read_text())
    second = "model-00002-of-00003.safetensors"
    Path("model", second).rename("second")
    assert f"{second} is not there, one of the 3 files that {index.name} names" in problem()
    Path("second").rename(Path("model", second))
    places = values["weight_map"]
    index.write_text(json.dumps({"weight_map": places | {NORM: second}}))
    assert f"{second} does not hold the tensor {NORM}" in problem()
    index.write_text(json.dumps(values).replace('"weight_map": {', f'"weight_map": {{"{NORM}": "{second}", '))
    assert f"{index.name} gives {NORM} twice" in problem()
    index.write_text('{"weight_map": []}')
    assert f"{index.name} is no index" in problem()
    index.write_text(json.dumps(values))
    write_safetensors(Path("model", second), header({NORM: (64,)}))
    assert "both hold the tensor model.norm.weight" in problem()


def test_pickled_weights_are_looked_at_from_outside() -> None:
    file = fake_model(Path("model")) / "model.safetensors"
    pickled = file.rename(file.with_name("pytorch_model.bin"))
    assert "pytorch_model.bin is no file of torch.save" in problem()
    pickled.write_bytes(b"PK\x03\x04 and then nothing")
    assert "pytorch_model.bin is cut off" in problem()
    torch.save(load_file(Path(fake_model(Path("whole")), "model.safetensors")), pickled)
    assert check().parameters == 124_416  # counted from config.json


def _zip(path: Path, **members: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


NO_WEIGHTS: dict[str, tuple[Callable[[Path], object], str]] = {
    # name: (what is written instead of the weights, what the line says of it)
    "web page": (lambda file: file.write_text("<!DOCTYPE html><html></html>"), "is a web page, not the file itself"),
    "pointer": (lambda file: file.write_text("version https://git-lfs.github.com/spec/v1\n"), "is a Git-LFS pointer"),
    "empty": (Path.touch, "is empty"),
    "text": (lambda file: file.write_text("weights"), "is no file of torch.save"),
    "another zip": (lambda file: _zip(file, a=b"b"), "is a zip, but not one of torch.save"),
    "broken pickle in a zip": (lambda file: _zip(file, **{"archive/data.pkl": b"x"}), "at position 0"),
    "another pickle": (lambda file: file.write_bytes(pickle.dumps({"a": 1})), "but not one of torch.save"),
    "half a pickle": (lambda file: file.write_bytes(b"\x80\x02"), "pickle exhausted before seeing STOP"),
    "other tensors": (lambda file: torch.save({"a.weight": torch.zeros(1)}, file), "must hold model.embed_tokens."),
}  # fmt: skip


@pytest.mark.parametrize("name", NO_WEIGHTS)
def test_what_is_no_pickled_weights_is_refused(name: str) -> None:
    (fake_model(Path("model")) / "model.safetensors").unlink()
    write, expected = NO_WEIGHTS[name]
    write(Path("model/pytorch_model.bin"))
    line = problem()
    assert line.startswith("model.path: ") and expected in line


OTHER_FAMILIES = {
    # model_type over the tensors of a new model, which is qwen2: what it lacks or has
    "gpt2": "got gpt2, which has no down_proj, and weights with model.layers.1.mlp.down_proj.weight",
    "opt": "got opt, which has no down_proj",
    "phi3": "got phi3, which has no gate_proj",
    "gpt_neox": "got gpt_neox, which has no down_proj",
    "gemma2": "got gemma2, which has post_feedforward_layernorm in its layers, and weights without them",
    "mixtral": "got mixtral, which has experts in its layers, and weights without them",
    "gemma": "got gemma, whose q_proj has no bias without attention_bias",
}


@pytest.mark.parametrize("pickled", [False, True])
@pytest.mark.parametrize("kind", OTHER_FAMILIES)
def test_weights_of_another_family_are_refused(kind: str, pickled: bool) -> None:
    file = fake_model(Path("model")) / "model.safetensors"
    if pickled:
        torch.save(load_file(file), file.with_name("pytorch_model.bin"))
        file.unlink()
    change_config(model_type=kind, architectures=...)
    line = problem()
    assert line.startswith("model.path: model_type in model/config.json must be that of the weights, got ")
    assert OTHER_FAMILIES[kind] in line


GENUINE: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 15},
    "gemma2": {"hidden_size": 16, "num_hidden_layers": 2, "head_dim": 8, "vocab_size": 15},
    "phi3": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 15, "pad_token_id": 0},
    "olmo": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 15},
    "apertus": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 15},
    "qwen3_moe": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 15},
}  # fmt: skip


@pytest.mark.parametrize("kind", GENUINE)
def test_weights_as_transformers_saves_them_pass(kind: str) -> None:
    """Also those of families that are known from its source alone."""
    from transformers import AutoConfig, AutoModelForCausalLM

    small = {"intermediate_size": 16, "num_experts": 2, "moe_intermediate_size": 16, "num_key_value_heads": 1}
    fake_model(Path("model"))
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **small | GENUINE[kind]))
    model.save_pretrained("model")
    check_whole(Path("model"), "model.path")
    state = {name: value.clone() for name, value in load_file(Path("model/model.safetensors")).items()}
    torch.save(state, "model/pytorch_model.bin")
    Path("model/model.safetensors").unlink()
    check_whole(Path("model"), "model.path")


ATTENTION = ("input_layernorm", "post_attention_layernorm", *(f"self_attn.{part}_proj" for part in "qkvo"))
DENSE = (*ATTENTION, "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
FOUND: dict[str, tuple[dict[str, Any], tuple[str, ...], str | None]] = {
    # values of config.json; what each layer of the weights has, by the names of their makers; what the line says
    "renamed experts": (
        {"model_type": "phimoe"},
        (*ATTENTION, "block_sparse_moe.gate", *(f"block_sparse_moe.experts.1.w{number}" for number in (1, 2, 3))),
        None,
    ),
    "one expert": ({"model_type": "qwen3_moe", "num_experts": 1}, DENSE, None),
    "no experts": ({"model_type": "qwen3_moe", "num_experts": 0}, DENSE, None),
    "dense layers": ({"model_type": "deepseek_v3", "num_hidden_layers": 2, "first_k_dense_replace": 2}, DENSE, None),
    "dense by name": ({"model_type": "qwen3_moe", "num_hidden_layers": 2, "mlp_only_layers": [0, 1]}, DENSE, None),
    "hybrid": ({"model_type": "nemotron_h", "hybrid_override_pattern": "M-M*-"}, ("norm", "mixer.A_log"), None),
    "one foreign": ({"model_type": "llama"}, (*DENSE, "self_attn.makers_own"), None),
    "lost experts": ({"model_type": "qwen3_moe", "num_experts": 8}, DENSE, "which has experts in its layers"),
    "experts by default": ({"model_type": "qwen3_moe"}, DENSE, "which has experts in its layers"),
    "some dense layers": (
        {"model_type": "deepseek_v3", "num_hidden_layers": 3, "first_k_dense_replace": 2}, DENSE, "experts",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FOUND)
def test_families_may_be_saved_under_other_names_and_without_their_experts(name: str) -> None:
    values, layer, says = FOUND[name]
    names = [f"model.layers.{index}.{part}.weight" for index in range(2) for part in layer]
    with pytest.raises(UserError) if says else nullcontext() as caught:
        check_family(values, names, Path("model"), "model.path", causal=True)
    assert says is None or says in str(caught.value)  # type: ignore[union-attr]


def test_a_sharded_model_of_70_billion_takes_no_time() -> None:
    sizes: dict[str, Any] = {"hidden_size": 8192, "num_hidden_layers": 80}
    sizes |= {"num_attention_heads": 64, "num_key_value_heads": 8}
    sizes |= {"intermediate_size": 28672, "vocab_size": 128256, "tie_word_embeddings": False}
    large = fake_model(Path("model"), shards=30, model_type="llama", architectures=["LlamaForCausalLM"], **sizes)
    times = []
    for _ in range(3):
        started = time.process_time()
        check_whole(large, "model.path")
        times.append(time.process_time() - started)
    assert min(times) < 0.3
    last = sorted(large.glob("model-*"))[-1]
    os.truncate(last, last.stat().st_size - 1)
    assert f"{last.name} is cut off" in problem()


def test_headers_equal_those_of_the_library(tmp_path: Path) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    save_file({"a": np.zeros((2, 3), np.float32), "b": np.zeros((0, 2), np.float16)}, "x", metadata={"format": "pt"})
    assert read_header(Path("x")) == {"a": StoredTensor("F32", (2, 3), "x"), "b": StoredTensor("F16", (0, 2), "x")}


FAMILIES = {
    "Llama": {"tie_word_embeddings": False, "attention_bias": True, "mlp_bias": True},
    "Mistral": {"head_dim": 24},
    "Qwen2": {"tie_word_embeddings": True},
    "Qwen3": {"head_dim": 16},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_expected_tensors_are_those_that_transformers_writes(family: str) -> None:
    import transformers

    numbers = {"vocab_size": 101, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 6}
    numbers |= {
        "num_key_value_heads": 2,
        "intermediate_size": 80,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    config = getattr(transformers, f"{family}Config")(**numbers, **FAMILIES[family])
    for role, kind in {"causal": "ForCausalLM", "scores": "ForSequenceClassification"}.items():
        model = getattr(transformers, f"{family}{kind}")(config)
        model.save_pretrained("saved")
        check_whole(Path("saved"), "model.path")
        names = {name: tuple(value.shape) for name, value in model.named_parameters() if name != "score.weight"}
        assert expected_tensors(json.loads(Path("saved/config.json").read_text()), role) == names  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["Bert", "Roberta", "XLMRoberta"])
@pytest.mark.parametrize("head", ["Model", "ForSequenceClassification"])
def test_encoders_as_transformers_writes_them_are_whole(kind: str, head: str) -> None:
    import transformers

    numbers = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    config = getattr(transformers, f"{kind}Config")(vocab_size=50, max_position_embeddings=20, **numbers)
    getattr(transformers, f"{kind}{head}")(config).save_pretrained("saved")
    check_whole(Path("saved"), "model.path")
    found = json.loads(Path("saved/config.json").read_text()) | {"hidden_size": 32}
    Path("saved/config.json").write_text(json.dumps(found))
    with pytest.raises(UserError, match=r"must have the shape \[50, 32\] that config.json says"):
        check_whole(Path("saved"), "model.path")


# Tokenizers.


def test_a_tokenizer_fits_the_model() -> None:
    model = fake_model(Path("model"))
    original = (model / "tokenizer.json").read_text()
    (model / "tokenizer.json").write_text("{")
    assert problem().startswith("model.path: tokenizer cannot be read (")
    (model / "tokenizer.json").write_text(original)
    larger = build_char_tokenizer("abcdefgh")
    larger.add_tokens([f"<{index}>" for index in range(80)])
    larger.save_pretrained(model)
    rule = "must have a tokenizer whose tokens the model's embedding holds (vocab_size 15, ids up to 14)"
    assert problem() == f"model.path: {rule}, got 80 beyond, up to id 94 ('<79>'), in model"
    fake_model(Path("padded"), vocab_size=128)
    larger.save_pretrained("padded")
    check("padded")
    scores = fake_model(Path("reward"), architectures=["Qwen2ForSequenceClassification"])
    larger.save_pretrained(scores)
    with pytest.raises(UserError) as caught:
        check_reward_model(validate(JOBS["grpo"] | {"model": {"path": "padded"}}), scores, "reward.models.0.path")
    assert caught.value.problems == (f"reward.models.0.path: {rule}, got 80 beyond, up to id 94 ('<79>'), in reward",)
    for file in model.glob("token*"):
        file.unlink()
    assert problem().startswith("model.path: directory holds no tokenizer (")


@pytest.mark.parametrize(
    ("template", "expected"), [("{% for", "line 1: "), ("{{ 1 // 0 }}", "ZeroDivisionError: "), ("{{ x(", "line 1: ")]
)
def test_a_chat_template_that_is_broken_is_refused(template: str, expected: str) -> None:
    model = fake_model(Path("model"))
    tokenizer = load_tokenizer("model")
    tokenizer.chat_template = template
    tokenizer.save_pretrained(model)
    rule = f"the tokenizer's chat template is broken ({expected}"
    assert problem().startswith(f"model.path: {rule}")
    with pytest.raises(UserError) as caught:
        chat("model", prompt="ab", temperature=0, max_tokens=2)
    assert str(caught.value).startswith(f"MODEL: {rule}")


# Names of parameters.


def test_names_that_match_nothing_are_refused() -> None:
    """Also of a model that is not built yet, and of a job that gives it other names."""
    fake_model(Path("model"))
    patterns = ["model.embed_tokens.*", "lm_head.*", "model.layers.1.*"]
    check(model={"freeze": patterns})
    assert problem(model={"freeze": [*patterns, "layers.0.*"]}).startswith(
        "model.freeze: each pattern must match a param"
    )
    assert problem(model={"freeze": ["*"]}) == "model.freeze: must leave something to train, got ['*']"
    new = {"init": INIT.model_dump()}
    assert problem(None, model=new | {"freeze": ["model.*"]}) == (
        "model.freeze: must leave something to train, got ['model.*']"  # its lm_head is the embedding
    )
    assert (
        problem(None, model=new | {"freeze": ["nothing"]})
        == "model.freeze: each pattern must match a parameter, got nothing"
    )
    check(None, model=new | {"lora": {"targets": ["q_proj", "layers.1.mlp.up_proj"]}})
    line = problem(model={"lora": {"targets": ["q_proj", "query_proj"]}})
    assert line.endswith("or a score head (did you mean q_proj?), got query_proj")
    assert problem(model={"lora": {"targets": ["lm_head"]}}).startswith(
        "model.lora.targets: must be linear layers other"
    )
    check(job="reward", model={"freeze": ["score.*"]})
    embedding = {"algorithm": {"name": "embedding", "epochs": 1, "pooling": "mean"}, "data": {"train": "pairs.jsonl"}}
    frozen = {"init": BERT, "freeze": ["encoder.layer.7.*"]}
    with pytest.raises(UserError, match=r"model.freeze: each pattern must match a parameter \(for example encoder"):
        examine(validate(embedding | {"model": frozen, "cluster": {"cpus": 2}}))


# Paths.


def test_a_path_that_is_no_model_directory_is_named_for_what_it_is() -> None:
    fake_model(Path("a model ü"))
    check("a model ü")
    check("a model ü/")
    Path("empty").mkdir()
    Path("loop").symlink_to("loop")
    Path("dangling").symlink_to("gone")
    Path("run/checkpoints").mkdir(parents=True)
    Path("run/config.json").write_text(json.dumps({"algorithm": {"steps": 9}}))
    Path("run/checkpoints/latest").write_text("step-4")
    Path("adapter").mkdir()
    Path("adapter/adapter_config.json").write_text("{}")
    expected = {
        "a model ü/model.safetensors": "must be a directory with a config.json, not a file (did you mean a model ü?)",
        "rows.jsonl": "must be a directory with a config.json, not a file, got rows.jsonl",
        "empty": "must be a model directory with a config.json, got the empty directory empty",
        "loop": "cannot be read (Too many levels of symbolic links), got 'loop'",
        "dangling": "the link leads to gone, which is not there, got dangling",
        "run": "the run has not finished: there is a checkpoint of step 4 of 9, but no model yet",
        "~/model": "~ is not expanded in a configuration (write ",
        "adapter": "must be a whole model, and this is a PEFT adapter (`tandem export adapter --output DIR`",
        "a\0b": "must be one line without control characters",
    }
    for path, rule in expected.items():
        assert problem(path).startswith(f"model.path: {rule}")
        if path not in ("run", "a\0b"):
            with pytest.raises(UserError) as caught:
                chat(path, prompt="x", temperature=0, max_tokens=2)
            assert str(caught.value).startswith(f"MODEL: {rule}")


# The hub's cache.


def test_a_model_in_the_hubs_cache_is_checked_as_a_directory_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline and online, with and without an owner, as policy, critic and reward model."""
    snapshot = cache_model(Path("hub"), "owner/name")
    cache_model(Path("hub"), "short")
    scores: dict[str, Any] = {"architectures": ["Qwen2ForSequenceClassification"], "id2label": {"0": "LABEL_0"}}
    cache_model(Path("hub"), "owner/scores", **scores)
    models = {"reward": {"models": [{"path": "owner/scores"}]}, "algorithm": {"name": "ppo", "steps": 2}}
    for offline in ("1", "0"):
        monkeypatch.setenv("HF_HUB_OFFLINE", offline)
        for name in ("owner/name", "short"):
            found = check(name)
            assert (found.parameters, found.warnings, found.rows) == (124_416, [], 4)
        critic = {"path": "owner/name", "zero_stage": 1}
        assert check("owner/name", job="grpo", critic=critic, **models).warnings == []
        assert sized(check("owner/name").config).parameters == 124_416
    os.truncate(snapshot / "model.safetensors", 300)
    assert problem("owner/name").startswith(f"model.path: weights in {snapshot.absolute()} cannot be read, ")
    assert problem("owner/name", job="grpo", reward={"models": [{"path": "owner/gone"}]}).startswith("model.path: ")


def test_a_model_that_is_not_in_the_hubs_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline it is refused, by name and with what to do; online it is left to the run, without asking the hub."""
    rule = f"no such directory, and the hub cannot give it (its cache {Path('hub').absolute()} does not hold it, and "
    rule += "HF_HUB_OFFLINE forbids to load it: `hf download {}` does, where there is a network), got {}"
    for name in ("owner/name", "gpt2"):
        assert problem(name) == f"model.path: {rule.format(name, name)}"
    with_models = problem(None, job="grpo", model={"init": INIT.model_dump()}, reward={"models": ["owner/scores"]})
    assert with_models == f"reward.models.0.path: {rule.format('owner/scores', 'owner/scores')}"
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", None)
    for name in ("owner/name", "gpt2"):
        where = "is read from the hub when the run starts, not checked here"
        assert check(name).warnings == [f"model.path: {name} {where}"]
    assert problem("modle") == "model.path: must be a model directory with a config.json, got modle"
    assert is_hub_id("owner/name")
    Path("owner").mkdir()
    assert not is_hub_id("owner/name")


def test_memory_is_known_before_the_weights_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """From config.json and the index, whose shards are not loaded yet."""
    sizes: dict[str, Any] = {"hidden_size": 2048, "num_hidden_layers": 4}
    snapshot = cache_model(Path("hub"), "owner/name", shards=2, **sizes)
    for shard in snapshot.glob("model-*"):
        shard.unlink()
    assert "does not hold its weights, and HF_HUB_OFFLINE forbids" in problem("owner/name")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    known = check("owner/name")
    index = json.loads((snapshot / "model.safetensors.index.json").read_text())
    assert known.parameters == index["metadata"]["total_size"] // 4
    assert memory_of(known)["policy"].weights == index["metadata"]["total_size"]
    assert known.warnings == ["model.path: owner/name is read from the hub when the run starts, not checked here"]
    path = snapshot / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_hidden_layers": "four"}))
    assert "num_hidden_layers in" in problem("owner/name")


def test_a_revision_is_a_branch_tag_or_commit() -> None:
    """A run keeps to the commit that it has found; a local directory has no revision."""
    cache_model(Path("hub"), "owner/name")
    tagged = cache_model(
        Path("hub"), "owner/name", revision="v1", commit="a" * 40, init=INIT.model_copy(update={"layers": 1})
    )
    assert cached_snapshot("owner/name", "v1") == cached_snapshot("owner/name", "a" * 40) == tagged.absolute()
    assert located("owner/name", "v1") == f"owner/name@{'a' * 40}"
    assert located("owner/name") == f"owner/name@{'c' * 40}"
    one, two = (check("owner/name", model={"revision": revision}).parameters for revision in ("v1", None))
    assert one and two and one < two
    assert "hf download owner/name --revision v2`" in problem("owner/name", model={"revision": "v2"})
    config = check("owner/name", model={"revision": "v1"}).config
    (tagged / "tokenizer.json").write_text((tagged / "tokenizer.json").read_text().replace('"<|end|>"', '"<|fin|>"'))
    assert "<|fin|>" in tokenizer_for(config.model).get_vocab()
    fake_model(Path("model"))
    assert problem(model={"revision": "v1"}) == "model.revision: must be left out for a local directory (model), got v1"


def test_a_run_loads_what_the_hubs_cache_holds() -> None:
    """Weights, of the commit that is named, for policy, critic, engine and the merging of adapters; offline."""
    import torch
    import transformers

    from actors.models.adapter_files import adapter_config, adapter_state, write_adapter
    from actors.models.load import load_model, load_value_model
    from actors.models.lora import adapted_layer_kinds, add_adapters

    snapshots = {}
    for seed, (revision, commit) in enumerate({"main": "c" * 40, "v1": "a" * 40}.items()):
        snapshot = cache_model(Path("hub"), "owner/name", revision=revision, commit=commit)
        torch.manual_seed(seed)
        snapshots[commit] = transformers.AutoModelForCausalLM.from_config(
            transformers.AutoConfig.from_pretrained(snapshot)
        )
        snapshots[commit].save_pretrained(snapshot)
    name = located("owner/name", "v1")
    policy = load_model(ModelConfig(path="owner/name", revision="v1"), name)
    weights: Any = policy.get_input_embeddings().weight
    saved: Any = snapshots["a" * 40].get_input_embeddings().weight
    assert torch.equal(weights, saved)
    assert load_value_model(ModelConfig(path="owner/name"), name).config.num_labels == 1
    assert "q_proj" in adapted_layer_kinds(name, LoraConfig())
    assert Path(configured_directory(name), "tokenizer.json").is_file()
    add_adapters(policy, LoraConfig(rank=2), seed=0)
    settings = json.loads(adapter_config(policy, name))
    assert (settings["base_model_name_or_path"], settings["revision"]) == ("owner/name", "a" * 40)
    write_adapter(Path("peft"), json.dumps(settings), adapter_state(policy, lambda _: nullcontext(), keep=True))
    export("peft", output="merged")
    merged = transformers.AutoModelForCausalLM.from_pretrained("merged")
    loaded: Any = merged.get_input_embeddings().weight
    assert torch.equal(loaded, weights)


def test_an_adapter_without_its_base_names_it() -> None:
    Path("adapter").mkdir()
    settings = Path("adapter/adapter_config.json")
    settings.write_text("{}")
    named = "RUN: base_model_name_or_path in adapter/adapter_config.json"
    expected = {
        "": "RUN: must hold the adapters, adapter_model.safetensors, got none in adapter",
        '{"base_model_name_or_path": null}': f"{named} must be a model, got nothing",
        '{"base_model_name_or_path": "owner/name"}': f"{named}: no such directory, and the hub cannot give it (",
        '{"base_model_name_or_path": "./gone"}': f"{named} must be a model, whose weights the adapters change; "
        f"there is no directory {Path('gone').absolute()} ",
        "[": "RUN: adapter/adapter_config.json is not JSON",
        "[]": "RUN: adapter/adapter_config.json must hold an object, got something else",
    }
    for text, rule in expected.items():
        if text:
            Path("adapter/adapter_model.safetensors").write_bytes(b"")
            settings.write_text(text)
        with pytest.raises(UserError) as caught:
            export("adapter", output="whole")
        assert str(caught.value).startswith(rule)
        assert not Path("whole").exists()


# Other verbs.


def test_verbs_refuse_a_damaged_model_before_they_load_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sentence_transformers", None)
    model = fake_model(Path("run/export"))
    verbs: dict[str, Callable[[], Any]] = {
        "chat": lambda: chat("run", prompt="ab", temperature=0, max_tokens=2),
        "export": lambda: export("run", output=None),
        "search": lambda: search("run", corpus="rows.jsonl", query="a", top=1, first_stage=None, candidates=None),
    }
    for damage in (b"", b"<html>", b"version https://git-lfs"):
        (model / "model.safetensors").write_bytes(damage)
        for verb in verbs.values():
            with pytest.raises(UserError, match=r"(MODEL|RUN): weights in run/export cannot be read, "):
                verb()
    fake_model(model)
    for file in model.glob("token*"):
        file.unlink()
    for name in ("chat", "search"):
        with pytest.raises(UserError, match="MODEL: directory holds no tokenizer"):
            verbs[name]()
    (model / "config.json").write_text("[]")
    for verb in verbs.values():
        with pytest.raises(UserError, match=r"(MODEL|RUN): run/export/config.json must hold an object, got a list"):
            verb()


@pytest.mark.parametrize(
    ("file", "content", "rule"),
    [
        ("tokenizer.json", "", "tokenizer.json must hold the tokenizer, is empty"),
        ("tokenizer.json", "[]", "tokenizer.json must hold a JSON object, holds something else"),
        ("tokenizer.json", "{}", "tokenizer.json must hold a tokenizer, holds {}"),
        (
            "tokenizer.json",
            "version https://git-lfs.github.com/spec/v1",
            "tokenizer.json must hold the tokenizer, is a",
        ),
        ("tokenizer_config.json", "[]", "tokenizer_config.json must hold a JSON object, holds something else"),
    ],
)
def test_a_tokenizers_file_that_is_damaged_is_named(file: str, content: str, rule: str) -> None:
    fake_model(Path("m"))
    Path("m", file).write_text(content)
    assert problem("m").startswith(f"model.path: {rule}")


INCOMPLETE = {
    # files of the tokenizer, and nothing else of it: part of the line
    "settings alone": ({"tokenizer_config.json": "{}"}, "must hold a tokenizer's vocabulary ("),
    "no merges": ({"vocab.json": '{"a": 0}'}, "vocab.json needs merges.txt beside it"),
    "empty object": ({"vocab.json": "{}"}, "vocab.json must hold a tokenizer, holds {}"),
    "no tokens": ({"vocab.txt": "\n"}, "vocab.txt must hold a token on each line, holds none"),
    "empty": ({"tokenizer.model": ""}, "tokenizer.model must hold the tokenizer, is empty"),
    "web page": ({"tokenizer.model": "<html>"}, "tokenizer.model must hold the tokenizer, is a web page"),
    "something else": ({"tokenizer.model": "\u00e9"}, "tokenizer.model must be of SentencePiece or tiktoken"),
}  # fmt: skip


@pytest.mark.parametrize("name", INCOMPLETE)
def test_a_tokenizer_that_is_not_whole_is_refused_at_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without AutoTokenizer, which takes seconds."""
    fake_model(Path("model"))
    for path in Path("model").glob("tokenizer*"):
        path.unlink()
    files, expected = INCOMPLETE[name]
    for file, content in files.items():
        Path("model", file).write_text(content)
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda *_, **__: pytest.fail("was asked"))
    line = problem()
    assert line.startswith("model.path: ") and line.endswith(", got model") and expected in line


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("rope_theta", "x", "must be a number, got x"),
        ("rms_norm_eps", True, "must be a number, got true"),
        ("rms_norm_eps", -1, "must be at least 0, got -1"),
        ("use_sliding_window", "x", "must be true or false, got x"),
        ("layer_types", ["full_attention"], "must name num_hidden_layers (2) layers, got 1"),
        ("layer_types", [1, 2], "must be names of kinds of layers, got 1"),
        ("quantization_config", {}, "must say its quant_method, or be left out, got {}"),
        ("tie_word_embeddings", "no", "must be true or false, got no"),
        ("sliding_window", "x", "must be a whole number, got x"),
        ("eos_token_id", "x", "must be a whole number or a list of them, got x"),
        ("layer_types", 5, "must be a list, got 5"),
        ("hidden_act", "silo", "must be one of transformers' activations (did you mean silu?), got silo"),
        ("dtype", "foo", "must be one of auto, float16,"),
        ("torch_dtype", "int8", "must be one of auto, float16,"),
    ],
)
def test_a_field_of_another_kind_is_named(name: str, value: Any, rule: str) -> None:
    fake_model(Path("m"), **{name: value})
    assert problem("m").startswith(f"model.path: {name} in m/config.json {rule}")


def test_fields_that_transformers_takes_pass() -> None:
    fake_model(Path("m"), eos_token_id=[2, 3], rope_theta=10000, torch_dtype="torch.bfloat16", sliding_window=None)
    check("m")


_ROPE = "must be one of transformers' types of rotary positions"


@pytest.mark.parametrize(
    ("rope", "rule"),
    [
        ("linear", "rope_scaling in m/config.json must be an object, got linear"),
        ({"type": "foo", "factor": 2.0}, f"rope_type of rope_scaling in m/config.json {_ROPE}, got foo"),
        ({"rope_type": "yarm"}, f"rope_type of rope_scaling in m/config.json {_ROPE} (did you mean yarn?), got yarm"),
        ({"rope_type": ["yarn"]}, f"rope_type of rope_scaling in m/config.json {_ROPE}"),
        ({"type": "linear"}, "rope_scaling in m/config.json must say factor for linear, got nothing"),
        ({"rope_type": "llama3", "factor": 2.0}, "rope_scaling in m/config.json must say low_freq_factor for llama3"),
    ],
)
def test_scaled_positions_that_cannot_be_computed_are_named(rope: Any, rule: str) -> None:
    fake_model(Path("m"), rope_scaling=rope)
    assert problem("m").startswith(f"model.path: {rule}")


def test_scaled_positions_that_can_be_computed_pass() -> None:
    for rope in ({"type": "linear", "factor": 2}, {"rope_type": "default"}, {"full": {"rope_type": "default"}}):
        fake_model(Path("m"), rope_scaling=rope)
        check("m")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_what_is_no_file_is_said(name: str) -> None:
    fake_model(Path("m"))
    file = Path("m") / name
    file.unlink()
    shown = file if name == "config.json" else name
    file.symlink_to("gone")
    assert problem("m").startswith(f"model.path: {shown} must be a file, is a link to gone, which is not there, got m")
    file.unlink()
    os.mkfifo(file)
    assert problem("m").startswith(f"model.path: {shown} must be a file, is neither file nor directory, got m")
    file.unlink()
    file.mkdir()
    assert problem("m").startswith(f"model.path: {shown} must be a file, is a directory, got m")


def test_chat_counts_tokens_before_torch_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    fake_model(Path("m"), max_position_embeddings=64)
    with pytest.raises(UserError, match=r"^conversation: must be shorter than the model's 64 tokens, got 7\d$"):
        chat("m", prompt="a" * 70, temperature=0, max_tokens=None)
    with pytest.raises(UserError, match=r"^--max-tokens: must be below the model's 64 positions, got 64$"):
        chat("m", prompt=None, temperature=0, max_tokens=64)


@pytest.mark.parametrize(("kind", "served"), [("gpt2", False), ("qwen2", True), ("mistral", True)])
def test_adapters_for_a_model_that_vllm_serves_none_for(kind: str, served: bool) -> None:
    """Told before anything starts; merged weights are served for all."""
    transformers = __import__("transformers")
    tokenizer = build_char_tokenizer("".join(map(chr, range(32, 127))))
    sizes = {"hidden_size": 64, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1}
    sizes |= {"num_key_value_heads": 2} if kind != "gpt2" else {}
    settings = transformers.AutoConfig.for_model(kind, vocab_size=len(tokenizer), **sizes)
    transformers.AutoModelForCausalLM.from_config(settings).save_pretrained("model")
    tokenizer.save_pretrained("model")
    merged = {"max_prompt_tokens": 16, "max_response_tokens": 16, "transfer": {"lora": "merged"}}
    check("model", job="grpo", model={"lora": {}}, rollout=merged)
    if served:
        check("model", job="grpo", model={"lora": {}})
    else:
        assert problem("model", job="grpo", model={"lora": {}}) == (
            "rollout.transfer.lora: must be merged for GPT2LMHeadModel, for which vLLM serves no adapters (in bf16 "
            "with max_merge_error), got adapter"
        )


@pytest.mark.parametrize(
    "files",
    [
        {"vocab.json": '{"a": 0}', "source.spm": "\n"},
        {"vocab.json": '{"a": 0}', "sentencepiece.bpe.model": "\n"},
        {"vocab.json": '{"a": 0}', "tokenizer_config.json": '{"tokenizer_class": "Wav2Vec2CTCTokenizer"}'},
        {"rwkv_vocab_v20230424.txt": "1 'a' 1"},
    ],
)
def test_rarer_tokenizers_are_left_to_transformers(files: dict[str, str]) -> None:
    Path("model").mkdir()
    for file, content in ({"tokenizer_config.json": "{}"} | files).items():
        Path("model", file).write_text(content)
    assert _damaged(Path("model")) is None
