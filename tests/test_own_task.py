"""README's own task, followed to the letter: its rows, its reward function, its commands; and it learns."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def section() -> str:
    """README's text about a task of the user's own."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    [text] = re.findall(r"^## Your own task\n(.*?)^## ", readme, re.MULTILINE | re.DOTALL)
    return text


def test_the_task_of_readme_is_learned(environment: dict[str, str], cluster: str, tmp_path: Path) -> None:
    blocks = re.findall(r"```(\w*)\n(.*?)```", section(), re.DOTALL)
    [rows] = [text for _, text in blocks if text.startswith('{"prompt"')]
    [function] = [text for language, text in blocks if language == "python"]
    [commands] = [text for _, text in blocks if text.startswith("tandem run configs/own-task.yaml")]
    (tmp_path / "my_task.jsonl").write_text(rows)
    (tmp_path / "my_reward.py").write_text(function)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    said = []
    for line in commands.splitlines():
        program, *words = shlex.split(line)
        assert program == "tandem"
        done = subprocess.run(
            [sys.executable, "-m", "launch", *words],
            cwd=tmp_path,
            env=environment | {"RAY_ADDRESS": cluster},
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        said.append(done.stdout)
    steps = [json.loads(line) for line in (tmp_path / "outputs/mine/metrics.jsonl").read_text().splitlines()]
    asked = [step["eval/reward/mean"] for step in steps if "eval/reward/mean" in step]
    assert asked[0] < 0.3
    assert asked[-1] == 1 and steps[-1]["step"] < 150
    answers = {row["prompt"]: row["answer"] for row in map(json.loads, rows.splitlines())}
    assert said[-1].strip() == answers[words[-1]]
