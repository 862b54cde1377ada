"""What README, docs/, configs/ and examples/ say is what there is: files, commands, settings, the example task."""

import argparse
import json
import re
import shlex
from pathlib import Path
from typing import Any, Literal, get_args, get_origin
from xml.etree import ElementTree

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
from benchmarks.demo_picture import draw
from launch.checks.check import preflight
from launch.cli import VERBS
from launch.config import RunConfig, load, validate
from launch.settings.file import parse
from tests import tree

ROOT = Path(__file__).resolve().parent.parent
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in [ROOT / "README.md", ROOT / "k8s/README.md", *sorted((ROOT / "docs").glob("*.md"))]
}
README, ALGORITHMS, EMBEDDING = (PAGES[name] for name in ("README.md", "docs/algorithms.md", "docs/embedding.md"))
FROM_CODE = ("docs/settings.md", "docs/migrating.md", "docs/tree.md")
"""Pages that `make docs` makes."""
BY_HAND = re.sub(
    r"<!--.*?-->", "", "".join(text for name, text in PAGES.items() if name not in FROM_CODE), flags=re.DOTALL
)
CONFIGS = sorted(path.name for path in (ROOT / "configs").glob("*.yaml"))
MOST_LINES = 12
MOST_LINES_OF_README = 160
LONGEST_SENTENCE = 140
"""Characters of what a module says of itself in docs/tree.md."""
DOCUMENTED = {
    ALGORITHMS: (RLConfig, PPOConfig, GRPOConfig, DPOConfig, RewardModelConfig, RewardConfig, LoraConfig),
    EMBEDDING: (EncoderConfig, EmbeddingConfig, EmbeddingTask, MixedTask, Prompts, RerankerConfig),
}
"""Text of a document -> the settings that it explains."""
SECTIONS = [(config, text) for text, configs in DOCUMENTED.items() for config in configs]


def commands() -> list[list[str]]:
    """Every tandem command with a configuration in README and docs, split into words."""
    verbs = ("run", "check", "data", "submit", "k8s")
    return [line for line in words_of_commands(BY_HAND) if len(line) > 2 and line[1] in verbs and line[2] != "CONFIG"]


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


def test_the_tree_is_made_from_the_modules() -> None:
    page = PAGES["docs/tree.md"]
    assert page == tree.made(page), "make it again: make docs"
    assert [folder for folder in tree.folders() if not tree.paragraphs(page)[folder]] == [], "say what goes there"
    full = [path for package in tree.PACKAGES for path in (ROOT / package).rglob("__init__.py") if path.stat().st_size]
    assert full == [], "docs/tree.md says that every __init__.py is empty"


def test_a_module_says_in_a_short_sentence_what_it_holds() -> None:
    said = {path: tree.first_sentence(path) for paths in tree.folders().values() for path in paths}
    assert [path for path, sentence in said.items() if not 20 < len(sentence) <= LONGEST_SENTENCE] == []
    assert len({*said.values()}) == len(said)


def test_the_tree_follows_modules_that_move(tmp_path: Path) -> None:
    """What is written by hand stays with its folder, a new folder asks for it, and one that is gone takes it along."""
    (tmp_path / "launch/new").mkdir(parents=True)
    (tmp_path / "launch/cli.py").write_text('"""Verbs | errors,\nin one line. More of it."""\n')
    (tmp_path / "launch/new/client.py").write_text('"""Version 1.2 of `x.y`.\n\nMore of it.\n"""\n')
    (tmp_path / "launch/new/__init__.py").write_text("")
    page = "# Tree\n\nFirst.\n\n## `launch/`\n\nOf launch.\n\nMore.\n\n## `launch/old/`\n\nOf old.\n"
    table = "| module | holds |\n|---|---|\n"
    made = (
        "# Tree\n\nFirst.\n\n## `launch/`\n\nOf launch.\n\nMore.\n\n"
        + f"{table}| `cli.py` | Verbs \\| errors, in one line. |\n\n"
        + f"## `launch/new/`\n\n{table}| `client.py` | Version 1.2 of `x.y`. |\n"
    )
    assert tree.made(page, tmp_path) == made == tree.made(made, tmp_path)
    assert tree.paragraphs(made)["launch/new"] == ""
    (tmp_path / "launch/new/client.py").write_text("import os\n")
    with pytest.raises(ValueError, match=r"client.py: must begin with a docstring"):
        tree.made(page, tmp_path)


