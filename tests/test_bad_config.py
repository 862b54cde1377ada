"""What a configuration must not hold: each mistake is one line of sane length, at once, and never a traceback."""
# ruff: noqa: E501

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from actors.config import UserError
from launch.checks.shadowing import shadowing
from launch.config import load

ROOT = Path(__file__).resolve().parent.parent
JOB = {
    "algorithm": {"name": "grpo"},
    "model": {"init": {}},
    "data": {"train": "x.jsonl", "eval": "y.jsonl"},
    "reward": {"functions": ["exact_match"]},
}
WHOLE, NUMBER = "must be a whole number", "must be a number"
OFFLINE = "reward=null; rollout=null; algorithm={name: sft, steps: 1"

OVERRIDES = {
    # numbers
    "algorithm.steps=true": f"algorithm.steps: {WHOLE}, got true",
    'algorithm.steps="5"': f"algorithm.steps: {WHOLE}, without quotes, got '5'",
    'checkpoint.memory_every="5"': f"checkpoint.memory_every: {WHOLE}, without quotes, got '5'",
    "algorithm.steps=1_000": f"algorithm.steps: {WHOLE}, got '1_000'",
    "algorithm.steps=1.5": f"algorithm.steps: {WHOLE}, got 1.5",
    "algorithm.steps=many": f"algorithm.steps: {WHOLE}, got 'many'",
    "algorithm.steps=[1]": f"algorithm.steps: {WHOLE}, got [1]",
    "algorithm.steps=1e400": "algorithm.steps: must be a finite number, got inf",
    "algorithm.prompts_per_step=": f"algorithm.prompts_per_step: {WHOLE}, got null",
    "algorithm.steps=-1": "algorithm.steps: must be at least 0, got -1",
    f"algorithm.steps={2**63}": f"algorithm.steps: {WHOLE} below 2^63, got 9223372036854775808",
    f"algorithm.steps={'9' * 6000}": "override algorithm.steps: a number must have at most 40 digits, got 6000 (line 1)",
    "policy.optimizer.lr=true": f"policy.optimizer.lr: {NUMBER}, got true",
    "policy.optimizer.lr=.nan": "policy.optimizer.lr: must be a finite number, got nan",
    "policy.optimizer.lr=.inf": "policy.optimizer.lr: must be a finite number, got inf",
    "policy.optimizer.lr={a: 1}": f"policy.optimizer.lr: {NUMBER}, got {{'a': 1}}",
    "policy.optimizer.eps=0": "policy.optimizer.eps: must be above 0, got 0",
    "policy.resources={a: true}": f"policy.resources.a: {NUMBER}, got true",
    "algorithm.clip_low=1": "algorithm.clip_low: must be below 1, got 1",
    "rollout.top_p=1.5": "rollout.top_p: must be at most 1, got 1.5",
    "algorithm.eval_pass_reward=x": f"algorithm.eval_pass_reward: {NUMBER}, got 'x'",
    "data.prompt_key=x": "data.prompt_key: unknown field (here: data.columns; {prompt: NAME}), got 'x'",
    "hub_token=x": "hub_token: unknown field (there is none: the environment variable HF_TOKEN), got a value (not shown)",
    "policy.zero_stage=7": "policy.zero_stage: must be one of 0, 1, 2 or 3, got 7",
    "algorithm.max_staleness=9": "algorithm.max_staleness: must be at most 8, got 9",
    "algorithm.max_staleness=1.5": f"algorithm.max_staleness: {WHOLE}, got 1.5",
    "algorithm.importance_correction=atuo": "algorithm.importance_correction: must be a section or auto or null, got "
    "'atuo' (did you mean auto?)",
    "algorithm.importance_correction=2": "algorithm.importance_correction: must be a section or auto or null, got 2",
    "algorithm.importance_correction=[token]": "algorithm.importance_correction: must be a section or auto or null, got "
    "['token']",
    "algorithm.importance_correction.cap=-1": "algorithm.importance_correction.cap: must be above 0, got -1",
    "algorithm.importance_correction.cap=true": f"algorithm.importance_correction.cap: {NUMBER}, got true",
    "algorithm.importance_correction={level: tokn}": "algorithm.importance_correction.level: must be one of 'token' or "
    "'sequence', got 'tokn' (did you mean token?)",
    "algorithm.importance_correction={caap: 2}": "algorithm.importance_correction.caap: unknown field (did you mean "
    "cap?), got 2",
    "checkpoint.resume=maybe": "checkpoint.resume: must be true or false, got 'maybe'",
    "checkpoint.resume=[]": "checkpoint.resume: must be true or false, got []",
    "model.init.layers=1000000": "model.init.layers: must be at most 10000, got 1000000",
    "model.lora={rank: 1000000000000}": "model.lora.rank: must be at most 16384, got 1000000000000",
    "policy.timeout_s=1e15": "policy.timeout_s: must be at most 1e9, got 1000000000000000.0",
    "reward.deadline_s=1e15": "reward.deadline_s: must be at most 1e9, got 1000000000000000.0",
    # lists and mappings
    "policy.optimizer.betas=[0.9]": "policy.optimizer.betas: must be a list of 2 numbers, got [0.9]",
    "policy.optimizer.betas=[0.9, 0.9, 0.9]": "policy.optimizer.betas: must be a list of 2 numbers, got [0.9, 0.9, 0.9]",
    "policy.optimizer.betas=0.9": "policy.optimizer.betas: must be a list of 2 numbers, got 0.9",
    "policy.optimizer.betas=[true, 0.9]": f"policy.optimizer.betas.0: {NUMBER}, got true",
    "policy.optimizer.betas=[0.9, x]": f"policy.optimizer.betas.1: {NUMBER}, got 'x'",
    "rollout.stop=</s>": "rollout.stop: must be a list, such as ['</s>'], got '</s>'",
    "rollout.stop={a: b}": "rollout.stop: must be a list, such as [a, b], got {'a': 'b'}",
    "rollout.stop=[ok, 1]": "rollout.stop.1: must be text, in quotes, got 1",
    "data.columns=[a]": "data.columns: must be a mapping, such as {name: value}, got ['a']",
    "data.columns={a: 1}": "data.columns.a: must be text, in quotes, got 1",
    "model.lora={targets: 5}": "model.lora.targets: must be a list of texts or all-linear, got 5",
    "model.lora={targets: [1]}": "model.lora.targets.0: must be text, in quotes, got 1",
    "model.lora=true": "model.lora: must be a mapping of fields, such as {rank: ...}, got true",
    "data=x.jsonl": "data: must be a mapping of fields, such as {train: x.jsonl}, got 'x.jsonl'",
    "policy=5": "policy: must be a mapping of fields, such as {ranks: ...}, got 5",
    "algorithm=grpo": "algorithm: must be a mapping of fields, such as {name: grpo}, got 'grpo'",
    "algorithm={steps: 1}": "algorithm.name: required, one of dpo, embedding, grpo, ppo, reranker, reward, sft, got nothing",
    "reward.functions=exact_match": "reward.functions: must be a list, such as ['exact_match'], got 'exact_match'",
    "reward.functions=[5]": "reward.functions.0: must be a mapping of fields, such as {name: ...}, got 5",
    "reward.functions=[{}]": "reward.functions.0.name: required, got nothing",
    "cluster.env={A: 1}": "cluster.env.A: must be text, in quotes, got 1",
    "cluster.kubernetes.secrets={A: 5}": "cluster.kubernetes.secrets.A: must be a mapping of fields, such as "
    "{name: ...}, got a value (not shown)",
    # text
    "tracking.project=''": "tracking.project: must not be empty, got ''",
    "tracking.project=": "tracking.project: must be text, got null",
    "tracking.project=a/b": "tracking.project must be of 1 to 128 characters, without / \\ # ? % :, got 'a/b'",
    "run.output=~/x": "run.output must be a path as it is, without ~ and $, which a shell replaces only where they are not quoted, got ~/x",
    "run.output='$HOME/x'": "run.output must be a path as it is, without ~ and $, which a shell replaces only where they are not quoted, got $HOME/x",
    "run.output=''": "run.output: must not be empty, got ''",
    "model.path=''": "model.path: must not be empty, got ''",
    "model={path: ''}": "model.path: must not be empty, got ''",
    "data.train=''": "data.train: must not be empty, got ''",
    "data.columns={a: ''}": "data.columns.a: must not be empty, got ''",
    "data.columns={'': a}": "data.columns: must have names that are not empty, got {'': 'a'}",
    'policy.node_labels={"": x}': "policy.node_labels: must have names that are not empty, got {'': 'x'}",
    'policy.node_labels={" ": x}': "policy.node_labels: names must be the name of a label: letters, digits, '-', '_' and '.', got ' '",
    'policy.env={"": x}': "policy.env: must have names that are not empty, got {'': 'x'}",
    'policy.resources={"": 1}': "policy.resources: must have names that are not empty, got {'': 1}",
    "rollout.stop=['']": "rollout.stop.0: must not be empty, got ''",
    "reward.functions=['']": "reward.functions.0: must not be empty, got ''",
    'run.output="a\\nb"': "run.output: must be one line without control characters, got 'a\\nb'",
    'run.output="a\\u001bb"': "run.output: must be one line without control characters, got 'a\\x1bb'",
    'rollout.stop=["\\0"]': "override rollout.stop: text must be without NUL and broken characters, got some (line 1)",
    'run.output="\\ud800"': "override run.output: text must be without NUL and broken characters, got some (line 1)",
    "run.name=a b": "run.name: must be letters, digits, '.', '_' and '-', a letter or digit first, got 'a b'",
    f"run.name={'a' * 300}": f"run.name: must be at most 100 characters, got '{'a' * 76}...",
    f"run.output={'a' * 5000}": f"run.output: must be at most 4096 characters, got '{'a' * 76}...",
    "reward.endpoints=['ftp://x']": "reward.endpoints.0.url: must begin with http:// or https://, got 'ftp://x'",
    # names
    "model.dtype=bf61": "model.dtype: must be one of 'fp32' or 'bf16', got 'bf61' (did you mean bf16?)",
    "algorithm.name=grpp": "algorithm.name: must be one of dpo, embedding, grpo, ppo, reranker, reward, sft, got 'grpp' "
    "(did you mean grpo?)",
    "model.path=some/model": "model.path must be given, or init, but not both, got both (model.init=null drops the new "
    "model)",
    f"{'a' * 5000}=1": f"{'a' * 117}...: unknown field (there are algorithm, model, data, reward, policy, critic, "
    "reference, rollout, checkpoint, tracking, cluster, run), got 1",
    # metrics
    "algorithm.eval_every=1; algorithm.stop_when={metric: eval/rewards/mean, at_least: 1}": "algorithm.stop_when.metric "
    "must be one of eval/reward/mean, eval/reward/std, eval/failed (did you mean eval/reward/mean?), "
    "got eval/rewards/mean",
    "reward={}; algorithm={name: sft, steps: 1, best_by: eval/accuracy}": "algorithm.best_by must be one of eval/loss, "
    "eval/sequence_probability, got eval/accuracy",
    "reward={}; algorithm={name: reward, steps: 1, stop_when: {metric: eval/acuracy, at_least: 1}}": "algorithm."
    "stop_when.metric must be one of eval/loss, eval/accuracy, eval/margin, eval/score_mean, eval/score_std, "
    "eval/calibration_error (did you mean eval/accuracy?), got eval/acuracy",
    # overrides
    "policy": "override: must look like section.field=value, got policy",
    "=3": "override: must look like section.field=value, got =3",
    "a..b=1": "override: must look like section.field=value, got a..b=1",
    ".a=1": "override: must look like section.field=value, got .a=1",
    "a.=1": "override: must look like section.field=value, got a.=1",
    "data.train.path=x": "override data.train.path: data.train holds no fields, got x.jsonl there",
    "reward.functions.0.weight=2": "override reward.functions.0.weight: reward.functions is a list, to be given whole: "
    "reward.functions=[a, b]",
    "policy.ranks={a: 1, a: 2}": "override policy.ranks: 'a' must be given once, got it in line 1 too (line 1)",
    "data.train=*.jsonl": "override data.train: not valid YAML, a text that begins with * must be in quotes (line 1)",
    "data.train=*rows": "override data.train: not valid YAML, a text that begins with * must be in quotes (line 1)",
    "data.train=&.jsonl": "override data.train: not valid YAML, a text that begins with & must be in quotes (line 1)",
    "data.train=@rows": "override data.train: not valid YAML, a text that begins with @ must be in quotes (line 1)",
    "policy.ranks=[": "override policy.ranks: not valid YAML, expected the node content, but found '<stream end>' "
    "(line 1)",
    f"policy.ranks={'[' * 100}": "override policy.ranks: not valid YAML, expected the node content, but found "
    "'<stream end>' (line 1)",
    f"policy.ranks={'[' * 100}{']' * 100}": "override policy.ranks: must be nested at most 40 deep, got more (line 1)",
    f"policy.ranks={'[' * 5000}{']' * 5000}": "override policy.ranks: must be nested at most 40 deep, got more",
}  # fmt: skip
"""Overrides, one or several -> the line."""


