"""The command line as a user meets it: exit codes, one line per mistake, no traceback, nothing started."""

import contextlib
import importlib.util
import json
import os
import pty
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from actors.config import UserError
from launch.config import machine_cpus
from launch.sizes.machine import machine_gpus
from launch.verbs.chat import chat
from tests.fake_models import fake_model
from tests.preloaded_commands import Commands

ROOT = Path(__file__).parent.parent
ROWS = [{"prompt": f"reverse {text}", "answer": text[::-1]} for text in ("abc", "dba", "cab", "bcd")]
CONFIG = {
    "algorithm": {"name": "grpo", "prompts_per_step": 4, "samples_per_prompt": 4, "samples_per_update": 8},
    "model": {"init": {"hidden_size": 32, "layers": 2, "heads": 1, "max_positions": 64}},
    "data": {"train": "rows.jsonl"},
    "reward": {"functions": ["my_reward.py:score"]},
    "rollout": {"max_prompt_tokens": 32, "max_response_tokens": 16},
    "cluster": {"cpus": 4},
}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "my_reward.py").write_text("def score(completion, answer):\n    return float(completion == answer)\n")
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(CONFIG))
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "ab", "chosen": "ba", "rejected": "ab"}\n')
    fake_model(tmp_path / "causal", model_type="llama", architectures=["LlamaForCausalLM"])
    return tmp_path


ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": "HUB"}
ENVIRONMENT.pop("RAY_ADDRESS", None)
Tandem = Callable[..., subprocess.CompletedProcess[str]]


