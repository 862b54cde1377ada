"""What `tandem submit` uploads: files by ignore rules, the same hash for the same tree, paths that are not in it."""

import io
import json
import os
import random
import subprocess
import zipfile
from pathlib import Path

import pytest
from ray._private import ray_constants

from actors.config import UserError
from launch.config import RunConfig, load, validate
from launch.jobs import package as packaging
from launch.jobs.package import Package, package_files, package_warnings, shown_size
from launch.jobs.selection import select_files
from launch.jobs.uploadable import upload_problems
from launch.settings.literal_secrets import secret_problems

BASE = {
    "algorithm": {"name": "grpo", "prompts_per_step": 4, "samples_per_prompt": 4},
    "model": {"init": {"hidden_size": 32, "layers": 2, "heads": 1, "max_positions": 64}},
    "data": {"train": "rows.jsonl"},
    "reward": {"functions": ["exact_match"]},
    "rollout": {"max_prompt_tokens": 32, "max_response_tokens": 16},
    "run": {"name": "demo", "output": "/shared/outputs"},
}


def config(**sections: object) -> RunConfig:
    return validate(BASE | sections)


def tree(root: Path, *names: str, **texts: str) -> Path:
    for name in (*names, *texts):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(texts.get(name, name))
    return root


def test_ignore_files_decide_as_git_does(tmp_path: Path) -> None:
    """Compared with git itself, on rules with negation, anchors, nesting and directories."""
    names = ["a.py", "a.log", "keep.log", "build/x", "sub/build/y", "data/d.bin", "data/keep.txt", "sub/a.tmp"]
    names += ["sub/deep/a.tmp", "sub/deep/b.tmp", "top", "sub/top", "with space ", "doc/a/b/c.txt", "doc/c.txt"]
    tree(tmp_path, *names)
    (tmp_path / ".gitignore").write_text(
        "# no rule\n*.log\n!keep.log\n\nbuild/\ndata/*\n!data/keep.txt\n/top\ndoc/**/c.txt\n"
    )
    (tmp_path / "sub/.gitignore").write_text("*.tmp\n")
    (tmp_path / "sub/deep/.gitignore").write_text("!b.tmp\n")
    environment = {**os.environ, "HOME": str(tmp_path), "GIT_CONFIG_NOSYSTEM": "1"}
    for arguments in (["init", "-q"], ["ls-files", "--others", "--exclude-standard", "-z"]):
        done = subprocess.run(
            ["git", *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        )
    assert list(select_files(tmp_path).files) == sorted(done.stdout.rstrip("\0").split("\0"))
    assert "sub/deep/b.tmp" in select_files(tmp_path).files


def test_rayignore_adds_to_gitignore_and_may_bring_back(tmp_path: Path) -> None:
    tree(tmp_path, "a.txt", "b.txt", "c.txt", ".git/config", ".venv/bin/x", "outputs/run/x", "sub/outputs/y")
    tree(tmp_path, "other-venv/pyvenv.cfg", "other-venv/z", "sub/__pycache__/m.pyc")
    (tmp_path / ".gitignore").write_text("a.txt\nb.txt\n")
    (tmp_path / ".rayignore").write_text("c.txt\n!b.txt\n!outputs/\n")
    os.symlink(tmp_path / "sub", tmp_path / "link")
    found = select_files(tmp_path)
    assert list(found.files) == [".gitignore", ".rayignore", "b.txt", "sub/outputs/y"]
    assert found.why_missing("c.txt") == "c.txt is left out by .rayignore line 1 (c.txt)"
    assert found.why_missing("outputs/run") == "outputs is left out by Tandem, always"
    assert found.why_missing("link/outputs/y") == "link is left out by Tandem, as a link to a directory"


def packed(root: Path, run: RunConfig | None = None) -> Package:
    return package_files(select_files(root), run or config())


def test_the_same_tree_has_the_same_hash_and_another_has_another(tmp_path: Path) -> None:
    first, second = tree(tmp_path / "1", "b", "a/c"), tree(tmp_path / "2", "a/c", "b")
    os.utime(second / "b", (1, 1))
    (second / "__pycache__").mkdir()
    (second / "__pycache__/b.pyc").write_text("x")
    one, two = packed(first), packed(second)
    assert (one.digest, one.data.read()) == (two.digest, two.data.read())
    assert one.uri == f"gcs://_ray_pkg_{one.digest[:32]}.zip"
    digests = {one.digest, packed(first, config(run={"name": "demo", "output": "/elsewhere"})).digest}
    (first / "b").chmod(0o755)
    digests.add(packed(first).digest)
    (first / "b").write_text("other")
    digests.add(packed(first).digest)
    (first / "b").rename(first / "d")
    digests.add(packed(first).digest)
    assert len(digests) == 5


def test_the_package_holds_the_files_and_the_resolved_configuration(tmp_path: Path) -> None:
    tree(tmp_path, "mine.py", "sub/run.sh")
    (tmp_path / "tandem-run.json").write_text("an old one")
    (tmp_path / "sub/run.sh").chmod(0o755)
    package = packed(tmp_path)
    with zipfile.ZipFile(io.BytesIO(package.data.read())) as archive:
        assert sorted(archive.namelist()) == ["mine.py", "sub/run.sh", "tandem-run.json"]
        assert archive.read("mine.py") == b"mine.py"
        assert archive.getinfo("sub/run.sh").external_attr >> 16 & 0o777 == 0o755
        resolved = json.loads(archive.read("tandem-run.json"))
    assert validate(resolved) == config()
    assert package.files == 3


def test_what_is_too_large_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree(tmp_path, "small.py", **{"data/a.bin": "a" * 700, "data/b.bin": "b" * 500, "model.bin": "c" * 900})
    monkeypatch.setattr(packaging, "LARGEST_QUIET_FILE", 600)
    warned = [line.partition(" goes ")[0] for line in package_warnings(select_files(tmp_path))]
    assert warned == ["upload: data/a.bin (0.7 KiB)", "upload: model.bin (0.9 KiB)"]
    monkeypatch.setattr(packaging, "LARGEST_PACKAGE", 5000)
    (tmp_path / "small.py").write_text("#" * 9000)
    assert packed(tmp_path).size < 5000  # what counts is the zip
    (tmp_path / "model.bin").write_bytes(random.Random(0).randbytes(5000))
    with pytest.raises(UserError) as error:
        packed(tmp_path)
    assert str(error.value) == (
        "upload: must be a zip of at most 4.9 KiB, as Ray's dashboard takes no more (.rayignore leaves files out), got "
        "more in 4 files, the largest: small.py 8.8 KiB, model.bin 4.9 KiB, data/a.bin 0.7 KiB, data/b.bin 0.5 KiB"
    )


def test_the_limits_themselves_are_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree(tmp_path, **{"a.py": "a" * 700})
    size = packed(tmp_path).size
    monkeypatch.setattr(packaging, "LARGEST_PACKAGE", size)
    monkeypatch.setattr(packaging, "LARGEST_QUIET_FILE", 700)
    assert packed(tmp_path).size == size and package_warnings(select_files(tmp_path)) == []
    monkeypatch.setattr(packaging, "LARGEST_PACKAGE", size - 1)
    monkeypatch.setattr(packaging, "LARGEST_QUIET_FILE", 699)
    assert len(package_warnings(select_files(tmp_path))) == 1
    with pytest.raises(UserError, match="upload: must be a zip of at most"):
        packed(tmp_path)


def test_what_is_too_large_is_not_read_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is what comes after it."""
    tree(tmp_path, "a.bin", "b.bin")
    (tmp_path / "a.bin").write_bytes(random.Random(0).randbytes(4 << 20))
    found = select_files(tmp_path)
    (tmp_path / "b.bin").unlink()
    monkeypatch.setattr(packaging, "LARGEST_PACKAGE", 2 << 20)
    checked: list[int] = []
    check = packaging._check_size
    monkeypatch.setattr(packaging, "_check_size", lambda zipped, sizes: (checked.append(zipped), check(zipped, sizes)))
    with pytest.raises(UserError, match=r"upload: must be a zip of at most 2.0 MiB"):
        package_files(found, config())
    assert len(checked) == 3, "after as many MiB"


def test_a_file_that_is_gone_or_has_no_name_in_a_zip_is_one_line(tmp_path: Path) -> None:
    tree(tmp_path, "a.py")
    found = select_files(tmp_path)
    (tmp_path / "a.py").unlink()
    with pytest.raises(UserError) as caught:
        package_files(found, config())
    assert str(caught.value) == "upload: a.py must be a file that can be read (No such file or directory)"
    (tmp_path / os.fsdecode(b"b\xff.py")).touch()
    with pytest.raises(UserError) as caught:
        packed(tmp_path)
    assert str(caught.value) == r"upload: a file's name must be UTF-8, got b'b\xff.py'"


@pytest.mark.parametrize(
    ("size", "shown"),
    [(0, "0.0 KiB"), (512, "0.5 KiB"), (104_857, "102.4 KiB"), (104_858, "0.1 MiB"), (1_363_149, "1.3 MiB")],
)
def test_sizes_are_shown_in_the_larger_unit_from_a_tenth_of_it(size: int, shown: str) -> None:
    assert shown_size(size) == shown


def test_the_limit_is_that_of_rays_dashboard() -> None:
    assert packaging.LARGEST_PACKAGE == ray_constants.DASHBOARD_CLIENT_MAX_SIZE


def test_files_that_look_like_secrets_stay_here(tmp_path: Path) -> None:
    secrets = [".env", ".env.local", ".netrc", ".npmrc", ".pypirc", "a/credentials.json", "id_ed25519", "id_rsa.bak"]
    secrets += ["kubeconfig-prod", "sub/id.pem", "sub/tls.key"]
    tree(tmp_path, *secrets, "environment.py", "id_map.json", "monkey.py")
    (tmp_path / ".gitignore").write_text("!.env\n")
    found = select_files(tmp_path)
    assert list(found.files) == [".gitignore", "environment.py", "id_map.json", "monkey.py"]
    assert package_warnings(found) == [
        "upload: left out, as they look like secrets (a ! line of .rayignore brings back): " + ", ".join(secrets)
    ]
    assert str(found.why_missing("id_ed25519")).startswith("id_ed25519 is left out by Tandem, as a likely secret")
    (tmp_path / ".rayignore").write_text("!/.env\n!*.pem\n")
    found = select_files(tmp_path)
    assert {".env", "sub/id.pem"} <= found.files.keys()
    assert not {".env.local", "sub/tls.key"} & found.files.keys()


@pytest.mark.parametrize("text", ["\U0001f600", "a\x85b\u2028c\x7f\ufeff", "\\ud83d", "caf\u00e9"])
def test_the_configuration_arrives_as_it_was(tmp_path: Path, text: str) -> None:
    rollout = {"max_prompt_tokens": 32, "max_response_tokens": 16, "stop": [text]}
    with zipfile.ZipFile(packed(tmp_path, config(rollout=rollout)).data) as archive:
        archive.extract("tandem-run.json", tmp_path)
    assert load(str(tmp_path / "tandem-run.json"), []).rollout.stop == [text]


def test_half_a_character_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config file: must be Unicode text, .* got '.ud83d'"):
        packed(tmp_path, config(data={"train": "rows.jsonl", "system_prompt": "\ud83d"}))


def test_paths_of_the_configuration_must_be_in_the_upload(tmp_path: Path) -> None:
    tree(
        tmp_path, "rows.jsonl", "data/eval.jsonl", "rewards/mine.py", "convert.py", "other/mine.py", "here/config.json"
    )
    tree(tmp_path, "here/weights.safetensors", "critic/config.json", ".gitignore")
    tree(tmp_path.parent, "above/config.json")
    (tmp_path / ".gitignore").write_text("data/\nrewards/mine.py\nother/\nconvert.py\n*.safetensors\n")
    problems = upload_problems(
        config(
            model={"path": "here"},
            data={"train": "rows.jsonl", "eval": "./data/eval.jsonl", "converter": "convert:rows"},
            reward={
                "functions": ["rewards/mine.py:score", "other.mine:score", "exact_match", "/shared/r.py:score"],
                "models": ["../above", "/shared/reward", "critic", "owner/on-the-hub"],
            },
            run={"name": "demo", "output": "outputs"},
        ),
        select_files(tmp_path),
    )
    rule = "must be in the upload, or absolute on storage that all nodes share"
    below = "must be below the working directory, which is uploaded, or absolute on storage that all nodes share"
    assert problems == [
        "run.output: must be an absolute path on storage that all nodes of the cluster share, got outputs",
        f"model.path: {rule} (here/weights.safetensors is left out by .gitignore line 5 (*.safetensors)), got here",
        f"data.eval: {rule} (data is left out by .gitignore line 1 (data/)), got ./data/eval.jsonl",
        f"reward.models.0.path: {below}, got ../above",
        f"reward.functions.0.name: {rule} (rewards/mine.py is left out by .gitignore line 2 (rewards/mine.py)), "
        "got rewards/mine.py:score",
        f"reward.functions.1.name: {rule} (other is left out by .gitignore line 3 (other/)), got other.mine:score",
        f"data.converter: {rule} (convert.py is left out by .gitignore line 4 (convert.py)), got convert:rows",
    ]


def test_secrets_in_the_configuration_are_refused(tmp_path: Path) -> None:
    endpoints = [
        {"url": "https://me:hunter2@scores/score", "headers": {"Authorization": "Bearer hunter2", "X-Author": "me"}},
        {"url": "https://scores/score?api_key=hunter2&n=3", "headers": {"X-API-Key": "$SCORES_KEY"}},
        {"url": "https://scores/score?n=3", "headers": {"cookie": "hunter2", "Authorization": "Bearer $TOKEN"}},
    ]
    problems = upload_problems(config(reward={"endpoints": endpoints}), select_files(tmp_path))
    assert "hunter2" not in str(problems)
    literal = "must name a variable of the environment, such as $TOKEN, got a literal (not shown)"
    kept = "(a header with a $NAME keeps it out of the configuration), got https://scores/score"
    assert problems == [
        f"reward.endpoints.0.headers.Authorization: {literal}",
        f"reward.endpoints.0.url: must hold no user and password {kept}",
        f"reward.endpoints.1.url: must hold no literal api_key {kept}",
        f"reward.endpoints.2.headers.cookie: {literal}",
    ]


def test_secrets_in_arguments_are_refused() -> None:
    harmless = {"tokenizer": "gpt2", "stop_token": "</s>", "max_tokens": 3, "api_key": "$SCORES_KEY", "password": None}
    found = config(
        data={"train": "rows.jsonl", "arguments": {"hf_token": "hunter2", "store": {"apiKey": "hunter2"}} | harmless},
        reward={
            "functions": [
                "exact_match",
                {"name": "exact_match", "arguments": {"passwords": ["hunter2"], "url": "https://me:hunter2@scores"}},
            ]
        },
    )
    problems = secret_problems(found)
    assert "hunter2" not in str(problems)
    rule = "must hold no secret (it can name a variable that the function reads from its environment, such as $TOKEN)"
    arguments = ["data.arguments.hf_token", "data.arguments.store.apiKey"]
    arguments += ["reward.functions.1.arguments.passwords.0", "reward.functions.1.arguments.url"]
    assert problems == [f"{field}: {rule}, got a literal (not shown)" for field in arguments]
    assert secret_problems(config()) == []
