"""Names and values of other projects: every entry leads to a setting that there is, and hints are sane."""
# ruff: noqa: E501

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from actors.config import UserError
from launch.config import validate
from launch.peers import tables
from launch.settings.names import hint, value_hint
from launch.settings.tree import by_path, jobs, type_text

ROOT = Path(__file__).resolve().parent.parent
SECTIONS = "|".join(name for name in by_path() if "." not in name)
GRPO: dict[str, Any] = {
    "algorithm": {"name": "grpo"},
    "model": {"init": {}},
    "data": {"train": "x.jsonl"},
    "reward": {"functions": ["exact_match"]},
}


def fields_in(text: str) -> set[str]:
    """Dotted names of ours that a text mentions."""
    return set(re.findall(rf"\b(?:{SECTIONS})(?:\.[a-z_]+)+", text)) - {"path.py"}


@pytest.mark.parametrize("peer", tables.PEERS)
def test_every_entry_leads_to_a_setting_that_there_is(peer: str) -> None:
    known = {*by_path()}
    entries = tables.entries(tables.PEERS[peer])
    assert [entry for entry in entries if not {*entry.ours, *fields_in(entry.note)} <= known] == []
    assert [entry.names for entry in entries if not entry.ours and not entry.note] == [], "none, but not why"
    names = [name for entry in entries for name in entry.names]
    assert [name for name in names if name != tables.plain(name)] == []
    assert sorted(set(names)) == sorted(names)
    assert len(names) >= 150


def test_every_value_leads_to_one_that_there_is() -> None:
    for (field, name), ours in tables.by_value().items():
        assert field in by_path(), field
        assert fields_in(ours) <= {*by_path()}, ours
        for given in re.findall(r"algorithm=(\{.*?\})", ours):
            values = yaml.safe_load(given)
            steps = {} if values["name"] in ("grpo", "ppo") else {"steps": 1}
            assert jobs()[values["name"]].model_validate(values | steps), name
        if not ours.startswith(("- ", "algorithm=")):
            choices = " ".join(type_text(item) for item in by_path()[field])
            [first, *_] = ours.split(" ")
            assert first.strip(",") in choices.replace(",", " ").split(), (field, ours)


HINTS = {
    "lr": "(did you mean policy.optimizer.lr?)",
    "seed": "(did you mean run.seed or model.init.seed?)",
    "policy.lr": "(did you mean policy.optimizer.lr?)",
    "algorithm.seed": "(did you mean run.seed or model.init.seed?)",
    "model.top_p": "(did you mean rollout.top_p?)",
    "algorithm.temperature": "(did you mean rollout.temperature?)",
    "algorithm.gamma": "(algorithm.gamma is a field for ppo)",
    "algorithm.beta": "(here: algorithm.kl_coef; kl_coef for grpo, beta for dpo)",
    "eval_steps": "(here: algorithm.eval_every; updates (RL: steps) between evaluations)",
    "--learning-rate": "(here: policy.optimizer.lr)",
    "learningRate": "(here: policy.optimizer.lr)",
    "actor_rollout_ref.rollout.n": "(here: algorithm.samples_per_prompt)",
    "+actor_rollout_ref.actor.optim.lr": "(here: policy.optimizer.lr)",
    "rollout.n": "(here: algorithm.samples_per_prompt)",
    "micro_train_batch_size": "(here: policy.micro_batch_tokens; passes are by tokens)",
    "actor.model_name_or_path": "(here: model.path)",
    "fp16": "(there is none: model.dtype is fp32 or bf16)",
    "policy.rank": "(did you mean ranks?)",
    "rollout.temprature": "(did you mean temperature?)",
    "optimizer": "(here: policy.optimizer.name; adamw, adam or sgd)",
    "actor_rollout_ref.actor.fsdp_config.unheard_of": "(here: policy.zero_stage; and policy.offload_optimizer; DeepSpeed trains)",
    "dataa": "(did you mean data?)",
    "policy.offload": "(did you mean policy.offload_optimizer or policy.offload_parameters?)",
    "rollout.max_tokens": "(here: rollout.max_response_tokens)",
    "rollout.n_samples": "(here: algorithm.samples_per_prompt)",
    "data.file": "(here: data.train)",
    "data.path": "(here: data.train)",
    "model.name_or_path": "(here: model.path)",
    "adapter": "(here: model.lora; {} takes the defaults; for qlora also model.quantize: nf4)",
    "learning_ratte": "(here: policy.optimizer.lr)",
}


