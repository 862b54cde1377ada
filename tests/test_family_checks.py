"""What `check` says of models without importing them is what loading them would do: their class, which way they go, and
what cannot be trained."""

import json
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from actors.config import ModelConfig, UserError
from actors.models.class_traits import family_of_class, traits_of
from actors.models.family import Way
from actors.models.load import TokenLogprobs, load_model
from actors.models.similar import padded_share
from actors.models.tokenizer import build_char_tokenizer
from launch.checks.check import examine
from launch.checks.findings import Findings
from launch.checks.report import as_object, model_lines
from launch.config import validate
from launch.models import trained_as
from launch.models.model_classes import Task, class_for, has_linear_score, is_listed, says, traits_in
from launch.models.transformers_source import causal_architectures, known_types, scoring_architectures
from tests.families.not_causal import NOT_CAUSAL
from tests.families.table import FAMILIES, config_of, write

LOADERS: dict[Task, Any] = {
    "CausalLM": AutoModelForCausalLM,
    "SequenceClassification": AutoModelForSequenceClassification,
}
LISTED = {"CausalLM": causal_architectures, "SequenceClassification": scoring_architectures}
EITHER = ("lfm2", "minimax_m3_vl_text")
"""Kinds of which the layers are all attention, or some are not, by what no constant in their classes says."""
BESIDE_TEXT = (
    *("gemma3 with vision", "gemma4 with vision", "llama4 with vision", "qwen3_5 with vision", "git", "got_ocr2"),
    *("qwen3_5_moe with vision", "qwen4_exp with vision", "mllama", "phi4_multimodal", "gemma4_unified with vision"),
)
"""Models that read images, too: these are refused whole."""


def loaded_class(kind: str, task: Task) -> Any:
    """The class that is made of a configuration of this kind; None where there is none."""
    found = LOADERS[task]._model_mapping.get(CONFIG_MAPPING[kind], None)
    return found[0] if isinstance(found, tuple) else found


@pytest.mark.parametrize("task", LOADERS)
def test_a_class_is_found_and_read_as_it_is(task: Task) -> None:
    for kind in LISTED[task]():
        place, loaded = class_for(kind, task), loaded_class(kind, task)
        assert place is not None and loaded is not None
        assert place.name == loaded.__name__
        assert traits_in(place) == traits_of(loaded)
        for switch in ("supports_gradient_checkpointing", "_supports_flex_attn", "_can_compile_fullgraph"):
            assert says(place, switch) == bool(getattr(loaded, switch)), (kind, switch)


@pytest.mark.parametrize("task", LOADERS)
def test_what_transformers_does_not_list_is_known(task: Task) -> None:
    kinds = sorted(known_types())
    assert len(kinds) > 300
    assert [is_listed(kind, task) for kind in kinds] == [loaded_class(kind, task) is not None for kind in kinds]
    assert is_listed("no_such", task) is None


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in BESIDE_TEXT])
def test_a_score_layer_is_read_as_it_is(name: str) -> None:
    kind = config_of(name).model_type
    place = class_for(kind, "SequenceClassification")
    assert (place is None) == (loaded_class(kind, "SequenceClassification") is None)
    if place is None:
        return
    try:
        with torch.device("meta"):
            model = AutoModelForSequenceClassification.from_config(config_of(name))
    except (ValueError, TypeError, AttributeError) as error:  # not one of them can be built for scores
        pytest.skip(f"transformers cannot build it: {error}")
    assert has_linear_score(place) == isinstance(getattr(model, "score", None), torch.nn.Linear)


def by_class(config: Any, task: Task) -> tuple[Way | None, str]:
    """Which way a configuration goes, or why none, by its class."""
    try:
        return family_of_class(LOADERS[task], config).way, ""
    except UserError as error:
        return None, error.problems[0]


def by_source(values: dict[str, Any], task: Task) -> tuple[Way | None, str]:
    """The same by the source of its class."""
    model = ModelConfig(path="x")
    try:
        if task == "CausalLM":
            family = trained_as.causal_family(values, model)
        else:
            family = trained_as.scoring_family(values, model, "x", "model.path")
    except UserError as error:
        return None, error.problems[0]
    assert family is not None
    return family.way, ""


