"""Set-up on an ordinary machine: which torch is installed, what a wheel holds, and `tandem init`.

pip is a fake that records what it is asked and gives what a test says an index has; the wheel is a real one.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path
from typing import Any

import pytest

from launch.cli import main

ROOT = Path(__file__).resolve().parent.parent
INSTALLER = ROOT / "requirements/install_torch.py"
CPU_BUILD, CUDA_BUILD = "2.13.0+cpu", "2.13.0"
PYTORCH = "https://download.pytorch.org/whl/cpu"
FAKE_PIP = """
import json, os, pathlib, shutil, sys
here = pathlib.Path(__file__).parent.parent
indexes = json.loads((here / "indexes.json").read_text())
words = sys.argv[1:]
index = words[words.index("--index-url") + 1] if "--index-url" in words else "configured"
with (here / "asked.jsonl").open("a") as log:
    print(json.dumps([index, *words]), file=log)
given = indexes.get(index)
if given is None:
    print("ERROR: Could not find a version that satisfies the requirement", file=sys.stderr)
    sys.exit("ERROR: No matching distribution found for torch==2.13.0+cpu")
if given == "unreachable":
    lost = "NewConnectionError('<pip.HTTPSConnection object at 0x7f>: Name or service not known')"
    print(f"WARNING: Retrying (Retry(total=0)) after connection broken by '{lost}': /whl/cpu/torch/", file=sys.stderr)
    sys.exit("ERROR: No matching distribution found for torch==2.13.0+cpu")
for old in here.glob("torch*"):
    shutil.rmtree(old)
