"""Secrets stay out of what is kept, shown and sent: configurations, messages, uploads, links out of a directory."""

import json
from pathlib import Path
from typing import Any

import pytest

from actors.config import UserError
from actors.secret_text import masked, masked_value
from launch.cli import main
from launch.config import RunConfig, load, validate
from launch.literal_secrets import plain_http_warnings, public_values, secret_problems
from launch.report import config_lines

MARK = "hunter2"
"""Stands for a secret: it must not appear anywhere."""
BASE: dict[str, Any] = {
    "algorithm": {"name": "grpo", "steps": 1, "prompts_per_step": 4, "samples_per_prompt": 4},
    "model": {"init": {"hidden_size": 64, "layers": 2, "heads": 2, "alphabet": "abcdefgh", "max_positions": 64}},
    "data": {"train": "algorithms.tasks:reverse", "arguments": {"count": 80, "length": 3, "letters": "abcdefgh"}},
    "reward": {"functions": ["exact_match"]},
    "rollout": {"max_prompt_tokens": 16, "max_response_tokens": 8},
    "tracking": {"wandb": False},
}
LITERALS = {
    "data.arguments.hf_token": MARK,
    "data.arguments.password": 31337,
    "data.arguments.store": {"apiKey": MARK},
    "data.train": f"https://me:{MARK}@files/rows.jsonl",
    "reward.endpoints": [{"url": "https://scores/x", "headers": {"Authorization": f"Bearer {MARK}"}}],
    "rollout.vllm": {"hf_token": MARK},
    "policy.deepspeed": {"comet": {"api_key": MARK}},
    "tracking.tags": ["hf_" + "a1" * 17],
    "tracking.project": f"https://host/?access_token={MARK}",
}


def written(path: Path, **sections: Any) -> str:
    values = {name: {**BASE.get(name, {}), **section} for name, section in sections.items()}
    path.write_text(json.dumps(BASE | values))
    return str(path)


def endpoint(url: str = "https://scores/x", **headers: str) -> dict[str, Any]:
    return {"endpoints": [{"url": url, "headers": headers}]}