@pytest.mark.parametrize("task", LOADERS)
def test_families_by_their_fields_are_those_of_their_classes(task: Task) -> None:
    """With the few fields that the suite's models give."""
    for name, fields in (FAMILIES | NOT_CAUSAL).items():
        way, why = by_source(deepcopy(fields), task)
        if " has no linear score head, got x" not in why:  # which no configuration says
            assert (way, why) == by_class(config_of(name), task), name


@pytest.mark.parametrize("task", LOADERS)
def test_families_by_their_defaults_are_those_of_their_classes(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    """With no field at all."""
    monkeypatch.setattr("actors.models.unfit.TRIED", known_types())
    for kind in causal_architectures():
        if kind in (*EITHER, "musicgen", "musicgen_melody"):  # which have no defaults
            continue
        way, why = by_source({"model_type": kind}, task)
        if " has no linear score head, got x" not in why:
            assert (way, why) == by_class(CONFIG_MAPPING[kind](), task), kind


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    rows = [{"prompt": "abcd" * n, "completion": "ba" * n, "answer": "a"} for n in (1, 1, 2, 6)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = {"prompt": "ab", "chosen": "ba", "rejected": "ab"}
    Path("pairs.jsonl").write_text(4 * (json.dumps(pairs) + "\n"))
    return tmp_path


def model_in(directory: Path, name: str, **fields: Any) -> str:
    """The path of a written model with a tokenizer; `fields` go into its config.json."""
    write(name, directory)
    build_char_tokenizer("abcdefgh").save_pretrained(directory)
    file = directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))
    return str(directory)


SFT: dict[str, Any] = {"algorithm": {"name": "sft", "steps": 2, "samples_per_update": 2}}
REWARD: dict[str, Any] = {
    "algorithm": {"name": "reward", "steps": 2, "samples_per_update": 2},
    "data": {"train": "pairs.jsonl", "max_length": 64},
}
PPO: dict[str, Any] = {
    "algorithm": {"name": "ppo", "steps": 2, "prompts_per_step": 2},
    "data": {"train": "rows.jsonl"},
    "reward": {"functions": ["exact_match"]},
    "rollout": {"max_prompt_tokens": 32, "max_response_tokens": 16, "gpus_per_engine": 1},
    "cluster": {"cpus": 4, "gpus": 1},
    "critic": {},
}
GRPO = {name: section for name, section in PPO.items() if name != "critic"} | {
    "algorithm": {"name": "grpo", "steps": 2, "prompts_per_step": 2}
}


def check(path: str, job: dict[str, Any], **sections: Any) -> Findings:
    """What `check` finds out about a job with this model."""
    values = {"data": {"train": "rows.jsonl", "max_length": 64}, "cluster": {"cpus": 4}, "model": {"path": path}} | job
    for name, section in sections.items():
        values[name] = values.get(name, {}) | section
    return examine(validate(values))


def problems(path: str, job: dict[str, Any], **sections: Any) -> list[str]:
    """Why it is refused; empty where it is not."""
    try:
        check(path, job, **sections)
    except UserError as error:
        return list(error.problems)
    return []


@pytest.mark.parametrize("name", [*FAMILIES, *NOT_CAUSAL])
def test_every_family_passes_or_is_refused_as_it_would_be_when_it_is_loaded(name: str, here: Path) -> None:
    longest = json.loads(Path(model_in(here / "model", name), "config.json").read_text()).get("max_position_embeddings")
    lengths = {"max_length": min(64, longest)} if isinstance(longest, int) else {}
    lengths |= {"overlong": "drop"}
    jobs: list[tuple[dict[str, Any], Task]] = [(SFT, "CausalLM"), (REWARD, "SequenceClassification")]
    for job, task in jobs:
        found = problems("model", job, data=job.get("data", {"train": "rows.jsonl"}) | lengths)
        expected = by_source(json.loads(Path("model/config.json").read_text()), task)[1]
        by_architecture = f"model.path: must be a causal language model for {job['algorithm']['name']}"
        if name in BESIDE_TEXT:
            assert len(found) == 1 and found[0].startswith(f"{by_architecture}, not one of images")
        elif found and found[0].startswith(by_architecture):
            assert len(found) == 1 and expected
        else:
            assert found == ([expected.replace("got x", "got model")] if expected else [])


