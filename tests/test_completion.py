"""Completion with Tab: what is proposed behind a command line as it was typed, in a real shell and without one."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from launch.cli import main
from launch.settings.tree import by_path, choices_of, jobs
from launch.verbs.setting_words import job_of, next_words, setting_words
from tests.test_layers import HEAVY

ROOT = Path(__file__).parent.parent
GRPO, SFT = "configs/demo-grpo.yaml", "configs/demo-sft.yaml"


def asked(line: str, *options: str) -> subprocess.CompletedProcess[str]:
    """The command as a shell runs it in which this was typed: descriptor 8 takes what it proposes, 9 what is wrong."""
    given = {"": "1", "_IFS": "\n", "_SUPPRESS_SPACE": "1", "_SHELL": "bash"}
    environment = {**os.environ, **{f"_ARGCOMPLETE{name}": value for name, value in given.items()}}
    environment |= {"_ARGCOMPLETE_COMP_WORDBREAKS": " \t\n\"'><=;|&(:", "COMP_LINE": line, "COMP_POINT": str(len(line))}
    command = [sys.executable, *options, "-m", "launch"]
    shell = ["sh", "-c", f"{shlex.join(command)} 8>&1 9>&2 1>&2"]
    return subprocess.run(shell, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)


def proposed(line: str) -> list[str]:
    """What is proposed, from the last place on where bash breaks words."""
    done = asked(line)
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\n") if done.stdout else []


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("tandem ch", ["check", "chat"]),
        (f"tandem run {GRPO[:-6]}", ["configs/demo-grpo.yaml"]),
        (f"tandem run {GRPO} policy.opt", [f"policy.optimizer.{name}=" for name in ("name", "lr", "betas", "eps")]),
        (f"tandem run {GRPO} rollout.tail=", ["none", "postpone"]),
        (f"tandem run {GRPO} policy.ranks=2 algorithm.lo", ["algorithm.loss="]),
        (f"tandem run {GRPO} algorithm.loss=", ["clip", "gspo", "cispo", "sapo"]),
        (f"tandem check {GRPO} --", ["--help", "--no-code", "--json"]),
        ("tandem init --job re", ["reward", "reranker"]),
        ("tandem completion ", ["bash", "zsh", "fish"]),
        ("tandem help algorithm.clip_", ["algorithm.clip_low", "algorithm.clip_high"]),
        ("tandem data x.yaml --rows ", []),
    ],
)
def test_a_line_goes_on(line: str, words: list[str]) -> None:
    assert proposed(line)[: len(words) or None] == words


def test_settings_that_the_job_has_not_are_left_out() -> None:
    of_grpo, of_sft = (proposed(f"tandem run {config} algorithm.") for config in (GRPO, SFT))
    assert "algorithm.clip_high=" in of_grpo and "algorithm.train_on=" not in of_grpo
    assert "algorithm.train_on=" in of_sft and "algorithm.clip_high=" not in of_sft
    assert "critic." not in proposed(f"tandem run {GRPO} ")


@pytest.mark.parametrize(
    ("text", "job"),
    [
        ("algorithm: {name: grpo, steps: 3}", "grpo"),
        ("# algorithm: {name: sft}\nalgorithm:\n  # the first\n  steps: 3\n  name: 'ppo'\n", "ppo"),
        ('{\n  "algorithm": {\n    "steps": 3,\n    "name": "dpo"', "dpo"),
        ("algorithm:\n  steps: 3\nrun:\n  name: mine\n", None),
        (f"algorithm:\n  {'#' * 60} not for ever\n  steps: 3\n", None),
        ("", None),
    ],
)
def test_the_job_is_read_from_the_file(text: str, job: str | None, tmp_path: Path) -> None:
    (tmp_path / "job").write_text(text)
    assert job_of(str(tmp_path / "job")) == job
    assert job_of(str(tmp_path / "none")) is None


def test_items_are_named_by_number_and_name() -> None:
    assert list(next_words("reward.models.")) == list(next_words("reward.models.0."))
    assert "reward.models.12.path=" in next_words("reward.models.12.")
    assert "algorithm.tasks.search.negatives=" in next_words("algorithm.tasks.search.")
    assert next_words("algorithm.tasks.") == {}  # a name of the user's own
    assert next_words("nothing.of.this") == {}
    assert next_words("policy.optimizer.lr=1") == {}


def test_every_setting_can_be_reached_with_all_its_values() -> None:
    words = {".".join(word.parts): word for word in setting_words()}
    assert words.keys() == {path for path in by_path() if "." in path}
    for path, items in by_path().items():
        if path in words and path != "algorithm.name" and len(items) == 1:
            choices = {"null" if choice is None else str(choice) for choice in choices_of(items[0].field.annotation)}
            assert choices <= {*words[path].values}, path
    assert set(next_words("algorithm.name=")) == {f"algorithm.name={job}" for job in jobs()}
    assert list(next_words("checkpoint.beside=")) == ["checkpoint.beside=true", "checkpoint.beside=false"]
    assert {word for word in words.values() if any(set(" |{}") & set(value) for value in word.values)} == set()


def test_bash_completes_with_the_script_that_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """The whole way: the shell's function, the command that it runs, and how that ends."""
    assert main(["completion", "bash"]) == 0
    line = f"tandem run {GRPO} policy.optimizer.sch"
    program = f"""
{capsys.readouterr().out}
tandem() {{ {shlex.quote(sys.executable)} -m launch "$@"; }}
COMP_LINE={shlex.quote(line)} COMP_POINT={len(line)} COMP_TYPE=9
_python_argcomplete tandem
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    shell = subprocess.run(["bash", "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (shell.returncode, shell.stderr, shell.stdout) == (0, "", "policy.optimizer.schedule=\n")


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_have_a_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    assert {"zsh": "compdef _python_argcomplete tandem", "fish": "complete --command tandem"}[shell] in (
        capsys.readouterr().out
    )


def test_somebody_who_has_pressed_tab_does_not_wait_for_libraries() -> None:
    done = asked(f"tandem run {GRPO} policy.ranks", "-X", "importtime")
    assert done.stdout.split() == ["policy.ranks=", "policy.ranks_per_node="]
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "argcomplete" in imported
    assert imported & {*HEAVY, "pydantic", "numpy", "rich", "yaml"} == set()