def lines_of(tmp_path: Path, content: bytes | None = None, overrides: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Lines about a configuration."""
    path = tmp_path / "job.yaml"
    path.write_bytes(yaml.safe_dump(JOB).encode() if content is None else content)
    with pytest.raises(UserError) as caught:
        load(str(path), list(overrides))
    return tuple(line.replace(str(path), "job.yaml") for line in caught.value.problems)


@pytest.mark.parametrize("given", OVERRIDES, ids=lambda given: given[:60])
def test_an_override_that_is_wrong_is_one_line(tmp_path: Path, given: str) -> None:
    assert lines_of(tmp_path, overrides=tuple(given.split("; "))) == (OVERRIDES[given],)


TEXT = yaml.safe_dump(JOB)
BOMB = "a: &a [" + ", ".join("x" * 9) + "]\n" + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))  # fmt: skip
FILES = {
    "empty": ("", "job.yaml: must hold a mapping of sections, such as algorithm: {name: grpo}, got nothing"),
    "a list": ("- a\n- b\n", "job.yaml: must hold a mapping of sections, such as algorithm: {name: grpo}, got a list"),
    "a word": ("hello", "job.yaml: must hold a mapping of sections, such as algorithm: {name: grpo}, got a text"),
    "two documents": (f"{TEXT}---\n{TEXT}", "job.yaml: not valid YAML, but found another document (line 11)"),
    "a section twice": (f"{TEXT}data: {{}}\n", "job.yaml: 'data' must be given once, got it in line 3 too (line 11)"),
    "a field twice": ("data: {train: a,\n train: b}", "job.yaml: 'train' must be given once, got it in line 1 too (line 2)"),
    "a tab": ("data:\n\ttrain: x\n", "job.yaml: not valid YAML, found character '\\t' that cannot start any token (line 2) (indent with spaces, not tabs)"),
    "an object": ("data: !!python/object:os.x {}", "job.yaml: tags are not allowed, got !!python/object:os.x (line 1)"),
    "a set": ("a: !!set {a}", "job.yaml: tags are not allowed, got !!set (line 1)"),
    "a truth value that is none": ("a: !!bool x", "job.yaml: not valid YAML, 'x'"),
    "a number as name": (f"{TEXT}1: 2\n", "job.yaml: a name must be text (in quotes: '1'), got 1 (line 11)"),
    "null as name": (f"{TEXT}null: 2\n", "job.yaml: a name must be text (in quotes: 'null'), got null (line 11)"),
    "nothing as name": ("?\n: 2\n", "job.yaml: a name must be text, got nothing (line 1)"),
    "a list as name": (f"{TEXT}[a]: 2\n", "job.yaml: a name must be text, got a list or mapping (line 11)"),
    "a dotted name": (f"{TEXT}policy.optimizer.lr: 1\n", "policy.optimizer.lr: unknown field (in a file: policy: {optimizer: {lr: ...}}), got 1"),
    "aliases of aliases": (BOMB, "job.yaml: must hold at most 20000 values, aliases counted with what they stand for (line 5)"),
    "merges of merges": ("a: &a {x: 1}\n" + "".join(f"m{i}: &m{i} {{<<: [{', '.join([f'*m{i - 1}' if i else '*a'] * 9)}]}}\n" for i in range(9)), "job.yaml: must hold at most 20000 values, aliases counted with what they stand for (line 6)"),
    "an alias of itself": ("a: &a [*a]", "job.yaml: an alias must not stand for what it is part of (line 1)"),
    "deep": ("{a: " * 3000 + "}" * 3000, "job.yaml: must be nested at most 40 deep, got more"),
    "a NUL": ("a: \0", "job.yaml: text must be without NUL and broken characters, got some (line 1)"),
    "half a character": (f'{TEXT}"\\ud800": 1\n', "job.yaml: text must be without NUL and broken characters, got some (line 11)"),
    "unclosed": ("data: {train: x", "job.yaml: not valid YAML, expected ',' or '}', but got '<stream end>' (line 1)"),
    "no section that must be there": ("algorithm: {name: grpo}\nmodel: {init: {}}\n", "data: required, such as {train: ...}, got nothing"),
    "an unknown section": (f"{TEXT}polcy: {{}}\n", "polcy: unknown field (did you mean policy?), got {}"),
}  # fmt: skip
"""What a file holds -> its text, and the line."""


@pytest.mark.parametrize("kind", FILES)
def test_a_file_that_is_wrong_is_one_line(tmp_path: Path, kind: str) -> None:
    text, line = FILES[kind]
    started = time.monotonic()
    assert lines_of(tmp_path, text.encode()) == (line,)
    assert time.monotonic() - started < 2


def test_bytes_that_are_no_text_are_one_line(tmp_path: Path) -> None:
    for content in (TEXT.encode("utf-16"), TEXT.replace("x.jsonl", "é").encode("latin-1"), b"\x80\x81\x00"):
        assert lines_of(tmp_path, content) == ("config file: cannot be read (not UTF-8 text), got job.yaml",)
    (tmp_path / "job.yaml").write_bytes(b"\xef\xbb\xbf" + TEXT.encode())
    assert load(str(tmp_path / "job.yaml"), []).algorithm.name == "grpo"


def test_what_is_no_file_is_one_line_and_nothing_waits(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "big.yaml").touch()
    os.truncate(tmp_path / "big.yaml", 2**30)
    expected = {
        "pipe.yaml": "config file: must be a file, got a pipe or device, ",
        "big.yaml": "config file: must be at most 65536 bytes, got more, ",
        ".": "config file: must be a file, got a directory, ",
        "/dev/zero": "config file: must be a file, got a pipe or device, ",
        "big.yml": "config file: cannot be read (No such file or directory), got ",
        "a=b": "config file: cannot be read (No such file or directory), got ",
        "x" * 5000: "config file: cannot be read (File name too long), got ",
        "a\0b": "config file: cannot be read (no file name), got ",
    }
    for name, line in expected.items():
        with pytest.raises(UserError) as caught:
            load(os.path.join(tmp_path, name), [])
        assert [problem[: len(line)] for problem in caught.value.problems] == [line]
    with pytest.raises(UserError, match=r"\(did you mean .*big\.yaml\?\)$"):
        load(str(tmp_path / "big.yml"), [])


def test_an_override_may_begin_a_section_that_is_null(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(yaml.safe_dump({**JOB, "policy": None}))
    assert load(str(tmp_path / "job.yaml"), ["policy.ranks=2"]).policy.ranks == 2


@pytest.mark.parametrize(
    ("name", "whose"),
    [("actors.py", "Tandem's actors"), ("random.py", "Python's random"), ("torch/__init__.py", "the package torch"),
     ("annotated_types.py", "the package annotated_types"), ("markupsafe.so", "the package markupsafe"),
     ("fsspec.cpython-311-x86_64-linux-gnu.so", "the package fsspec"), ("httpx.pyc", "the package httpx"),
     ("yaml/__init__.pyc", "the package yaml"), ("google/protobuf.py", "the package google"),
     ("sitecustomize.py", "Python's sitecustomize")],
)  # fmt: skip
def test_a_file_that_hides_a_module_is_refused(tmp_path: Path, name: str, whose: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("raise RuntimeError('imported')\n")
    problem = shadowing(str(tmp_path))
    assert problem and problem.startswith(f"working directory: must hold no {name.partition('/')[0]}, which would be")
    assert whose in problem


def test_usual_files_hide_nothing(tmp_path: Path) -> None:
    for name in ("test.py", "my_reward.py", "rewards.py", "torch.txt", "wandb"):
        (tmp_path / name).touch()
    (tmp_path / "ray").mkdir()
    assert shadowing(str(tmp_path)) is None
    assert shadowing(str(ROOT)) is None


@pytest.mark.parametrize("name", ["actors.py", "socket.py"])
def test_the_command_line_refuses_them(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("raise RuntimeError('imported')\n")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "launch", "check", "job.yaml"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    [line] = done.stderr.splitlines()
    assert line.startswith(f"error: working directory: must hold no {name}, ")
    assert (done.returncode, done.stdout) == (2, "")


FURTHER = {
    "policy.optimizer.lr=0.1.2": "policy.optimizer.lr: must be a number, got '0.1.2'",
    "policy.optimizer.name=AdamW": "policy.optimizer.name: must be one of 'adamw', 'adam' or 'sgd', got 'AdamW' (did you mean adamw?)",
    "data.train=": "data.train: must be a file or folder, a hub id or module:function, or several of them by name ({math: math.jsonl, code: code.jsonl}), got null",
}


@pytest.mark.parametrize("given", FURTHER)
def test_a_hint_is_the_right_one(given: str, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(JOB))
    with pytest.raises(UserError) as caught:
        load(str(tmp_path / "job.yaml"), [given])
    assert caught.value.problems == (FURTHER[given],)