@pytest.mark.parametrize("kind", ["qwen2", "mistral sliding"])
def test_biases_are_asked_for_only_where_a_class_reads_the_field(kind: str, here: Path) -> None:
    path = model_in(here / "model", kind, attention_bias=True, mlp_bias=True)
    load_model(ModelConfig(path=path), path)
    assert problems(path, SFT) == []


@pytest.mark.parametrize(
    ("kind", "name", "value", "rule"),
    [
        ("cohere", "logit_scale", 1, "float"),
        ("glm4_moe", "routed_scaling_factor", 1, "float"),
        ("llama4 text", "attn_temperature_tuning", 4, "bool"),
    ],
)
def test_a_field_of_another_type_than_declared_is_refused(
    kind: str, name: str, value: int, rule: str, here: Path
) -> None:
    path = model_in(here / "model", kind, **{name: value})
    assert problems(path, SFT) == [f"model.path: {name} in config.json must be of type {rule}, got {value}"]
    with pytest.raises(UserError, match=rf"^model.path: config.json must be as transformers reads it, got .*{name}"):
        load_model(ModelConfig(path=path), path)


def test_a_configuration_that_its_class_refuses_is_one_line(here: Path) -> None:
    path = model_in(here / "model", "olmo_hybrid", layer_types=["full_attention", "full_attention"])
    with pytest.raises(UserError, match=r"^model.path: config.json must be as transformers reads it, got .*OLMoHybrid"):
        load_model(ModelConfig(path=path), path)


def test_rows_of_the_models_own_are_told_with_their_padding(here: Path) -> None:
    found = check(model_in(here / "hybrid", "qwen3_next"), SFT)
    assert len(found.lengths) == 4
    share = padded_share(found.lengths)
    assert 0 < share < 0.5
    assert model_lines(found) == [
        f"model: has layers of linear_attention, so each sequence has a row of its own (about {share:.0%} padding), "
        f"and prompts are not shared"
    ]
    assert as_object(found)["model"] == {"way": "rows", "why": "has layers of linear_attention", "padding": share}
    pairs = check("hybrid", REWARD)
    assert pairs.mean_tokens == sum(pairs.lengths[:2])  # both sequences of a pair, each with its row
    assert len(pairs.lengths) == 8 and pairs.family is not None and pairs.family.way == "rows"
    packed = check(model_in(here / "dense", "llama"), SFT)
    assert model_lines(packed) == []
    assert as_object(packed)["model"] == {"way": "packed", "why": "", "padding": None}


@pytest.mark.parametrize("name", ["longrope phi3", "longrope phi3 old fields", "qwen3 dynamic"])
def test_positions_that_lengths_decide_are_told_where_no_engine_fixes_them(name: str, here: Path) -> None:
    path = model_in(here / "model", name)
    found = check(path, SFT, data={"overlong": "drop", "max_length": 32})
    assert found.family == TokenLogprobs(load_model(ModelConfig(path=path), path)).body.family
    assert model_lines(found)[0].startswith("model: has rotary positions that depend on a sequence's length, so each")
    short = {"max_prompt_tokens": 8, "max_response_tokens": 8}
    assert model_lines(check(path, GRPO, data={"overlong": "drop"}, rollout=short)) == []


def test_of_responses_no_length_is_known(here: Path) -> None:
    found = check(model_in(here / "hybrid", "qwen3_next"), GRPO)
    assert found.lengths == []
    assert "each sequence has a row of its own, and prompts are not shared" in model_lines(found)[0]


def test_a_cut_row_is_as_long_as_it_is_read(here: Path) -> None:
    found = check(model_in(here / "m", "mamba"), SFT, data={"max_length": 20, "overlong": "truncate"})
    assert max(found.lengths) == 20


def test_padding_is_counted_as_rows_are_made() -> None:
    assert padded_share([10, 10, 12]) == pytest.approx(1 - 32 / 36)
    assert padded_share([10, 100, 10]) == 0


