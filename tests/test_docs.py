"""What README, docs/, configs/ and examples/ say is what there is: files, commands, settings, the example task."""

import argparse
import json
import re
import shlex
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from actors.config import LoraConfig, UserError
from actors.config_rollout import TransferConfig
from algorithms.config import RewardConfig, RewardFunction
from algorithms.config_encoder import (
    EmbeddingConfig,
    EmbeddingLoss,
    EmbeddingTask,
    EncoderConfig,
    MixedTask,
    Prompts,
    RerankerConfig,
    RerankerLoss,
)
from algorithms.config_offline import DPOConfig, PreferenceLoss, RewardModelConfig
from algorithms.config_rl import GRPOConfig, ImportanceCorrection, PPOConfig, RLConfig
from algorithms.encoder import columns as encoder_columns
from algorithms.rewards.calls import Samples
from algorithms.rewards.scores import load_sources, score_batch
from launch.checks.check import preflight
from launch.cli import VERBS
from launch.config import RunConfig, load, validate
from launch.settings.file import parse

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
ALGORITHMS = (ROOT / "docs/algorithms.md").read_text(encoding="utf-8")
EMBEDDING = (ROOT / "docs/embedding.md").read_text(encoding="utf-8")
CLUSTERS = "".join((ROOT / name).read_text(encoding="utf-8") for name in ("docs/clusters.md", "k8s/README.md"))
CONFIGS = sorted(path.name for path in (ROOT / "configs").glob("*.yaml"))
MOST_LINES = 12
DOCUMENTED = {
    ALGORITHMS: (RLConfig, PPOConfig, GRPOConfig, DPOConfig, RewardModelConfig, RewardConfig, LoraConfig),
    EMBEDDING: (EncoderConfig, EmbeddingConfig, EmbeddingTask, MixedTask, Prompts, RerankerConfig),
}
"""Text of a document -> the settings that it explains."""
SECTIONS = [(config, text) for text, configs in DOCUMENTED.items() for config in configs]


def files_in_tree(package: str) -> list[str]:
    """Modules that README's tree lists below `package/`."""
    [part] = re.findall(rf"^{package}/  .*\n((?:  .*\n)+)", README, re.MULTILINE)
    return re.findall(r"(?:^|  )(\w+\.py)  ", part, re.MULTILINE)


def commands() -> list[list[str]]:
    """Every tandem command with a configuration in README and docs, split into words."""
    verbs = ("run", "check", "data", "submit", "k8s")
    return [
        line
        for line in words_of_commands(README + ALGORITHMS + EMBEDDING + CLUSTERS)
        if len(line) > 2 and line[1] in verbs and line[2] != "CONFIG"
    ]


def words_of_commands(text: str) -> list[list[str]]:
    """Every tandem command in `text`, split into words."""
    joined = re.sub(r"\\\n\s*", "", text)
    lines = re.findall(r"^tandem .*|(?<=`)tandem [^`]+", joined, re.MULTILINE)
    return [shlex.split(line, comments=True) for line in lines]


