"""What README, configs/ and examples/ say is what there is: files, commands, the example task."""

import json
import re
import shlex
from pathlib import Path

import pytest

from actors.config import UserError
from algorithms.config import RewardFunction
from algorithms.rewards import Samples, load_functions, score_batch
from launch.check import preflight
from launch.cli import VERBS
from launch.config import RunConfig, load, validate
from launch.config_file import parse

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONFIGS = sorted(path.name for path in (ROOT / "configs").glob("*.yaml"))
MOST_LINES = 12


def files_in_tree(package: str) -> list[str]:
    """Modules that README's tree lists below `package/`."""
    [part] = re.findall(rf"^{package}/.*\n((?:  .*\n)+)", README, re.MULTILINE)
    return re.findall(r"(?:^|  )(\w+\.py)  ", part, re.MULTILINE)


def commands() -> list[list[str]]:
    """Every tandem command in README with a configuration, split into words."""
    text = re.sub(r"\\\n\s*", "", README)
    lines = re.findall(r"^tandem .*|(?<=`)tandem [^`]+", text, re.MULTILINE)
    words = [shlex.split(line, comments=True) for line in lines]
    return [line for line in words if len(line) > 2 and line[1] in ("run", "check", "data")]


@pytest.fixture
def at_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the repository, with no cluster to join and the hub allowed, as on a fresh machine."""
    monkeypatch.chdir(ROOT)
    for name in ("RAY_ADDRESS", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)


def lines_of_content(name: str) -> list[str]:
    lines = (ROOT / "configs" / name).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.strip() and not line.lstrip().startswith("#")]


@pytest.mark.parametrize("package", ["launch", "algorithms", "actors"])
def test_the_tree_names_every_module_once(package: str) -> None:
    there = sorted(path.name for path in (ROOT / package).glob("*.py") if path.name != "__init__.py")
    assert sorted(files_in_tree(package)) == there
    assert not (ROOT / package / "__init__.py").read_text(), "README says that every __init__.py is empty"


def test_files_that_readme_names_exist() -> None:
    folders = "configs|examples|benchmarks|requirements|launch|algorithms|actors"
    named = set(re.findall(rf"\b(?:{folders})/[\w./-]*\w", README))
    named.discard("algorithms/mine.py")  # the one that a reader is to write
    missing = [name for name in sorted(named) if not (ROOT / name).exists()]
    assert not missing and {f"configs/{name}" for name in CONFIGS} <= named


def test_readme_shows_every_verb() -> None:
    assert set(re.findall(r"^\| `tandem (\w+)", README, re.MULTILINE)) == set(VERBS)


@pytest.mark.usefixtures("at_root")
@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_a_command_of_readme_is_valid(command: list[str]) -> None:
    config, *rest = command[2:]
    overrides = [word for word in rest if "=" in word]
    assert isinstance(load(config, overrides), RunConfig)


def test_the_configuration_in_readme_is_valid_and_short() -> None:
    [text] = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    assert validate(parse(text, "README.md")).algorithm.name == "grpo"
    assert len(text.splitlines()) <= MOST_LINES


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_is_short_and_says_what_it_is_for(name: str) -> None:
    assert len(lines_of_content(name)) <= MOST_LINES
    first, second = (ROOT / "configs" / name).read_text(encoding="utf-8").splitlines()[:2]
    assert first.startswith("# ") and not second.startswith("#")


@pytest.mark.usefixtures("at_root")
@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_passes_check(name: str, tmp_path: Path) -> None:
    overrides = [f"run.output={tmp_path}"]
    if name == "demo-grpo.yaml":  # starts from the model of demo-sft.yaml, which a clean clone does not have
        init = load("configs/demo-sft.yaml", []).model.init
        assert init is not None
        overrides.append(f"model={json.dumps({'init': init.model_dump()})}")
    warnings = preflight(load(f"configs/{name}", overrides))
    assert all("is read from the hub" in line for line in warnings)


@pytest.mark.usefixtures("at_root")
def test_the_example_reward_scores_the_example_rows() -> None:
    [score] = load_functions([RewardFunction(name="examples/my_reward.py:score")])
    rows = [json.loads(line) for line in (ROOT / "examples/own_task.jsonl").read_text().splitlines()]
    answers = [row["answer"] for row in rows]

    def rewards(completions: list[str]) -> list[float]:
        prompts = [row["prompt"] for row in rows]
        samples = Samples(prompts=prompts, completions=completions, columns={"answer": answers})
        scores = score_batch([score], samples)
        assert [item.error for item in scores] == [None] * len(rows)
        return [item.reward for item in scores]

    assert all(row["answer"] == ("odd" if int(row["prompt"]) % 2 else "even") for row in rows)
    assert rewards(answers) == [1.0] * len(rows)
    assert rewards(["" for _ in rows]) == [0.0] * len(rows)
    assert rewards([answer + "n" for answer in answers]) == [0.5] * len(rows)


@pytest.mark.usefixtures("at_root")
def test_the_math_examples_accept_their_own_answers_only() -> None:
    [score] = load_functions([RewardFunction(name="math")])
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