def test_no_torch_is_needed(here: Path) -> None:
    model_in(here / "model", "qwen3_5 text")
    program = (
        "import sys; from launch.cli import main; "
        "code = main(['check', 'job.json']); print(code, {'torch', 'ray'} & sys.modules.keys())"
    )
    job = SFT | {"data": {"train": "rows.jsonl", "max_length": 64}, "cluster": {"cpus": 4}, "model": {"path": "model"}}
    Path("job.json").write_text(json.dumps(job))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "model: has layers of linear_attention, so each sequence" in done.stdout
    assert done.stdout.endswith("0 set()\n")


def test_a_refusal_names_the_setting_of_its_model(here: Path) -> None:
    """The critic starts from the policy unless it has a path, or a single reward model, of its own."""
    lacking = "must be a model that transformers has for SequenceClassification, got a"
    apertus, mamba = model_in(here / "apertus", "apertus"), model_in(here / "mamba", "mamba")
    llama = model_in(here / "llama", "llama")
    assert problems(apertus, PPO) == [f"critic.path: {lacking} apertus"]
    assert problems(llama, PPO, critic={"path": mamba}) == [f"critic.path: {lacking} mamba"]
    assert problems(llama, PPO) == []
    assert problems(mamba, REWARD) == [f"model.path: {lacking} mamba"]
    scores = {"architectures": ["CTRLForSequenceClassification"]}
    ctrl = model_in(here / "ctrl", "ctrl", **scores)
    [told] = problems(llama, GRPO, reward={"models": [{"path": ctrl}]})
    assert told == f"reward.models.0.path: CTRLForSequenceClassification has no linear score head, got {ctrl}"


@pytest.mark.parametrize(
    ("name", "settings", "told"),
    [
        ("xlstm", {"dtype": "bf16"}, "model.dtype: must be fp32 for a model whose code in transformers fails in bf16"),
        ("jetmoe", {"gradient_checkpointing": True}, "model.gradient_checkpointing: must be false for a jetmoe, whose"),
        ("gpt_oss", {"attention": "flash_attention_2", "dtype": "bf16"}, "model.attention: must be auto for a model "),
    ],
)
def test_settings_that_a_family_lacks_are_refused(name: str, settings: dict[str, Any], told: str, here: Path) -> None:
    path = model_in(here / "model", name)
    [found] = problems(path, SFT, model=settings, policy={"zero_stage": 1, "gpus_per_rank": 1}, cluster={"gpus": 1})
    assert found.startswith(told)
    assert problems(path, SFT, policy={"zero_stage": 1, "gpus_per_rank": 1}, cluster={"gpus": 1}) == []


def test_kinds_that_nobody_has_tried(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = model_in(here / "model", "llama")
    for module in ("actors.models.unfit", "launch.checks.check"):
        monkeypatch.setattr(f"{module}.TRIED", frozenset())
    assert (
        check(path, SFT).warnings[-1].startswith("model.path: llama is of a kind that Tandem does not know: the run ")
    )
    told = ": must be at most 2 for a llama, which Tandem does not know and tries first, got 3"
    assert problems(path, SFT, policy={"zero_stage": 3}) == [f"policy.zero_stage{told}"]
    assert problems(path, GRPO, algorithm={"kl_coef": 0.1}, reference={"zero_stage": 3}) == [
        f"reference.zero_stage{told}"
    ]
    assert problems(path, REWARD) == ["model.path: must be of a kind that Tandem knows to give scores, got a llama"]


def test_positions_are_those_that_a_model_has(here: Path) -> None:
    """GPT-2 calls them n_positions, and dynamic positions are made for more of them."""
    name = "must not exceed the model's max_position_embeddings"
    short = model_in(here / "gpt2", "gpt2", n_positions=48)
    assert problems(short, SFT) == [f"data.max_length: {name} (48), got 64"]
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    dynamic = model_in(here / "dynamic", "llama", max_position_embeddings=48, rope_parameters=rope)
    assert problems(dynamic, SFT) == []
    assert problems(dynamic, SFT, data={"max_length": 100}) == [f"data.max_length: {name} (96), got 100"]