@pytest.fixture
def at_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the repository, with no cluster to join and the hub allowed, as on a fresh machine."""
    monkeypatch.chdir(ROOT)
    for name in ("RAY_ADDRESS", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("package", ["launch", "launch/jobs", "launch/kube", "algorithms", "actors"])
def test_the_tree_names_every_module_once(package: str) -> None:
    there = sorted(path.name for path in (ROOT / package).glob("*.py") if path.name != "__init__.py")
    assert sorted(files_in_tree(package)) == there
    assert not (ROOT / package / "__init__.py").read_text(), "README says that every __init__.py is empty"


def test_files_that_the_docs_name_exist() -> None:
    folders = "configs|docs|examples|benchmarks|requirements|launch|algorithms|actors|tests"
    named = set(re.findall(rf"\b(?:{folders})/[\w./-]*\w", README + ALGORITHMS + EMBEDDING + CLUSTERS))
    places = (ROOT, ROOT / "k8s")  # k8s/README.md names its own examples
    assert [name for name in sorted(named) if not any((place / name).exists() for place in places)] == []
    assert {f"configs/{name}" for name in CONFIGS} - named == set()


def test_readme_shows_every_verb() -> None:
    assert set(re.findall(r"^\| `tandem (\w+)", README, re.MULTILINE)) == set(VERBS)


@pytest.mark.usefixtures("at_root")
@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_a_command_of_readme_is_valid(command: list[str]) -> None:
    config, *rest = command[2:]
    overrides = [word for word in rest if "=" in word]
    assert isinstance(load(config, overrides), RunConfig)


@pytest.mark.parametrize("verb", ["mine", "search"])
def test_commands_on_embedding_models_have_arguments_that_there_are(verb: str) -> None:
    """In commands and in the text about them."""
    parser = argparse.ArgumentParser(exit_on_error=False, allow_abbrev=False)
    VERBS[verb].declare(parser)
    found = [line[2:] for line in words_of_commands(EMBEDDING) if line[1] == verb]
    assert found
    for words in found:
        parser.parse_intermixed_args(words)
    [section] = re.findall(r"^## Hard negatives.*?(?=^## )", EMBEDDING, re.MULTILINE | re.DOTALL)
    known = {option for name in ("mine", "search") for option in options_of(name)}
    assert set(re.findall(r"--[a-z-]+", section)) <= known


def options_of(verb: str) -> list[str]:
    """Options of a verb, such as --corpus."""
    parser = argparse.ArgumentParser(add_help=False)
    VERBS[verb].declare(parser)
    return [option for action in parser._actions for option in action.option_strings]


def test_the_configuration_in_readme_is_valid_and_short() -> None:
    [text] = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    assert validate(parse(text, "README.md")).algorithm.name == "grpo"
    assert len(text.splitlines()) <= MOST_LINES


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_is_short_and_says_what_it_is_for(name: str) -> None:
    lines = (ROOT / "configs" / name).read_text(encoding="utf-8").splitlines()
    assert len(lines) <= MOST_LINES
    first, second = lines[:2]
    assert first.startswith("# ") and not second.startswith("#")


def choices() -> list[tuple[str, str]]:
    """Values of the settings that take one of several names, with the text that explains them."""
    configs = {
        ALGORITHMS: (RLConfig, PPOConfig, GRPOConfig, DPOConfig, ImportanceCorrection, PreferenceLoss, TransferConfig),
        EMBEDDING: (EmbeddingConfig, EmbeddingTask, EmbeddingLoss, RerankerConfig, RerankerLoss),
    }
    found = {
        (value, text)
        for text, classes in configs.items()
        for config in classes
        for field in config.model_fields.values()
        for value in literals(field.annotation)
    }
    return sorted(found)


def literals(annotation: Any) -> list[str]:
    """Names that a type allows, such as token and sequence of Literal["token", "sequence"] | None."""
    if get_origin(annotation) is Literal:
        return [value for value in get_args(annotation) if isinstance(value, str)]
    return [value for part in get_args(annotation) for value in literals(part)]


@pytest.mark.parametrize(("name", "text"), choices(), ids=[name for name, _ in choices()])
def test_docs_explain_every_choice(name: str, text: str) -> None:
    assert f"`{name}`" in text


@pytest.mark.parametrize(("config", "text"), SECTIONS, ids=[config.__name__ for config, _ in SECTIONS])
def test_docs_explain_every_field(config: type[BaseModel], text: str) -> None:
    missing = [name for name in config.model_fields if f"`{name}`" not in text]
    assert missing == []


@pytest.mark.parametrize("text", DOCUMENTED, ids=["algorithms", "embedding"])
def test_docs_name_the_defaults_that_there_are(text: str) -> None:
    """In the tables below a comment with the class's name: | `field` | default | meaning |."""
    configs = {item.__name__: item for item in DOCUMENTED[text]}
    found = tables(text)
    assert found.keys() == configs.keys()
    for name, rows in found.items():
        for field, shown in rows.items():
            default = configs[name].model_fields[field].get_default(call_default_factory=True)
            assert shown == shown_default(default), f"{name}.{field}"