def test_readme_is_short() -> None:
    assert len(README.splitlines()) <= MOST_LINES_OF_README


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_what_there_is(page: str) -> None:
    """Files, pictures and headings; what stands in a comment or a block of code is none."""
    text = re.sub(r"<!--.*?-->|^```.*?^```", "", PAGES[page], flags=re.DOTALL | re.MULTILINE)
    found = re.findall(r"\]\(([^)\s]+)\)|(?:src|srcset)=\"([^\"]+)\"", text)
    for link in (link or source for link, source in found):
        if link.startswith("https://"):
            continue
        name, _, anchor = link.partition("#")
        path = (ROOT / page).parent / name if name else ROOT / page
        assert path.is_file(), link
        if not anchor:
            continue
        headings = re.findall(r"^#+ (.*)", path.read_text(encoding="utf-8"), re.MULTILINE)
        assert anchor in {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in headings}


def test_readme_links_to_every_page() -> None:
    assert [name for name in PAGES if name != "README.md" and f"]({name})" not in README] == []


def test_pictures_are_the_same_in_the_dark() -> None:
    """But for their colours, and the names that matplotlib makes of these."""
    differing = re.compile(r"#[0-9a-f]{6}|\b[a-z][0-9a-f]{10}\b")
    names = sorted(path.name.removesuffix("-light.svg") for path in (ROOT / "docs").glob("*-light.svg"))
    assert "flow" in names
    for name in names:
        light, dark = ((ROOT / f"docs/{name}-{theme}.svg").read_text(encoding="utf-8") for theme in ("light", "dark"))
        assert light != dark
        assert differing.sub("", light) == differing.sub("", dark)


def test_the_picture_of_a_run_is_drawn_from_its_metrics(tmp_path: Path) -> None:
    rows = [{"step": 0, "eval/reward/mean": 0.449}]
    rows += [{"step": step, "reward/mean": step / 9, "eval/reward/mean": None} for step in range(1, 9)]
    rows += [{"step": 9, "reward/mean": 1.0, "eval/reward/mean": 0.949}]
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [path.name for path in draw(tmp_path, tmp_path)] == ["demo-curves-light.svg", "demo-curves-dark.svg"]
    first = (tmp_path / "demo-curves-dark.svg").read_text(encoding="utf-8")
    words = [element.text for element in ElementTree.fromstring(first).iter("{http://www.w3.org/2000/svg}text")]
    assert {"0.45", "0.95", "step", "reward", "held-out prompts"} <= set(words)
    draw(tmp_path, tmp_path)
    assert (tmp_path / "demo-curves-dark.svg").read_text(encoding="utf-8") == first
    metrics.write_text('{"step": 1, "loss/nll": 0.5}\n')
    with pytest.raises(ValueError, match=r"must have reward/mean and eval/reward/mean"):
        draw(tmp_path, tmp_path)


def test_files_that_the_docs_name_exist() -> None:
    folders = "configs|docs|examples|benchmarks|requirements|launch|algorithms|actors|tests"
    named = set(re.findall(rf"\b(?:{folders})/[\w./-]*\w(?![\w*])", BY_HAND))
    places = (ROOT, ROOT / "k8s")  # k8s/README.md names its own examples
    assert [name for name in sorted(named) if not any((place / name).exists() for place in places)] == []
    assert {f"configs/{name}" for name in CONFIGS} - named == set()


def test_readme_and_its_page_show_every_verb() -> None:
    assert set(re.findall(r"^tandem (\w+)", README, re.MULTILINE)) == set(VERBS)
    assert set(re.findall(r"^\| `tandem (\w+)", PAGES["docs/verbs.md"], re.MULTILINE)) == set(VERBS)


@pytest.mark.usefixtures("at_root")
@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_a_command_of_the_docs_is_valid(command: list[str]) -> None:
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


def test_the_configuration_in_the_docs_is_valid_and_short() -> None:
    [text] = re.findall(r"```yaml\n(.*?)```", PAGES["docs/configuration.md"], re.DOTALL)
    assert validate(parse(text, "docs/configuration.md")).algorithm.name == "grpo"
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
    assert not re.search(r"^(FIGURES|TODO|TBD)\b", BY_HAND, re.MULTILINE)
