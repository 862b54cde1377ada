"""Secrets stay out of what is kept, shown and sent: configurations, messages, uploads, links out of a directory."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from actors.config import UserError
from actors.group import first_line
from actors.models import hub_cache
from actors.secret_text import masked, masked_value
from algorithms.user.code import cause_of
from launch.checks.report import config_lines
from launch.cli import main
from launch.config import RunConfig, load, validate
from launch.exports.hub import push_export, push_model
from launch.jobs.package import package_warnings
from launch.jobs.secret_files import docker_lines, holds_secrets
from launch.jobs.selection import SECRET_FILE, select_files
from launch.run.run import keep_commits
from launch.screen.opening import opening_lines
from launch.settings.literal_secrets import plain_http_warnings, public_values, secret_problems
from launch.verbs.export import export
from tests.fake_models import cache_model, fake_model

ROOT = Path(__file__).parent.parent
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
    reward = endpoint(Authorization="Bearer $TOKEN", **{"X-Model": "ours/qwen2.5-7b-instruct-2024"}) | {
        "functions": ["exact_match"]
    }
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
    from launch.tracking import tracker as tracking

    sent: list[Any] = []
    monkeypatch.setattr(tracking.subprocess, "Popen", lambda *_, **__: type("", (), {"wait": lambda _: None})())
    monkeypatch.setattr(tracking._WandbSink, "_write", lambda _, value: sent.append(value))
    reward = endpoint(**{"X-Author": MARK}) | {"functions": ["exact_match"]}
    tracking._WandbSink(tmp_path, validate(BASE | {"reward": reward}))
    assert sent
    assert MARK not in str(sent)


@pytest.mark.parametrize("section", ["labels", "annotations", "node_selector"])
def test_labels_hold_no_secret(section: str) -> None:
    def found(name: str) -> list[str]:
        config = {"cluster": {"kubernetes": {section: {name: MARK}}}}
        return secret_problems(validate(BASE | config))

    [line] = found("example.com/api-token")
    assert line.startswith(f"cluster.kubernetes.{section}.example.com/api-token: must hold no secret (")
    assert MARK not in line
    assert found("vault.hashicorp.com/agent-inject-secret-hub") == []


KEY = "-----BEGIN {} KEY-----\nMIIEow\nhunter2\n-----END {} KEY-----"
TOKENS = {
    "sk-abc-" + "d-1" * 12,
    "wandb_v1_" + "a1" * 20,
    "npm_" + "a1" * 18,
    "xapp-1-" + "A1" * 10,
    "AccountKey=" + "a1" * 20 + "==",
    "nvapi-" + "a1-" * 12,
    KEY.format("OPENSSH PRIVATE", "OPENSSH PRIVATE"),
    KEY.format("PGP PRIVATE", "PGP PRIVATE").replace("KEY-----", "KEY BLOCK-----"),
    KEY.format("RSA PRIVATE", "RSA PRIVATE").partition("-----END")[0],
}


@pytest.mark.parametrize("token", sorted(TOKENS))
def test_tokens_are_refused_and_masked_whole(token: str) -> None:
    assert masked(f"it said {token}") == "it said ***"
    [line] = secret_problems(validate(BASE | {"data": {**BASE["data"], "arguments": {"text": token}}}))
    assert line.startswith("data.arguments.text: must hold no secret (")


def test_what_looks_a_little_like_a_token_is_none() -> None:
    text = "risk-of-something-very-long-words npm_config_registry xapp-1 AccountKey=$KEY -----BEGIN CERTIFICATE-----"
    assert masked(text) == text
    assert masked(f"{KEY.format('EC PRIVATE', 'EC PRIVATE')} and more") == "*** and more"


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
    for url in ("https://scores/x", "http://localhost:1/x", "http://127.0.0.1:1/x", "http://[::1]:1/x", "http://[::1"):
        assert warned(url) == []
    assert isinstance(validate(BASE), RunConfig)
    assert plain_http_warnings(validate(BASE)) == []
    with pytest.raises(UserError):
        validate(BASE | {"reward": {"endpoints": [{"url": "scores"}]}})


SECRET_FILES = (
    *(".git-credentials", ".docker/config.json", ".kube/config", ".config/gh/hosts.yml", ".ssh/known_hosts"),
    *(
        ".aws/config",
        ".pgpass",
        ".htpasswd",
        "token",
        "hf_token",
        "my-token.txt",
        "a.p12",
        "a.jks",
        "terraform.tfstate",
    ),
    *("service-account.json", ".env", ".env.local", ".netrc", "a/b/.AWS/config", "ID_RSA", "id_work", "a/tls.KEY"),
    *(
        "secrets/x.py",
        "secrets.yaml",
        ".gnupg/x",
        "api_key.txt",
        "kubeconfig",
        "prod.kubeconfig",
        "gcp-credentials.json",
    ),
    *("prod.env", "secret-hf.txt", ".secret", ".secrets.toml", "secrets.cfg", "passwords.csv", "passwd", "token.json"),
    *("token.pickle", "hub_token.json", "me_accessKeys.csv", "rootkey.csv", "new_user_credentials.csv", "key.json"),
    *("gcp-key.json", "gcp_key.json", "openai_api_key", "apikey", "apikeys.txt", ".databrickscfg", "pip.conf"),
    *(".authinfo", ".authinfo.gpg", ".vault_pass", ".snowflake/config.toml", ".ngc/config"),
)
HARMLESS_FILES = (
    *("tokens.txt", "tokenizer.json", "special_tokens_map.json", "added_tokens.json", "id_map.json", "monkey.py"),
    *("my_tokenizer.json", "pkg/secrets.py", "password_rules.py", "monkey.json", "keys.json", "passed.csv"),
    *(
        "environment.yaml",
        "kubeconfig.py",
        "environment.py",
        "id_classifier/a.py",
        "secret_text.py",
        ".config/matplotlib/x",
        "keys.jsonl",
    ),
)


def tree(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(MARK)
    return root


def test_files_and_folders_of_secrets_stay(tmp_path: Path) -> None:
    found = select_files(tree(tmp_path, *SECRET_FILES, *HARMLESS_FILES))
    assert sorted(found.files) == sorted(HARMLESS_FILES)
    assert found.left_out[".aws"] == found.left_out["a/b/.AWS"] == SECRET_FILE
    (tmp_path / ".rayignore").write_text("!/.aws/\n")
    assert ".aws/config" in select_files(tmp_path).files


def test_the_image_leaves_out_what_the_upload_does() -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    first, *rest = docker_lines()
    start = lines.index(first)
    assert lines[start : start + 1 + len(rest)] == [first, *rest]
    assert all(line.startswith("#") for line in lines[:start]), "later lines would be undone by those with !"
    assert not any(line.startswith("!") for line in lines[start + 1 + len(rest) :])


def test_no_file_of_this_repository_is_taken_for_a_secret() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert [path for path in listed.stdout.split("\0") if path and holds_secrets(path)] == []


def test_links_take_along_only_what_is_uploaded_itself(tmp_path: Path) -> None:
    outside, root = tree(tmp_path / "out", "marker.txt"), tree(tmp_path / "in", "plain.txt", ".env", "ignored.txt")
    (root / ".gitignore").write_text("ignored.txt\n")
    targets = {"a": outside / "marker.txt", "b": root / ".env", "c": root / "ignored.txt", "d": Path("plain.txt")}
    targets |= {"e": Path("a"), "f": Path("d"), "sub": outside}
    for name, target in targets.items():
        (root / name).symlink_to(target)
    found = select_files(root)
    assert sorted(found.files) == [".gitignore", "d", "f", "plain.txt"]
    assert package_warnings(found)[1:] == [
        f"upload: {name} is left out by Tandem, as a link to what is not uploaded ({target})"
        for name, target in {
            "a": outside / "marker.txt",
            "b": ".env",
            "c": "ignored.txt",
            "e": outside / "marker.txt",
        }.items()
    ]
    assert "as a link to what is not uploaded" in str(found.why_missing("a"))


def run_with_export(root: Path) -> Path:
    (root / "run").mkdir(parents=True)
    fake_model(root / "run" / "export")
    return root / "run"


def test_export_copies_no_file_from_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, outside = run_with_export(tmp_path), tree(tmp_path / "out", "marker.txt")
    (run / "export" / "same.json").symlink_to("config.json")
    export(str(run), output=str(tmp_path / "copy"))
    assert (tmp_path / "copy" / "same.json").read_text() == (run / "export" / "config.json").read_text()
    pushed: list[Any] = []
    monkeypatch.setattr("launch.exports.hub.push", lambda *given, **_: pushed.append(given))
    rule = "must hold no link that leads out of it or to a directory, got "
    link = run / "export" / "vocab.json"
    tree(run / "export", ".netrc")
    for target in (outside / "marker.txt", outside, Path("../../out/marker.txt"), Path(".netrc")):
        link.symlink_to(target)
        with pytest.raises(UserError, match=re.escape(f"RUN: {rule}{link} -> {target}")):
            export(str(run), output=str(tmp_path / "other"))
        with pytest.raises(UserError, match=re.escape(f"--push: {rule}{link} -> {target}")):
            push_model(str(run), "ours/model", private=False, adapter=False)
        assert rule in str(push_export(run, "ours/model", private=False))
        link.unlink()
    assert not (tmp_path / "other").exists()
    (run / "export").rename(tmp_path / "elsewhere")
    (run / "export").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="the directory itself can be named"):
        export(str(run), output=str(tmp_path / "other"))
    assert pushed == []


def test_export_copies_nothing_named_like_a_secret(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_with_export(tmp_path)
    tree(run / "export", ".env", "sub/id_rsa", ".aws/config", "sub/kept.json")
    export(str(run), output=str(tmp_path / "copy"))
    copied = {path.relative_to(tmp_path / "copy").as_posix() for path in (tmp_path / "copy").rglob("*")}
    assert {".env", "sub/id_rsa", ".aws"} & copied == set()
    assert {"config.json", "model.safetensors", "tokenizer.json", "sub/kept.json"} <= copied
    assert f"{run}/export/.env is left out, as it is named like a secret" in capsys.readouterr().err


def test_models_of_the_hubs_cache_are_links_and_can_be_copied(tmp_path: Path) -> None:
    folder = tmp_path / "models--a--b"
    snapshot = fake_model(folder / "snapshots" / ("c" * 40))
    (folder / "blobs").mkdir()
    (snapshot / "config.json").rename(folder / "blobs" / "1234")
    (snapshot / "config.json").symlink_to("../../blobs/1234")
    export(str(snapshot), output=str(tmp_path / "copy"))
    assert (tmp_path / "copy" / "config.json").read_text() == (folder / "blobs" / "1234").read_text()


def test_nothing_named_like_a_secret_is_pushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pushed: list[Any] = []
    monkeypatch.setattr("launch.exports.hub.push", lambda *given, **_: pushed.append(given))
    run = run_with_export(tmp_path)
    push_model(str(run), "ours/model", private=False, adapter=False)
    assert len(pushed) == 1
    tree(run / "export", ".env")
    with pytest.raises(UserError, match="--push: must hold no file that looks like a secret"):
        push_model(str(run), "ours/model", private=False, adapter=False)
    assert len(pushed) == 1


def test_the_commit_of_a_model_of_the_hub_is_shown_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub_cache, "_LOCATED", {})
    cache_model(tmp_path / "hub", "ours/model", revision="v1", commit="d" * 40)
    config = validate(BASE | {"model": {"path": "ours/model", "revision": "v1"}})
    first = opening_lines(config)[0]
    assert "ours/model@v1 (" in first
    assert f"commit {'d' * 40})" in first
    assert keep_commits(tmp_path) == []
    hub_cache.located("ours/model", "v1")
    assert keep_commits(tmp_path) == [f"ours/model@{'d' * 40}"]
    assert (tmp_path / "models.txt").read_text().endswith(f" ours/model@{'d' * 40}\n")


def test_failures_of_users_code_show_no_secret_of_a_url() -> None:
    error = OSError(f"404 for url: https://me:{MARK}@scores/x?api_key={MARK}&n=1")
    assert cause_of(error) == "OSError: 404 for url: https://***@scores/x?api_key=***&n=1"
    assert MARK not in first_line(str(error))