@pytest.mark.parametrize("config", DOCUMENTED[EMBEDDING], ids=lambda config: config.__name__)
def test_tables_of_embedding_settings_are_complete(config: type[BaseModel]) -> None:
    """A field is in the table of its class, or of one that this class inherits from."""
    found = tables(EMBEDDING)
    shown = {field for parent in config.__mro__ for field in found.get(parent.__name__, {})}
    assert shown | {"name"} >= set(config.model_fields)


def tables(text: str) -> dict[str, dict[str, str]]:
    """Class -> field -> default, as the document shows them."""
    found = re.findall(r"<!-- fields (\w+) -->\n((?:\|.*\n)+)", text)
    return {name: dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", table, re.MULTILINE)) for name, table in found}


@pytest.mark.parametrize(
    "role",
    [value for value in vars(encoder_columns).values() if isinstance(value, encoder_columns.ColumnRole)],
    ids=str,
)
def test_docs_name_every_column_that_embedding_data_may_have(role: encoder_columns.ColumnRole) -> None:
    """Whatever a column may mean."""
    names = [name for columns in role.names for name in columns] + ([f"{role.numbered}_1"] if role.numbered else [])
    assert [name for name in names if f"`{name}`" not in EMBEDDING] == []


def shown_default(value: Any) -> str:
    """A default as the tables show it."""
    if isinstance(value, list) and value and isinstance(value[0], PreferenceLoss | EmbeddingLoss | RerankerLoss):
        return value[0].name
    if isinstance(value, BaseModel):
        return "{}"
    if value is PydanticUndefined:
        return "required"
    if value is None:
        return "none"
    return json.dumps(value).strip('"') or '""'


@pytest.mark.usefixtures("at_root")
def test_the_example_reward_scores_the_example_rows() -> None:
    [score] = load_sources(RewardConfig(functions=[RewardFunction(name="examples/my_reward.py:score")]))
    rows = [json.loads(line) for line in (ROOT / "examples/own_task.jsonl").read_text().splitlines()]
    answers = [row["answer"] for row in rows]

    def rewards(completions: list[str]) -> list[float]:
        prompts = [row["prompt"] for row in rows]
        samples = Samples(prompts=prompts, completions=completions, columns={"answer": answers})
        scores = score_batch([score], samples)
        assert [item.error for item in scores] == [None] * len(rows)
        return [item.reward for item in scores]

    assert all(row["answer"] == ("no" if int(row["prompt"]) % 2 else "yes") for row in rows)
    assert rewards(answers) == [1.0] * len(rows)
    assert rewards(["" for _ in rows]) == [0.0] * len(rows)
    assert all(0.5 < reward < 1 for reward in rewards([answer + "n" for answer in answers]))


@pytest.mark.usefixtures("at_root")
def test_the_math_examples_accept_their_own_answers_only() -> None:
    [score] = load_sources(RewardConfig(functions=[RewardFunction(name="math")]))
    rows = [json.loads(line) for line in (ROOT / "examples/math_word_problems.jsonl").read_text().splitlines()]
    answers = [row["answer"] for row in rows]
    samples = Samples(
        prompts=[row["question"] for row in rows] * 2,
        completions=[*answers, *(f"{answer}1" for answer in answers)],
        columns={"answer": answers * 2},
    )
    rewards = [item.reward for item in score_batch([score], samples)]
    assert rewards == [1.0] * len(rows) + [0.0] * len(rows)


@pytest.mark.usefixtures("at_root")
def test_the_example_task_refuses_a_column_that_is_not_there(tmp_path: Path) -> None:
    """The first mistake a user makes with a task of their own is found by `check`."""
    task = tmp_path / "my_task.jsonl"
    task.write_text('{"prompt": "4", "solution": "even"}\n')
    with pytest.raises(UserError, match=r"needs a parameter answer.*got columns prompt, solution"):
        preflight(load("configs/own-task.yaml", [f"data.train={task}", f"run.output={tmp_path}"]))


def test_no_figure_is_left_to_be_filled_in() -> None:
    assert not re.search(r"^(FIGURES|TODO|TBD)\b", README, re.MULTILINE)