(here / "torch").mkdir()
(here / "torch" / "__init__.py").write_text(given["code"])
info = here / ("torch-" + given["version"] + ".dist-info")
info.mkdir()
(info / "METADATA").write_text("Name: torch\\nVersion: " + given["version"] + "\\n")
(info / "RECORD").touch()
"""
GOOD = {"version": CPU_BUILD, "code": f"__version__ = {CPU_BUILD!r}"}
MISSING = "libcudnn.so.9: cannot open shared object file: No such file or directory"
CUDA = {"version": CUDA_BUILD, "code": f"raise ImportError({MISSING!r})"}


class Machine:
    """A bare environment with the fake pip, and what its indexes have."""

    def __init__(self, directory: Path, indexes: dict[str, object]) -> None:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", directory], check=True)
        self.python = directory / "bin/python"
        [self.packages] = directory.glob("lib/python*/site-packages")
        (self.packages / "pip").mkdir()
        (self.packages / "pip/__main__.py").write_text(FAKE_PIP)
        self.offer(indexes)

    def offer(self, indexes: dict[str, object]) -> None:
        (self.packages / "indexes.json").write_text(json.dumps(indexes))

    def install(self, *options: str, **environment: str) -> tuple[int, str, str]:
        done = subprocess.run(
            [self.python, INSTALLER, *options, ROOT / "requirements/torch.txt"],
            env={"PATH": os.environ["PATH"], **environment},
            capture_output=True,
            text=True,
            timeout=60,
        )
        return done.returncode, done.stdout, done.stderr

    def asked(self) -> list[str]:
        """Indexes that pip was asked for the CPU build, without dependencies, one after the other."""
        log = self.packages / "asked.jsonl"
        calls = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        assert all(call[1] == "install" and "--no-deps" in call for call in calls)
        assert all(Path(call[-1]) == ROOT / "requirements/torch.txt" for call in calls)
        return [call[0] for call in calls]


def test_torch_comes_from_the_configured_indexes_if_they_have_it(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "env", {"configured": GOOD, PYTORCH: CUDA})
    assert machine.install() == (0, f"torch {CPU_BUILD}: about 200 MB\n", "")
    assert machine.asked() == ["configured"]
    machine.offer({})
    whole, part = (machine.packages / f"{name}-1.0.dist-info" for name in ("whole", "part"))
    for directory, names in ((whole, ("METADATA", "RECORD")), (part, ("METADATA",))):
        directory.mkdir()
        for name in names:
            (directory / name).touch()
    assert machine.install() == (0, "part-1.0 was installed in parts: once more\n", "")
    assert whole.is_dir() and not part.exists(), "what an interrupted pip left is installed again by the list"
    assert machine.install() == (0, "", ""), "what is there and can be imported is left alone"
    assert machine.asked() == ["configured"]


def test_torch_comes_from_pytorch_else_or_from_the_index_that_is_named(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "env", {PYTORCH: GOOD})
    assert machine.install()[0] == 0
    assert machine.asked() == ["configured", PYTORCH]
    other = Machine(tmp_path / "other", {PYTORCH: GOOD, "https://mirror/cpu": GOOD})
    assert other.install(TORCH_INDEX="https://mirror/cpu")[0] == 0
    assert other.asked() == ["configured", "https://mirror/cpu"]


def test_torch_that_no_index_has_is_one_line(tmp_path: Path) -> None:
    code, _, error = Machine(tmp_path / "env", {PYTORCH: "unreachable"}).install()
    assert (code, error.count("\n")) == (2, 1), error
    assert re.fullmatch(
        r"error: torch: must be on an index that pip reaches, as torch==2\.13\.0\+cpu for Python 3\.\d+ on \w+, "
        rf"got pip's configured indexes: No matching distribution found for torch==2\.13\.0\+cpu; {PYTORCH}: "
        r"NewConnectionError\('Name or service not known'\) \(TORCH_INDEX=URL names another index\)\n",
        error,
    )


def test_what_cannot_be_imported_is_installed_once_more_and_else_one_line(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "env", {"configured": CUDA})
    assert machine.install()[0] == 0
    code, _, error = machine.install("--check")
    assert code == 2
    assert error == (
        f"error: torch: must be importable, got ImportError: {MISSING} (torch {CUDA_BUILD} at "
        f"{machine.packages / 'torch'}, another build than {CPU_BUILD}: one for CUDA lacks NVIDIA's libraries here; "
        f"{machine.python} -m pip uninstall torch, and set up again), also after another installation from pip's "
        f"configured indexes\n"
    )
    machine.offer({PYTORCH: GOOD})
    assert machine.install() == (0, f"torch {CPU_BUILD}, in place of {CUDA_BUILD}: about 200 MB\n", "")
    assert machine.install("--check") == (0, "", "")
    (machine.packages / "torch/__init__.py").write_text("raise ImportError('cut short')")
    assert machine.install("--check")[::2] == (0, "")
    assert "--force-reinstall" in (machine.packages / "asked.jsonl").read_text().splitlines()[-1]
    (machine.packages / "torch/__init__.py").write_text("__version__ = '2.9.0'")
    machine.offer({})
    assert machine.install("--check")[0] == 2


def parts_module() -> Any:
    """requirements/install_parts.py, which is no module of a package."""
    import importlib.util

    sys.path.insert(0, str(ROOT / "requirements"))
    try:
        spec = importlib.util.spec_from_file_location("install_parts", ROOT / "requirements/install_parts.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(str(ROOT / "requirements"))


@pytest.mark.parametrize("name", ["cpu.txt", "dev.txt"])
def test_every_package_is_in_one_part_with_its_hashes(name: str) -> None:
    text = (ROOT / "requirements" / name).read_text()
    given = parts_module().parts(text, 2)
    entries = [set(re.findall(r"^\S+==\S+(?: \\\n +--hash=\S+)+", part, re.MULTILINE)) for part in given]
    whole = set(re.findall(r"^\S+==\S+(?: \\\n +--hash=\S+)+", text, re.MULTILINE))
    assert len(given) == 2 and entries[0] | entries[1] == whole and not entries[0] & entries[1]
    assert len(whole) == len(re.findall(r"^\S+==", text, re.MULTILINE))
    assert abs(len(entries[0]) - len(entries[1])) <= 1


def test_a_pip_that_fails_fails_the_set_up_when_all_have_ended(tmp_path: Path) -> None:
    slow = f"import pathlib, time; time.sleep(1); pathlib.Path({str(tmp_path / 'done')!r}).touch()"
    commands = [[sys.executable, "-c", program] for program in ("raise SystemExit(3)", slow)]
    assert parts_module().together(commands) == 3
    assert (tmp_path / "done").exists()
    assert parts_module().together(commands[1:]) == 0


def test_one_script_decides_for_every_environment() -> None:
    """Make, images and benchmarks: none asks pip for torch by itself, and no list pulls a CUDA build."""
    files = {name: (ROOT / name).read_text() for name in ("Makefile", "Dockerfile.cpu", "benchmarks/trl_env.py")}
    for name, text in files.items():
        assert "install_torch.py" in text, name
        assert "--check" in text, name
        assert not re.search(r"torch==|index-url", text), name
    for line in re.findall(r".*-r requirements.*|.*--requirement .*", files["Makefile"] + files["Dockerfile.cpu"]):
        assert "--no-deps" in line and "--require-hashes" in line
    for path in [*(ROOT / "requirements").glob("*.txt"), ROOT / "benchmarks/trl_requirements.txt"]:
        names = re.findall(r"^([\w.-]+)", path.read_text(), re.MULTILINE)
        assert [name for name in names if re.match(r"nvidia|cuda|triton|torch(vision|audio|codec)", name)] == [], path
    lists = {path.stem: path.read_text() for path in (ROOT / "requirements").glob("*.txt")}
    pins = {name: re.findall(r"^torch==(.*)", text, re.M) for name, text in lists.items()}
    assert {name: found for name, found in pins.items() if found} == {"torch": [CPU_BUILD]}


def test_a_machine_that_lacks_something_is_told_before_the_downloads(tmp_path: Path) -> None:
    program = textwrap.dedent(
        """
        import ctypes, importlib.util, runpy, sys
        sys.version_info, sys.platform = {version}, {platform!r}
        spec = importlib.util.find_spec
        importlib.util.find_spec = lambda name: None if name in {missing} else spec(name)
        def no_library(name):
            raise OSError(name)
        ctypes.CDLL = no_library
        sys.argv = ["check_machine.py", "--engine"]
        runpy.run_path({script!r}, run_name="__main__")
        """
    )

    def told(version: tuple[int, int, int], platform: str, missing: list[str]) -> list[str]:
        script = str(ROOT / "requirements/check_machine.py")
        code = program.format(version=version, platform=platform, missing=missing, script=script)
        done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, timeout=30)
        assert (done.returncode, done.stdout) == (2, ""), done.stderr
        return done.stderr.splitlines()

    [old] = told((3, 10, 1), "linux", [])
    assert old.startswith("error: PYTHON: must be Python 3.11 or later, got 3.") and "make setup PYTHON=python3" in old
    [venv, numa] = told((3, 12, 0), "linux", ["ensurepip"])
    assert "apt-get install python3.12-venv" in venv
    assert numa.startswith(
        "error: libnuma.so.1: must be installed, as vLLM loads it, got none (Debian, Ubuntu: apt-get"
    )
    [system] = told((3, 12, 0), "darwin", [])
    assert system.startswith("error: system: must be Linux")


def test_an_environment_of_another_python_is_not_kept_in_silence(tmp_path: Path) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    for path, version in (("python3.13", "3.13"), (".venv/bin/python", "3.11"), ("same", "3.11")):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(f"#!/bin/sh\necho {version}\n")
        (tmp_path / path).chmod(0o755)

    def make(*arguments: str) -> tuple[int, str]:
        command = ["make", "--dry-run", "--no-print-directory", *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env={"PATH": os.environ["PATH"]})
        return done.returncode, done.stderr

    rule = "PYTHON: must be that of the environment in .venv, Python 3.11 (`make clean` removes it), got"
    for target in ("setup", "test", "demo"):
        code, line = make(target, "PYTHON=./python3.13")
        assert code == 2 and line.count("\n") == 1 and f"{rule} ./python3.13, Python 3.13" in line
    code, line = make("setup", "PYTHON=./python4")
    assert code == 2 and f"{rule} ./python4, which does not run" in line
    assert make("clean", "PYTHON=./python3.13") == (0, "")
    # What is there may be used: only what the other targets need is not (their files are not there).
    for choice in ("PYTHON=./same", "SEED=1"):
        assert "PYTHON:" not in make("setup", choice)[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of this tree, installed without its dependencies into a directory of its own."""
    directory = tmp_path_factory.mktemp("wheel")
    tree, packages = directory / "tree", directory / "packages"
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("actors", "algorithms", "launch", "configs", "examples"):
        shutil.copytree(ROOT / name, tree / name, ignore=ignored)
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    (tree / "docs").mkdir()
    shutil.copy(ROOT / "docs/settings.md", tree / "docs")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    options = ["--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "wheel", *options, "--wheel-dir", directory, tree], check=True, timeout=120)
    [wheel] = directory.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--target", packages, wheel], check=True, timeout=120)
    names = zipfile.ZipFile(wheel).namelist()
    for kind in ("configs", "examples"):
        there = {path.name for path in (ROOT / kind).iterdir() if path.is_file()}
        assert {Path(name).name for name in names if name.startswith(f"launch/shipped/{kind}/")} == there
    assert "launch/shipped/settings.md" in names
    assert {name.partition("/")[0] for name in names if ".dist-info" not in name} == {"actors", "algorithms", "launch"}
    page = {path.relative_to(ROOT).as_posix() for path in (ROOT / "launch/page/static").rglob("*") if path.is_file()}
    assert page <= set(names) and "launch/page/static/vendor/uPlot-LICENSE.txt" in page
    return packages


def test_init_from_an_installed_wheel_gives_configs_that_check(installed: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(installed), "HF_HUB_OFFLINE": "1"}
    environment.pop("RAY_ADDRESS", None)

    def tandem(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "launch", *arguments]
        return subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, timeout=60)

    done = tandem(tmp_path, "init", "my project")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "next:     cd 'my project' && tandem check configs/own-task.yaml"
    for kind in ("configs", "examples"):
        there = {path.name for path in (ROOT / kind).iterdir() if path.is_file()}
        assert {path.name for path in (tmp_path / "my project" / kind).iterdir()} == there
    checked = tandem(tmp_path / "my project", "check", "configs/own-task.yaml")
    assert checked.returncode == 0, checked.stderr


def test_init_overwrites_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", str(tmp_path / "new/one")]) == 0
    assert (tmp_path / "new/one/examples/my_reward.py").read_text() == (ROOT / "examples/my_reward.py").read_text()
    capsys.readouterr()
    mine = tmp_path / "mine"
    (mine / "configs").mkdir(parents=True)
    assert main(["init", str(mine)]) == 2
    assert capsys.readouterr().err == f"error: DIR: must not have configs or examples yet, got {mine / 'configs'}\n"
    assert [path.name for path in mine.iterdir()] == ["configs"]
    (tmp_path / "file").touch()
    assert main(["init", str(tmp_path / "file")]) == 2
    assert capsys.readouterr().err == (
        f"error: DIR: must be a directory that can be written (File exists), got {tmp_path / 'file'}\n"
    )