@pytest.mark.parametrize("name", HINTS)
def test_a_name_leads_to_ours(name: str) -> None:
    assert hint(name, "grpo").strip() == HINTS[name]


@pytest.mark.parametrize("name", ["trainer", "steppes", "tracker.zzz", "a" * 100_000, "trainer.zzz"])
def test_what_is_not_alike_gets_no_name(name: str) -> None:
    assert hint(name, "grpo").startswith(" (there are algorithm, model, data")


def test_without_anything_alike_the_fields_of_the_section_are_listed() -> None:
    assert hint("tracking.zzz").startswith(" (tracking has wandb, tensorboard, project")
    assert hint("policy.optimizer.zzz.yyy").startswith(" (policy.optimizer has name, lr, betas")
    assert hint("algorithm.zzz", "grpo").endswith(" and more, see tandem help algorithm)")


def test_lines_about_foreign_settings() -> None:
    """One for each that is known; a section of which nothing is known is one."""
    given = {"trainer": {"total_epochs": 3, "logger": ["console"], "zzz": 1}, "foo": {"bar": 1, "baz": 2}, "lr": 1}
    with pytest.raises(UserError) as caught:
        validate({**GRPO, **given})
    assert [line.partition(":")[0] for line in caught.value.problems] == [
        "trainer.total_epochs",
        "trainer.logger",
        "foo",
        "lr",
    ]


def test_many_foreign_settings_are_not_all_told() -> None:
    with pytest.raises(UserError) as caught:
        validate({**GRPO, **{f"foreign_{number}": 1 for number in range(500)}})
    assert len(caught.value.problems) == 41
    assert caught.value.problems[-1] == "config: unknown fields, too many to name them all, got 500 or more"


VALUES = {
    ("algorithm.name", "reinforce++"): "(here: algorithm={name: grpo, advantage: reinforce_pp})",
    ("algorithm.name", "rloo"): "(here: algorithm={name: grpo, advantage: leave_one_out})",
    ("algorithm.name", "orpo"): "(here: algorithm={name: dpo, loss: orpo})",
    ("algorithm.name", "SFTTrainer"): "(here: sft)",
    ("algorithm.name", "rm"): "(here: algorithm={name: reward})",
    ("critic.optimizer.name", "adamw_torch_fused"): "(here: adamw)",
    ("model.dtype", "float16"): "(there is none: bf16 and fp32 are supported)",
    ("model.attention", "eager"): "(here: packed_sdpa or auto)",
    ("policy.optimizer.schedule", "cosine_with_restarts"): "(here: cosine or cosine_with_min_lr)",
    ("model.quantize", True): "(here: nf4)",
}


@pytest.mark.parametrize(("field", "value"), VALUES)
def test_a_value_leads_to_ours(field: str, value: object) -> None:
    assert value_hint(field, value).strip() == VALUES[field, value]


def test_the_page_for_migrating_is_that_of_the_table() -> None:
    page = (ROOT / "docs/migrating.md").read_text(encoding="utf-8")
    assert page == tables.migrating_markdown(), "make it again: tandem help --migrating > docs/migrating.md"
    assert len(tables.by_name()) >= 1000


def test_the_tables_are_read_only_where_there_is_a_mistake() -> None:
    code = (
        "import sys; from launch.config import validate; "
        f"validate({GRPO!r}); print([m for m in sys.modules if m.startswith(('launch.peers', 'launch.settings.names'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr
