"""What configurations name does not run with --no-code; reward functions see no secrets and have their memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from actors.config import UserError
from actors.user.confined import hidden, without_secrets
from actors.user.reward_worker import RewardWorker
from algorithms.config import RewardConfig
from algorithms.rewards.scores import load_scorer
from launch.checks.reward_checks import ProbeRow, RewardProbe
from launch.checks.shadowing import make_importable
from launch.cli import main
from launch.verbs.mine import MineOptions, _own_rows
from launch.verbs.search import own_passages

ROOT = Path(__file__).resolve().parent.parent
CODE = """
open("ran", "w").write("imported")
def score(completion, answer):
    return 1.0
def rows(split):
    return [{"prompt": "a", "answer": "b"}]
def same(row):
    return row
"""
JOB = """
algorithm: {name: grpo, steps: 1, prompts_per_step: 1, samples_per_prompt: 2}
model: {init: {}}
data: {train: rows.jsonl}
reward: {functions: [exact_match]}
run: {name: x}
"""
MARK = "hunter2"
NOT_IMPORTED = "was not imported (--no-code), so nothing is known of what it gives"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    Path("others.py").write_text(CODE)
    Path("job.yaml").write_text(JOB)
    Path("rows.jsonl").write_text('{"prompt": "a", "answer": "b"}\n')


def said(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    code = main(list(words))
    captured = capsys.readouterr()
    return code, captured.out + captured.err


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("reward.functions=[exact_match, others:score]", "reward.functions.1.name: others:score"),
        ("data.train=others.py:rows", "data.train: others.py:rows"),
        ("data.converter=others.py:same", "data.converter: others.py:same"),
    ],
)
def test_check_without_code_imports_nothing_and_says_so(
    setting: str, named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, text = said(capsys, "check", "job.yaml", "--no-code", setting)
    assert code == 0
    assert f"warning: {named} {NOT_IMPORTED}" in text
    assert not Path("ran").exists()
    assert str(Path.cwd()) not in sys.path


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ("reward.functions=[others:scor]", "others has no function scor (did you mean score?), got others:scor"),
        ("reward.functions=[exact_mtch]", "must be exact_match, math, path.py:function or module:function"),
        ("data.train=no_such:rows", "data.train: no module named no_such, got no_such:rows"),
        ("reward.functions=[broken.py:x]", "broken.py cannot be read as Python"),
        # What else lies beside generators of ours would run what its arguments say.
        (
            "data.train=algorithms.data.sources:_generated",
            "data.train: algorithms.data.sources:_generated was not imported",
        ),
    ],
)
def test_code_that_is_named_must_be_there(setting: str, problem: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("broken.py").write_text("def (")
    code, text = said(capsys, "check", "job.yaml", "--no-code", setting)
    assert problem in text
    assert code == (0 if "was not imported" in problem else 2)
    assert not Path("ran").exists()


def test_without_code_all_else_is_checked(capsys: pytest.CaptureFixture[str]) -> None:
    others = "reward.functions=[others.py:score, exact_match]"
    code, text = said(capsys, "check", "job.yaml", "--no-code", others)
    assert (code, "reward.functions.1 exact_match: 1 for the answer of row 1" in text) == (0, True)
    code, text = said(capsys, "check", "job.yaml", "--no-code", others, "policy.ranks=99")
    assert code == 2
    assert "policy.ranks" in text
    Path("rows.jsonl").write_text("{broken\n")
    code, text = said(capsys, "check", "job.yaml", "--no-code", "data.converter=others.py:same")
    assert (code, "line 1, column 2 of rows.jsonl is not valid JSON" in text) == (2, True)
    own = ("data.train=algorithms.tasks:reverse", "data.arguments={count: 9}")
    code, text = said(capsys, "check", "job.yaml", "--no-code", *own)
    assert (code, "passes over 9 prompts" in text) == (0, True), "generators of ours run"


def test_the_other_verbs_without_code(capsys: pytest.CaptureFixture[str]) -> None:
    code, text = said(capsys, "data", "job.yaml", "--no-code", "data.train=others.py:rows")
    assert (code, "data.train: must be left out with --no-code" in text) == (2, True)
    assert said(capsys, "data", "job.yaml", "--no-code")[0] == 0
    code, text = said(
        capsys, "k8s", "job.yaml", "--no-code", "run.output=/shared/o", "reward.functions=[others.py:score]"
    )
    assert (code, NOT_IMPORTED in text) == (0, True)
    code, text = said(
        capsys, "submit", "job.yaml", "--no-code", "--address", "http://127.0.0.1:9", "data.converter=no:x"
    )
    assert (code, "data.converter: no module named no, got no:x" in text) == (2, True)
    assert not Path("ran").exists()


@pytest.mark.parametrize("verb", ["chat", "export", "curves", "search", "check --no-code"])
def test_verbs_that_load_no_code_import_nothing_from_the_working_directory(verb: str) -> None:
    for name in ("annotated_types", "httpx", "fsspec", "markupsafe", "yaml", "socket", "sitecustomize"):
        if verb != "check --no-code":  # it says what `check` would stumble over
            Path(f"{name}.py").write_text("open('ran', 'w')")
    Path("orjson.py").write_text("open('ran', 'w')")  # some packages import it where there is one
    words = [*verb.split(), "job.yaml" if "check" in verb else "."]
    code = "import sys; from launch.__main__ import main; code = main(); import orjson"
    there = {**os.environ, "PYTHONPATH": str(ROOT)}
    start = ["-c", code] if verb in ("chat", "search") else ["-m", "launch"]
    done = subprocess.run([sys.executable, *start, *words], env=there, capture_output=True, text=True, timeout=120)
    assert not Path("ran").exists(), done.stderr
    assert ("No module named 'orjson'" in done.stderr) == (start[0] == "-c")


def test_code_of_the_working_directory_hides_nothing_that_is_installed() -> None:
    make_importable(str(Path.cwd()), code=True)
    assert sys.path[-1] == str(Path.cwd())
    assert sys.path.count(str(Path.cwd())) == 1


def test_search_runs_no_code_that_a_run_names(tmp_path: Path) -> None:
    values = {
        "algorithm": {"name": "embedding", "steps": 1},
        "model": {"path": "m"},
        "data": {"train": "others.py:rows"},
    }
    (tmp_path / "run/export").mkdir(parents=True)
    config = tmp_path / "run/config.json"
    config.write_text(json.dumps(values))
    with pytest.raises(
        UserError, match=r"^--corpus: required for a run whose passages come from code, .*others.py:rows"
    ):
        own_passages(tmp_path / "run")
    config.chmod(0o666)
    for read in (own_passages, lambda run: _own_rows(MineOptions(model=str(run), data="data.train", output="o.jsonl"))):
        with pytest.raises(UserError, match=r"of somebody else's, as .* can be written by everybody"):
            read(tmp_path / "run")
    assert not Path("ran").exists()


# What reward functions see


SECRETS = {
    "HF_TOKEN": "1",
    "WANDB_API_KEY": "2",
    "AWS_ACCESS_KEY_ID": "3",
    "AWS_SECRET_ACCESS_KEY": "4",
    "AWS_SESSION_TOKEN": "5",
    "GITHUB_PAT": "6",
    "DATABASE_URL": "postgres://user:word@host/name",
    "RAY_AUTH_TOKEN": "7",
    "SSH_AUTH_SOCK": "/run/agent",
    "JUDGE_TOKEN": "8",
    "AZURE_STORAGE_CONNECTION_STRING": "9",
    "SENTRY_DSN": "10",
    "SLACK_WEBHOOK_URL": "11",
    "HTTP_AUTH": "12",
    "JUDGE": "hf_" + "a1" * 17,
    "MIRROR": "https://files/x?access_token=13",
}
HARMLESS = {
    "PATH": "/bin",
    "HF_TOKEN_PATH": "/file",
    "TOKENIZERS_PARALLELISM": "0",
    "HOME": "/home/somebody",
    "RAY_AUTH_MODE": "token",
    "AUTHOR": "me",
    "X_URL": "http://x",
}
SEES = """
import os
def seen(completion):
    import json, pathlib
    pathlib.Path("seen.json").write_text(json.dumps(dict(os.environ)))
    return 1.0
def judges(completion):
    return float(len(os.environ["JUDGE_TOKEN"]))
def takes(completion):
    return float(len(bytearray(2**29)))
"""
ROW = [ProbeRow(number=1, prompt="hi", row={"prompt": "hi"})]


def probed(reward: RewardConfig) -> tuple[list[str], list[str]]:
    from algorithms.config import DataConfig

    with RewardProbe(reward) as probe:
        called = probe.finish(DataConfig(train="rows.jsonl"), {"data.train": ["prompt"]}, ROW)
    return called.lines, called.problems + called.warnings


def test_what_a_secret_is() -> None:
    environment = SECRETS | HARMLESS
    assert set(hidden(environment, [])) == set(SECRETS)
    assert without_secrets(environment, ["JUDGE_TOKEN"]) == HARMLESS | {"JUDGE_TOKEN": "8"}


def test_the_check_calls_functions_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("sees.py").write_text(SEES)
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    lines, said = probed(RewardConfig.model_validate({"functions": ["sees.py:seen"]}))
    assert (len(lines), said) == (1, [])
    seen = Path("seen.json").read_text()
    assert "PATH" in seen
    assert not [name for name in SECRETS if f'"{name}"' in seen]
    _, said = probed(RewardConfig.model_validate({"functions": ["sees.py:judges"]}))
    assert "(reward.pass_env=[JUDGE_TOKEN] lets functions read it)" in said[0]
    named = RewardConfig.model_validate({"functions": ["sees.py:judges"], "pass_env": ["JUDGE_TOKEN"]})
    assert probed(named)[1] == []
    endpoint = {"url": "http://h/x", "headers": {"Authorization": "Bearer $JUDGE_TOKEN"}}
    assert RewardConfig.model_validate({"endpoints": [endpoint]}).kept_variables == {"JUDGE_TOKEN"}


def test_a_reward_worker_keeps_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    seen: dict[str, str] = {}

    def load() -> object:
        seen.update(os.environ)
        return lambda *_: []

    RewardWorker(load, os.getcwd(), ["JUDGE_TOKEN"]).ping()  # type: ignore[arg-type]
    assert [name for name in SECRETS if name in seen] == ["JUDGE_TOKEN"]


def test_headers_of_endpoints_are_filled_before_functions_are_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("sees.py").write_text(SEES + "at_import = dict(os.environ)\n")
    for name in ("JUDGE_TOKEN", "SCORES_TOKEN", "OTHER_TOKEN"):
        monkeypatch.setenv(name, MARK)
    headers = {"Authorization": "Bearer $SCORES_TOKEN", "X-Judge": "$JUDGE_TOKEN"}
    values = {"functions": ["sees.py:seen"], "endpoints": [{"url": "http://h/x", "headers": headers}]}
    reward = RewardConfig.model_validate(values | {"pass_env": ["JUDGE_TOKEN"]})
    worker = RewardWorker(lambda: load_scorer(reward), os.getcwd(), reward.kept_variables)  # type: ignore[arg-type]
    worker.ping()
    function, endpoint = worker._scorer.args[0]  # type: ignore[union-attr]
    assert endpoint.headers == {"Authorization": f"Bearer {MARK}", "X-Judge": MARK}
    assert [name for name, value in function.call.__globals__["at_import"].items() if value == MARK] == ["JUDGE_TOKEN"]
    lines, said = probed(reward)
    assert (len(lines), said) == (1, [])
    assert [name for name, value in json.loads(Path("seen.json").read_text()).items() if value == MARK] == [
        "JUDGE_TOKEN"
    ]


def test_a_function_that_takes_too_much_memory_has_failed() -> None:
    Path("sees.py").write_text(SEES)
    reward = {"functions": ["sees.py:takes"]}
    assert probed(RewardConfig.model_validate(reward))[1] == []
    _, said = probed(RewardConfig.model_validate(reward | {"memory_mib": 200}))
    assert "raised MemoryError (sees.py line 10): more than reward.memory_mib allows" in said[0]
    _, said = probed(RewardConfig.model_validate(reward | {"memory_mib": 1000}))
    assert said == []