@pytest.mark.parametrize("verb", ["run", "check", "data", "k8s"])
@pytest.mark.parametrize("field", LITERALS)
def test_no_verb_takes_a_literal_secret(
    field: str, verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    config = written(tmp_path / "a.yaml")
    assert main([verb, config, f"{field}={json.dumps(LITERALS[field])}"]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith(f"error: {field}")
    assert len(shown.err.splitlines()) == 1
    assert not any(secret in shown.err + shown.out for secret in (MARK, "31337", "a1a1"))
    assert [path.name for path in tmp_path.iterdir()] == ["a.yaml"]


def test_names_of_variables_and_harmless_names_pass(tmp_path: Path) -> None:
    arguments = {"hf_token": "$HF_TOKEN", "stop_token": "</s>", "answer_key": "solution", "max_tokens": 3}
    data = {"arguments": arguments, "system_prompt": "Say postgres://user:password@host is no address."}
    reward = endpoint(Authorization="Bearer $TOKEN", Accept="application/json") | {"functions": ["exact_match"]}
    config = load(written(tmp_path / "a.yaml", data=data, reward=reward), [])
    assert config.reward.endpoints[0].headers["Authorization"] == "Bearer $TOKEN"


@pytest.mark.parametrize("value", [f"Basic {MARK}", f"bearer {MARK}", "9f8e7d6c5b4a39281706", f"https://a:{MARK}@b"])
def test_a_header_of_any_name_is_judged_by_its_value(value: str) -> None:
    found = secret_problems(validate(BASE | {"reward": endpoint(**{"X-Custom": value})}))
    rule = "must name a variable of the environment, such as $TOKEN, got a literal (not shown)"
    assert found == [f"reward.endpoints.0.headers.X-Custom: {rule}"]


def test_what_is_kept_works_again_and_what_is_shown_has_no_literal_header(tmp_path: Path) -> None:
    """config.json is written as the configuration is, from which the run is resumed."""
    reward = endpoint(Authorization="Bearer $TOKEN", **{"X-Author": MARK}) | {"functions": ["exact_match"]}
    config = validate(BASE | {"reward": reward})
    (tmp_path / "config.json").write_text(json.dumps(config.model_dump(mode="json")))
    assert load(str(tmp_path / "config.json"), []) == config
    shown = public_values(config)["reward"]["endpoints"][0]["headers"]
    assert shown == {"Authorization": "Bearer $TOKEN", "X-Author": "(not shown)"}
    lines = [line for line, _ in config_lines(config)]
    assert MARK not in str(lines)
    assert "Bearer $TOKEN" in str(lines)


def test_weights_and_biases_is_sent_no_literal_header(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from launch import tracking

    sent: list[Any] = []
    monkeypatch.setattr(tracking.subprocess, "Popen", lambda *_, **__: type("", (), {"wait": lambda _: None})())
    monkeypatch.setattr(tracking._WandbSink, "_write", lambda _, value: sent.append(value))
    reward = endpoint(**{"X-Author": MARK}) | {"functions": ["exact_match"]}
    tracking._WandbSink(tmp_path, validate(BASE | {"reward": reward}))
    assert sent
    assert MARK not in str(sent)


MISTAKES = {
    "reward.endpoints": [{"url": f"ftp://me:{MARK}@h/x"}],
    "data.unknown": f"https://h/x?api_key={MARK}",
    "reward.headers": {"Authorization": MARK},
    "data.arguments": [{"password": MARK}],
    "algorithm.steps": {"api_key": MARK},
    "run.name": f"https://{MARK}@host",
}


@pytest.mark.parametrize("field", MISTAKES)
def test_lines_about_mistakes_show_no_secret(field: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", written(tmp_path / "a.yaml"), f"{field}={json.dumps(MISTAKES[field])}"]) == 2
    assert MARK not in capsys.readouterr().err


@pytest.mark.parametrize("override", [f"data.arguments.token {MARK}", f"data.arguments.token={MARK}"])
def test_overrides_that_are_none_show_no_secret(
    override: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", written(tmp_path / "a.yaml"), override, "data.arguments.token.x=1"]) == 2
    assert MARK not in capsys.readouterr().err


def test_the_command_line_masks_whatever_it_reports(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", f"https://me:{MARK}@host/a.yaml"]) == 2
    assert MARK not in capsys.readouterr().err


def test_masking_leaves_the_rest() -> None:
    text = f"GET https://me:{MARK}@host:8000/a?n=3&key={MARK}#x with Bearer {MARK} (a token of the hub, Bearer $TOKEN)"
    assert (
        masked(text) == "GET https://***@host:8000/a?n=3&key=***#x with Bearer *** (a token of the hub, Bearer $TOKEN)"
    )
    value = {"headers": {"A": MARK, "B": "Bearer $B"}, "store": {"password": [MARK, 3]}, "sort_key": "id"}
    shown = {"headers": {"A": "***", "B": "Bearer $B"}, "store": {"password": ["***", 3]}, "sort_key": "id"}
    assert masked_value(value) == shown


def test_a_token_over_plain_http_to_another_machine_is_warned_about() -> None:
    def warned(url: str) -> list[str]:
        return plain_http_warnings(validate(BASE | {"reward": endpoint(url, Authorization="Bearer $SCORES_TOKEN")}))

    rule = "sends $SCORES_TOKEN unencrypted to another machine (https keeps it secret on the way)"
    assert warned("http://scores:8000/x") == [f"reward.endpoints.0.url: {rule}, got http://scores:8000/x"]
    for url in ("https://scores/x", "http://localhost:1/x", "http://127.0.0.1:1/x", "http://[::1]:1/x"):
        assert warned(url) == []
    assert isinstance(validate(BASE), RunConfig)
    assert plain_http_warnings(validate(BASE)) == []
    with pytest.raises(UserError):
        validate(BASE | {"reward": {"endpoints": [{"url": "scores"}]}})
