"""The tree of settings, what `tandem help` says of them, and docs/settings.md."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from actors.config import UserError
from launch.cli import main
from launch.config import RunConfig
from launch.settings.readers import READ_BY, readers
from launch.settings.tree import Setting, by_path, choices_of, generic, jobs, range_text, settings, type_text
from launch.verbs.help import help_text, settings_markdown

ROOT = Path(__file__).resolve().parent.parent
SAMPLED: dict[str, Any] = {"reward": {"functions": ["exact_match"]}}
BASES: dict[str, dict[str, Any]] = {
    "sft": {"algorithm": {"steps": 5}},
    "reward": {"algorithm": {"steps": 5}},
    "dpo": {"algorithm": {"steps": 5}},
    "grpo": {"algorithm": {"kl_coef": 0.1, "eval_every": 5}, **SAMPLED},
    "ppo": {"algorithm": {"kl_in": "loss", "kl_estimator": "k3", "eval_every": 5}, "critic": {}, **SAMPLED},
    "embedding": {"algorithm": {"steps": 5, "pooling": "mean"}},
    "reranker": {"algorithm": {"steps": 5}},
}
"""Job -> what it needs, beside a model and data."""
READ_BY_ALL = ("model.attention", "model.init.max_positions")
"""Settings of which some jobs refuse a value, but not the setting."""


def test_page_of_settings_is_current() -> None:
    page = (ROOT / "docs/settings.md").read_text(encoding="utf-8")
    assert page == settings_markdown(), "make it again: tandem help --markdown > docs/settings.md"


def test_every_setting_says_what_it_is() -> None:
    assert [item.path for item in settings() if not item.text] == []
    assert len(by_path()) > 300


def test_items_of_lists_and_mappings_have_names() -> None:
    assert generic("reward.models.0.group.ranks") == "reward.models.N.group.ranks"
    assert generic("algorithm.tasks.nli.weight") == "algorithm.tasks.NAME.weight"
    [ranks] = by_path()["reward.models.N.group.ranks"]
    assert (type_text(ranks), range_text(ranks)) == ("whole number", "above 0, at most 100000")


def test_help_says_what_a_field_takes_and_who_reads_it() -> None:
    assert help_text("policy.optimizer.lr").splitlines() == [
        "policy.optimizer.lr",
        "  Peak learning rate.",
        "  type     number",
        "  range    at least 0, at most 100",
        "  default  1e-06",
        "  read by  all jobs",
    ]
    assert "  default  9e-06\n  read by  ppo" in help_text("critic.optimizer.lr")
    text = help_text("data.max_length")
    assert "  read by  sft, reward, dpo\n".strip() in text
    assert "  read by  ppo, grpo (with loss clip or gspo)" in help_text("algorithm.clip_low")
    assert "  read by  grpo (with advantage group)" in help_text("algorithm.normalize_std")
    assert "  read by  ppo\n" in help_text("algorithm.gamma") + "\n"


def test_help_lists_the_fields_of_a_section() -> None:
    lines = help_text("tracking").splitlines()
    assert lines[:4] == ["tracking", "  Metrics and samples.", "  read by  all jobs", "  fields of tracking:"]
    assert "    project            Weights & Biases project." in lines
    assert "algorithm.loss.N" in help_text("algorithm.loss") and "one of clip, gspo" in help_text("algorithm.loss")


def test_help_knows_names_of_other_projects_and_parts_of_ours() -> None:
    assert help_text("per_device_train_batch_size").startswith(
        "per_device_train_batch_size: here algorithm.samples_per_update; rows of one update over all ranks"
    )
    assert help_text("fp16") == "fp16: there is none: model.dtype is fp32 or bf16"
    assert help_text("lr").startswith("policy.optimizer.lr\n  Peak")
    with pytest.raises(UserError, match=r"^help: must be a setting, a section or a verb \(did you mean ranks\?\), got"):
        help_text("policy.rank")


def test_the_verb_help(capsys: pytest.CaptureFixture[str]) -> None:
    def printed(*words: str) -> str:
        assert main(["help", *words]) == 0
        return capsys.readouterr().out

    assert printed().startswith("usage: tandem VERB ...")
    assert printed("check").startswith("usage: tandem check [-h]")
    both = printed("data")
    assert both.startswith("usage: tandem data [-h]") and "\n  fields of data:\n" in both
    assert printed("rollout.top_p") == help_text("rollout.top_p") + "\n"
    assert printed("--markdown") == settings_markdown()
    assert main(["help", "rollout.top_q"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line == "error: help: must be a setting, a section or a verb (did you mean top_p?), got rollout.top_q"


ARGUMENTS = {
    "run": "CONFIG: required, a YAML file, such as configs/own-task.yaml, got nothing (see tandem run --help)",
    "export": "RUN: required, got nothing (see tandem export --help)",
    "check job.yaml --learning_rate 1e-5": "--learning_rate: no option, but a setting (here: policy.optimizer.lr), to "
    "be written field=value, got --learning_rate",
    "run job.yaml --seed=3": "--seed: no option, but a setting (did you mean run.seed or model.init.seed?), to be "
    "written field=value, got --seed=3",
    "run policy.ranks=2": "config file: cannot be read (No such file or directory), got policy.ranks=2 (CONFIG comes "
    "first, overrides after it)",
}


@pytest.mark.parametrize("words", ARGUMENTS)
def test_wrong_arguments_are_one_line(capsys: pytest.CaptureFixture[str], words: str) -> None:
    assert main(words.split()) == 2
    assert capsys.readouterr().err == f"error: {ARGUMENTS[words]}\n"


def test_a_line_is_one_line_for_any_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "a\nb\x1b[31m\udcff.yaml"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert main(["check", "x" * 100_000]) == 2
    assert len(capsys.readouterr().err) < 2100


ONLY_WITH_ANOTHER = {
    "model.lora.dropout": {"dpo"},  # in a loss without a reference
    "model.lora.dora": {"grpo", "ppo"},  # with rollout.transfer.lora merged
}
"""Setting -> jobs that take it only with another setting, which is not tried here."""


def test_jobs_read_what_they_do_not_refuse() -> None:
    """Every setting is tried in every job with a value that is not its default."""
    wrong = {}
    for path, [setting, *_] in by_path().items():
        if path.split(".")[0] == "algorithm" or {"N", "NAME"} & {*path.split(".")} or path in READ_BY_ALL:
            continue
        taking = accepting(setting)
        read = {*readers(path)} - ONLY_WITH_ANOTHER.get(path, set())
        if taking is not None and taking != read:
            wrong[path] = f"read by {', '.join(sorted(taking))}"
    assert wrong == {}, "launch/settings/readers.py says otherwise"
    assert {*READ_BY} <= {*by_path()}


def accepting(setting: Setting) -> set[str] | None:
    """Jobs that take a value; None if none does: it needs another setting."""
    for value in values_for(setting):
        refused = {job: refuses(job, setting.path, value) for job in BASES}
        if None not in refused.values() and not all(refused.values()):
            return {job for job, told in refused.items() if not told}
    return None


def values_for(setting: Setting) -> Iterator[Any]:
    """Values to try, none of them the default."""
    default = None if setting.required else setting.field.get_default(call_default_factory=True)
    words = type_text(setting)
    if choices := choices_of(setting.field.annotation):
        yield from [choice for choice in choices if choice != default][:1]
    elif "true or false" in words:
        yield default is not True
    elif "number" in words and "list" not in words and "mapping" not in words:
        yield from [value for value in (3, 0.25, 7000) if value != default]
    elif words.startswith("text") or words == "list of texts":
        yield ["x"] if words.startswith("list") else "x"
    elif words.startswith("mapping"):
        yield from ({"x": "y"}, {"x": 1})


def refuses(job: str, path: str, value: Any) -> bool | None:
    """Whether the job refuses the value by a rule of its own; None if it is none for the field."""
    values: dict[str, Any] = {name: dict(section) for name, section in BASES[job].items()}
    values["algorithm"]["name"] = job
    values |= {"model": {"init": {}}, "data": {"train": "x.jsonl", "eval": "y.jsonl"}}
    section = values
    *parents, leaf = path.split(".")
    for name in parents:
        section = section.setdefault(name, {})
    section[leaf] = value
    try:
        RunConfig.model_validate(values)
    except ValidationError as error:
        return True if error.errors()[0]["type"] == "value_error" else None
    return False


def test_jobs_of_the_tree_are_those_there_are() -> None:
    assert {*jobs()} == {*BASES}
