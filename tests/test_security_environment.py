"""Variables that a configuration sets: none runs other code, `check --no-code` takes over where caches are and no more,
and the hub's token goes to the hub that the user knows."""

import os
from pathlib import Path

import pytest

from actors.config import UserError
from launch.cli import main
from launch.config import validate
from launch.settings.environment import NO_TOKEN, taken_here, with_token_kept
from launch.telemetry import switch_off

JOB = """
algorithm: {name: grpo, steps: 1, prompts_per_step: 1, samples_per_prompt: 2}
model: {init: {}}
data: {train: rows.jsonl}
reward: {functions: [exact_match]}
run: {name: x}
"""
RUNS_CODE = (
    *("LD_PRELOAD", "LD_AUDIT", "DYLD_INSERT_LIBRARIES", "GCONV_PATH", "PYTHONWARNINGS", "PYTHONHOME", "PYTHONSTARTUP"),
    *(
        "PYTHONUSERBASE",
        "PYTHONPLATLIBDIR",
        "PYTHONINSPECT",
        "PATH",
        "BROWSER",
        "BASH_ENV",
        "ENV",
        "PERL5OPT",
        "RUBYOPT",
    ),
    *("NODE_OPTIONS", "JAVA_TOOL_OPTIONS", "_JAVA_OPTIONS", "GIT_SSH_COMMAND", "SSH_ASKPASS", "OPENSSL_CONF", "PAGER"),
    *("MPLBACKEND", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "RAY_RUNTIME_ENV_HOOK", "CUDA_INJECTION64_PATH"),
)
HARMLESS = {
    **dict.fromkeys(("PYTHONHASHSEED", "PYTHONUNBUFFERED", "PYTHONFAULTHANDLER", "OMP_PROC_BIND"), "1"),
    **dict.fromkeys(("NCCL_SOCKET_IFNAME", "LD_LIBRARY_PATH", "HF_HOME", "HTTPS_PROXY", "ENVIRONMENT", "MY_PATH"), "x"),
}


def config_with(section: str, variables: dict[str, str]) -> object:
    values = {
        "algorithm": {"name": "sft", "steps": 1},
        "model": {"init": {}},
        "data": {"train": "rows.jsonl"},
        section: {"env": variables},
    }
    return validate(values)


@pytest.mark.parametrize("section", ["cluster", "policy"])
def test_no_name_by_which_programs_run_other_code(section: str) -> None:
    for name in RUNS_CODE:
        with pytest.raises(UserError, match=rf"^{section}\.env\.{name} must be left out, as .*, got 'x'$"):
            config_with(section, {name: "x"})
    assert config_with(section, HARMLESS)


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "environ", os.environ.copy())
    for name in ("HF_ENDPOINT", NO_TOKEN, "ODD_ONE", "LD_LIBRARY_PATH"):
        os.environ.pop(name, None)
    switch_off()
    Path("job.yaml").write_text(JOB)
    Path("rows.jsonl").write_text('{"prompt": "a", "answer": "b"}\n')
    return "job.yaml"


GIVEN = {
    "HF_HOME": "/x/hub",
    "HF_HUB_OFFLINE": "1",
    "HF_ENDPOINT": "https://elsewhere",
    "HTTPS_PROXY": "http://elsewhere:1",
    "SSL_CERT_FILE": "/x/ca.pem",
    "LD_LIBRARY_PATH": "/x/lib",
    "HOME": "/x",
    "ODD_ONE": "1",
}


def test_what_check_takes_over(job: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, str]] = []
    monkeypatch.setattr("launch.checks.check.report", lambda *_, **__: seen.append(dict(os.environ)))
    before = dict(os.environ)
    variables = ", ".join(f"{name}: '{value}'" for name, value in GIVEN.items())
    assert main(["check", job, "--no-code", f"cluster.env={{{variables}}}"]) == 0
    assert {name: value for name, value in seen[0].items() if before.get(name) != value} == {
        "HF_HOME": "/x/hub",
        "HF_HUB_OFFLINE": "1",
    }
    os.environ.clear()
    os.environ.update(before)
    assert main(["check", job, f"cluster.env={{{variables}}}"]) == 0
    taken = {name: value for name, value in seen[1].items() if before.get(name) != value}
    assert taken == {name: value for name, value in GIVEN.items() if name not in ("LD_LIBRARY_PATH", "HOME")} | {
        NO_TOKEN: "1"
    }


@pytest.mark.parametrize(
    "name", ["HF_ENDPOINT", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"]
)
def test_the_token_goes_to_no_server_that_only_the_configuration_names(name: str) -> None:
    given = {name: "https://elsewhere", NO_TOKEN: "0"}
    assert with_token_kept(given, {})[NO_TOKEN] == "1"
    assert with_token_kept(given, {name: "https://ours"})[NO_TOKEN] == "1"
    assert taken_here(given, {}, code=True)[NO_TOKEN] == "1"
    assert with_token_kept({name: "https://ours"}, {name: "https://ours"}) == {name: "https://ours"}
    assert with_token_kept({"HTTPS_PROXY": "http://proxy"}, {name: "https://ours"}) == {"HTTPS_PROXY": "http://proxy"}
    assert taken_here(given, {}, code=False) == {}