def for_real(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """As a user starts a command."""
    command = [sys.executable, "-m", "launch", *arguments]
    return subprocess.run(command, cwd=directory, env=ENVIRONMENT, capture_output=True, text=True, timeout=60)


@pytest.fixture(scope="module")
def tandem() -> Iterator[Tandem]:
    """Runs a command in a directory, forked with its imports done."""
    with Commands(ENVIRONMENT) as commands:
        yield lambda directory, *arguments: commands.run(*arguments, cwd=directory, env=ENVIRONMENT, timeout=60)


MISTAKES = {
    "unknown verb": (
        ["chek", "job.yaml"],
        "verb: must be one of init, run, sweep, check, data, chat, export, curves, metrics, watch, report, mine, "
        "search, submit, status, logs, stop, list, k8s, completion, help (did you mean check?), got chek",
    ),
    "unknown option": (
        ["check", "job.yaml", "--jso"],
        "--jso: unknown option of tandem check (did you mean --json?)",
    ),
    "no config": (
        ["run", "jobs.yaml"],
        "config file: cannot be read (No such file or directory), got jobs.yaml (did you mean job.yaml?)",
    ),
    "unknown key": (
        ["check", "job.yaml", "policy.rank=2"],
        "policy.rank: unknown field (did you mean ranks?), got 2",
    ),
    "no model directory": (
        ["check", "job.yaml", "model={path: no/such/model}"],
        "model.path: must be a model directory with a config.json, got no/such/model",
    ),
    "hub id without a hub": (
        ["check", "job.yaml", "model={path: owner/name}"],
        "model.path: no such directory, and the hub cannot give it (its cache HUB does not hold it, and HF_HUB_OFFLINE "
        "forbids to load it: `hf download owner/name` does, where there is a network), got owner/name",
    ),
    "too many ranks": (
        ["run", "job.yaml", "policy.ranks=8", "cluster.cpus=1"],
        "policy.ranks: needs 2.6 CPUs in all (policy 8 x 0.25 + rollout 1 x 0.5 + reward 1 x 0.1), "
        f"got 1 CPU by cluster.cpus (this machine has {machine_cpus()})",
    ),
    "too many GPUs": (
        ["check", "job.yaml", "rollout.gpus_per_engine=1", "rollout.engines=3", "cluster.gpus=1"],
        "rollout.engines: needs 3 GPUs in all (rollout 3 x 1), got 1 GPU by cluster.gpus "
        f"(this machine has {machine_gpus()}) (for one GPU: cluster.placement=shared, as in configs/grpo-1gpu.yaml)",
    ),
    "no critic": (
        ["run", "job.yaml", "algorithm={name: ppo}"],
        "critic: required for ppo (critic={} takes the defaults), got nothing",
    ),
    "nothing to compare with": (
        ["run", "job.yaml", "algorithm={name: grpo, samples_per_prompt: 1}"],
        "algorithm.samples_per_prompt must be at least 2 for grpo with advantage group, which compares the samples of "
        "a group, got 1",
    ),
    "kto with paired data": (
        [
            "check",
            "job.yaml",
            "algorithm={name: dpo, steps: 5, loss: kto}",
            "data={train: pairs.jsonl, max_length: 64}",
            "reward={}",
            "rollout={}",
        ],
        "data.train: loss kto needs prompt + completion + label, these rows are pairs (columns prompt, chosen, "
        "rejected): choose another algorithm.loss, or make two labelled rows of each pair",
    ),
    "reward model without a score head": (
        ["check", "job.yaml", "reward={models: [causal]}"],
        "reward.models.0.path: must be a sequence-classification model, as the reward job exports it, "
        "got LlamaForCausalLM in causal",
    ),
    "heads without a kernel": (
        ["check", "job.yaml", "model.init.heads=2"],
        "model.init.heads: heads must be of size 32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512 "
        "for rollout on CPU, got 16",
    ),
    "heads that processes cannot share": (
        ["check", "job.yaml", "rollout.tensor_parallel=2"],
        "rollout.tensor_parallel: must divide the model's 1 attention heads, got 2",
    ),
    "more ranks than samples": (
        ["check", "job.yaml", "policy.ranks=9", "policy.cpus_per_rank=0.1"],
        "policy.ranks: must not exceed the samples of an update (8), got 9",
    ),
    "cache smaller than a sequence": (
        [
            "check",
            "job.yaml",
            "model.init={hidden_size: 1024, layers: 8, heads: 8, max_positions: 40000}",
            "rollout.max_response_tokens=39968",
        ],
        "rollout.memory_gib: must hold the keys and values of one sequence of 40000 tokens (2.4 GiB), got 1",
    ),
    "reward that does not import": (
        ["run", "job.yaml", "reward.functions=[other.py:score]"],
        "reward.functions.0.name: ",
    ),
    "chat with nothing": (
        ["chat", "outputs/run", "--prompt", "hello"],
        "MODEL: must be a model directory or a run directory with an export, got outputs/run",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_exit_2(tandem: Tandem, project: Path, mistake: str) -> None:
    arguments, expected = MISTAKES[mistake]
    done = tandem(project, *arguments)
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {expected}") if expected.endswith(": ") else line == f"error: {expected}"
    assert (done.returncode, done.stdout) == (2, "")
    assert not (project / "outputs").exists()


def test_every_mistake_is_reported_at_once(tandem: Tandem, project: Path) -> None:
    (project / "a file").write_text("")
    changes = [
        "run.output=a file/below",
        "data.train=row.jsonl",
        "reward.functions=[my_reward:scor]",
        "policy.ranks=90",
    ]
    done = tandem(project, "check", "job.yaml", *changes)
    fields = [line.removeprefix("error: ").partition(":")[0] for line in done.stderr.splitlines()]
    assert fields == ["run.output", "policy.ranks", "policy.ranks", "data.train", "reward.functions.0.name"]
    expected = (
        f"error: run.output: must be a directory that can be written ({project}/a file is a file), got a file/below"
    )
    assert done.stderr.splitlines()[0] == expected


def test_a_model_that_reads_less_than_a_rollout(tandem: Tandem, project: Path) -> None:
    model = fake_model(project / "model", max_position_embeddings=40)
    (model / "model.safetensors").rename(model / "elsewhere")
    done = tandem(project, "check", "job.yaml", "model={path: model}")
    assert done.stderr.splitlines()[0] == "error: model.path: must hold weights (*.safetensors or *.bin), got model"
    (model / "elsewhere").rename(model / "model.safetensors")
    done = tandem(project, "check", "job.yaml", "model={path: model}")
    assert done.stderr.splitlines()[0] == (
        "error: rollout.max_prompt_tokens + rollout.max_response_tokens: must not exceed the model's "
        "max_position_embeddings (40), got 48"
    )


def test_check_prints_the_report_and_starts_nothing(project: Path) -> None:
    started = time.monotonic()
    done = for_real(project, "check", "job.yaml", "run.name=first", "algorithm.steps=5")
    assert time.monotonic() - started < 10  # about one second on an idle machine
    assert (done.returncode, done.stderr) == (0, "")
    assert "4 prompts x 4 samples = 16 samples a step = 2 updates x 8 samples" in done.stdout
    lines = done.stdout.splitlines()
    assert '  name: "first"  # set' in lines
    assert "  steps: 5  # set" in lines
    assert "  temperature: 1.0" in lines
    assert "\x1b" not in done.stdout
    assert not (project / "outputs").exists()


def test_check_as_json(tandem: Tandem, project: Path) -> None:
    done = tandem(project, "check", "job.yaml", "--json", "policy.ranks=2", "policy.zero_stage=2")
    found = json.loads(done.stdout)
    assert found["config"]["policy"]["zero_stage"] == 2
    assert [(item["group"], item["count"], item["zero_stage"]) for item in found["placement"]] == [
        ("policy", 2, 2),
        ("rollout", 1, None),
        ("reward", 1, None),
    ]
    policy = found["memory"]["processes"]["policy"]
    assert policy["gradients"] * 2 == policy["weights"] == found["memory"]["parameters"] * 4
    assert found["arithmetic"]["rows"] == len(ROWS)
    assert found["arithmetic"]["micro_batches"] == 1


def test_help_is_fast_and_check_imports_nothing_heavy(project: Path) -> None:
    started = time.monotonic()
    done = for_real(project, "--help")
    assert time.monotonic() - started < 3  # 0.1 s on an idle machine
    assert done.returncode == 0
    verbs = ("run", "check", "data", "chat", "export", "submit", "status", "logs", "stop", "list", "k8s")
    assert all(f"  {verb} " in done.stdout for verb in verbs)

    program = (
        "import sys; from launch.cli import main; code = main(['check', 'job.yaml', '--json']);"
        "print(code, [name for name in ('torch', 'ray', 'vllm', 'deepspeed', 'datasets') if name in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    found = subprocess.run(
        [sys.executable, "-c", program], cwd=project, env=environment, capture_output=True, text=True
    )
    assert found.stdout.splitlines()[-1] == "0 []"


def test_chat_answers_from_a_run_directory(project: Path) -> None:
    """Without scikit-learn, which transformers would import: a second of CPU."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from actors.config import ModelInit
    from actors.models.skeleton import hf_config
    from actors.models.tokenizer import build_char_tokenizer

    init = ModelInit(hidden_size=32, layers=1, heads=4, max_positions=32, tie_embeddings=False)
    tokenizer = build_char_tokenizer(init.alphabet)
    values = hf_config(init, "fp32", len(tokenizer), int(tokenizer.eos_token_id), int(tokenizer.pad_token_id))
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**values))
    with torch.no_grad():  # a model that always says z
        for name, parameter in model.named_parameters():
            parameter.fill_(1.0 if "norm" in name or "embed" in name else 0.0)
        model.lm_head.weight[tokenizer.convert_tokens_to_ids("z")] = 1.0
    model.save_pretrained(project / "outputs/first/export")
    tokenizer.save_pretrained(project / "outputs/first/export")

    program = "import sys; from launch.cli import main; code = main(); print(code, 'sklearn' in sys.modules)"
    command = [sys.executable, "-c", program, "chat", "outputs/first", "--prompt", "reverse abc", "--max-tokens", "5"]
    done = subprocess.run(command, cwd=project, env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("zzzzz\n0 False\n", "")
    with pytest.raises(UserError, match="must be shorter than the model's 32 tokens, got 43"):
        chat(str(project / "outputs/first"), prompt="a" * 40, temperature=1.0, max_tokens=5)


def test_chat_names_the_nearest_run(tandem: Tandem, project: Path) -> None:
    export = project / "outputs/first/export"
    export.mkdir(parents=True)
    (export / "config.json").write_text("{}")
    (export / "model.safetensors").write_bytes(b"")
    done = tandem(project, "chat", "outputs/frst", "--prompt", "hello")
    rule = "must be a model directory or a run directory with an export (did you mean outputs/first?)"
    assert done.stderr == f"error: MODEL: {rule}, got outputs/frst\n"


@pytest.mark.parametrize("verb", ["export", "chat"])
def test_a_run_that_has_not_finished_says_what_there_is(tandem: Tandem, project: Path, verb: str) -> None:
    run = project / "outputs/first"
    run.mkdir(parents=True)
    (run / "config.json").write_text(json.dumps({"algorithm": {"name": "grpo", "steps": 200}}))
    started = tandem(project, verb, "outputs/first", *(["--prompt", "x"] if verb == "chat" else []))
    again = "start it again with `tandem run outputs/first/config.json`"
    field = "MODEL" if verb == "chat" else "RUN"
    line = f"error: {field}: the run has not finished and has no checkpoint; {again}, got outputs/first\n"
    assert (started.returncode, started.stderr) == (2, line)
    (run / "checkpoints").mkdir()
    (run / "checkpoints/latest").write_text("step-40")
    stopped = tandem(project, verb, "outputs/first", *(["--prompt", "x"] if verb == "chat" else []))
    resume = "resume it with `tandem run outputs/first/config.json checkpoint.resume=true`"
    rule = "the run has not finished: there is a checkpoint of step 40 of 200, but no model yet"
    assert (stopped.returncode, stopped.stderr) == (2, f"error: {field}: {rule}; {resume}, got outputs/first\n")


def test_storage_that_cannot_be_used_is_told_before_anything_starts(tandem: Tandem, project: Path) -> None:
    if importlib.util.find_spec("s3fs") is None:
        lacks = tandem(project, "check", "job.yaml", "run.storage=s3://bucket/a")
        rule = "needs the package s3fs, which is not installed (pip install s3fs), got s3://bucket/a"
        assert (lacks.returncode, lacks.stderr) == (2, f"error: run.storage: {rule}\n")
    within = tandem(project, "run", "job.yaml", f"run.storage=file://{project}/outputs", "run.output=outputs")
    rule = f"must be apart from the run's directory, outputs/run, got file://{project}/outputs"
    assert (within.returncode, within.stderr) == (2, f"error: run.storage: {rule}\n")


def test_export_copies_a_finished_model(tandem: Tandem, project: Path) -> None:
    export = fake_model(project / "outputs/first/export")
    assert tandem(project, "export", "outputs/first").stdout == "outputs/first/export\n"
    done = tandem(project, "export", "outputs/first", "--output", "mine")
    assert (done.returncode, done.stdout) == (0, "mine\n")
    assert (project / "mine/model.safetensors").read_bytes() == (export / "model.safetensors").read_bytes()
    again = tandem(project, "export", "outputs/first", "--output", "mine")
    assert (again.returncode, again.stderr) == (2, "error: --output: must be a new or empty directory, got mine\n")
    none = tandem(project, "export", "outputs/first", "--adapter")
    assert (none.returncode, none.stderr) == (2, "error: --adapter: needs a run with model.lora, got outputs/first\n")
    url = f"file://{project}/there/mine"
    stored = tandem(project, "export", "outputs/first", "--output", url)
    assert (stored.returncode, stored.stdout) == (0, f"{url}\n"), stored.stderr
    assert (project / "there/mine/model.safetensors").read_bytes() == (export / "model.safetensors").read_bytes()
    again = tandem(project, "export", "outputs/first", "--output", url)
    assert (again.returncode, again.stderr) == (2, f"error: --output: must be a new or empty place, got {url}\n")
    other = tandem(project, "export", "outputs/first", "--output", "ftp://host/a")
    assert other.stderr == "error: --output: must begin with s3://, gs:// or file://, got ftp://host/a\n"
    below = tandem(project, "export", "outputs/first", "--output", "rows.jsonl/below")
    assert below.stderr.startswith("error: --output: must be a directory that can be written (")
    assert below.returncode == 2


def test_export_gives_the_model_or_the_adapters_of_a_run_with_lora(tandem: Tandem, project: Path) -> None:
    export = fake_model(project / "outputs/first/export")
    (export / "adapter").mkdir()
    (export / "adapter/adapter_config.json").write_text("{}")
    assert tandem(project, "export", "outputs/first", "--output", "whole").returncode == 0
    copied = {path.name for path in (project / "whole").iterdir()}
    assert copied == {path.name for path in export.iterdir()} - {"adapter"}
    assert tandem(project, "export", "outputs/first", "--adapter", "--output", "small").returncode == 0
    assert [path.name for path in (project / "small").iterdir()] == ["adapter_config.json"]


def test_export_of_a_step_that_is_not_kept(tandem: Tandem, project: Path) -> None:
    for name in ("step-20", "step-100", "step-40.partial"):
        (project / "outputs/first/checkpoints" / name).mkdir(parents=True)
    none = tandem(project, "export", "outputs/first", "--step", "20")
    rule = "RUN: must be the directory of a run with a config.json for --step, got outputs/first"
    assert (none.returncode, none.stderr) == (2, f"error: {rule}\n")
    resolved = json.loads(tandem(project, "check", "job.yaml", "--json").stdout)["config"]
    (project / "outputs/first/config.json").write_text(json.dumps(resolved))
    for name in ("step-20", "step-100"):
        (project / "outputs/first/checkpoints" / name / "manifest.json").write_text("{}")
    done = tandem(project, "export", "outputs/first", "--step", "40")
    rule = "must be a step whose checkpoint is kept in outputs/first (20, 100), got 40"
    assert (done.returncode, done.stderr) == (2, f"error: --step: {rule}\n")
    assert tandem(project, "export", "outputs/first", "--step", "x").returncode == 2


def test_chat_is_not_for_reward_models(tandem: Tandem, project: Path) -> None:
    fake_model(project / "causal", architectures=["Qwen2ForSequenceClassification"])
    done = tandem(project, "chat", "causal", "--prompt", "hello")
    rule = (
        "must generate text, and a reward model or reranker gives scores (of passages: `tandem search causal`), "
        "got Qwen2ForSequenceClassification in causal"
    )
    assert (done.returncode, done.stderr) == (2, f"error: MODEL: {rule}\n")


def test_a_terminal_shows_what_is_to_run_at_once_and_a_mistake_last(project: Path) -> None:
    """Also while the configuration is being checked, which takes time."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "TERM": "xterm", "COLUMNS": "80"}
    environment.pop("RAY_ADDRESS", None)
    (project / "my_reward.py").write_text("import no_such_module\n")
    command = [sys.executable, "-m", "launch", "run", "job.yaml", "run.name=first"]
    process = subprocess.Popen(command, cwd=project, env=environment, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    parts: list[bytes] = []
    with contextlib.suppress(OSError):  # how the end of a terminal's output is told
        while part := os.read(ours, 4096):
            parts.append(part)
    os.close(ours)
    assert process.wait(60) == 2
    text = b"".join(parts).decode()
    first, second, *_ = text.splitlines()
    assert first == "GRPO, 100 steps:  new qwen2 of 36,416 parameters"
    assert second == "data: rows.jsonl (4 rows)  devices: 4 CPUs, no GPU  into: outputs/first"
    assert "checking the configuration (0 s)  elapsed 0:0" in text
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    assert plain.splitlines()[-1].startswith("error: reward.functions.0.name: importing my_reward.py")
    assert plain.count("error: ") == 1 and "Traceback" not in plain


def test_a_second_signal_does_not_interrupt_the_end(tmp_path: Path) -> None:
    program = (
        "import os, signal, time\n"
        "from launch.run.signals import interruptible\n"
        "with interruptible():\n"
        "    try:\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "        time.sleep(30)\n"
        "    except KeyboardInterrupt:\n"
        "        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):\n"
        "            os.kill(os.getpid(), number)\n"
        "        time.sleep(0.1)\n"
        "        print('ended in order')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ended in order\n", "")


def test_sigterm_that_comes_twice_at_once_is_one() -> None:
    """As from Ray Jobs, which signals all of a job's processes, and from the driver's parent; a later one counts."""
    program = (
        "import os, signal, time\n"
        "from launch.run import signals\n"
        "with signals.interruptible():\n"
        "    signals.finish_steps()\n"
        "    for _ in range(2):\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "        time.sleep(0.05)\n"
        "    print(signals.asked_to_stop())\n"
        "    signals._ONE_S = 0.01\n"
        "    try:\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "        time.sleep(30)\n"
        "    except KeyboardInterrupt:\n"
        "        print(signals.interrupted_by())\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\nSIGTERM\n", "")


def test_k8s_prints_manifests_and_checks_those_edited_by_hand(tandem: Tandem, project: Path) -> None:
    done = tandem(project, "k8s", "job.yaml")
    assert done.returncode == 0, done.stderr
    assert [document["kind"] for document in yaml.safe_load_all(done.stdout)] == [
        "ConfigMap",
        "NetworkPolicy",
        "RayJob",
    ]
    (project / "run.yaml").write_text(done.stdout)
    assert tandem(project, "k8s", "--check", "run.yaml").returncode == 0
    (project / "run.yaml").write_text(done.stdout.replace("submissionMode:", "submisionMode:"))
    checked = tandem(project, "k8s", "--check", "run.yaml")
    assert (checked.returncode, checked.stderr.count("\n")) == (2, 1), checked.stderr
    assert "submisionMode" in checked.stderr and "submissionMode" in checked.stderr
