"""Manifests: good ones pass, each mistake is reported where it is, and every rule has a mistake that breaks it."""

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from launch.cli import main
from launch.kube.config_parts import image_ray_version
from launch.kube.dump import dump
from launch.kube.schema_types import quantity_value
from launch.kube.validate import manifest_problems
from tests.kube_manifests import RAY, config_map, edit, network_policy, ray_cluster, ray_job
from tests.kube_seeds import CLUSTER_SEEDS, CONFIG_MAP_SEEDS, JOB_SEEDS, POLICY_SEEDS, Seed

ROOT = Path(__file__).resolve().parent.parent
CHECKED = [*(ROOT / "launch/kube").glob("schema*.py"), *(ROOT / "launch/kube").glob("rules*.py")]
KINDS = {"RayJob": ray_job, "RayCluster": ray_cluster, "ConfigMap": config_map, "NetworkPolicy": network_policy}
SEEDS_OF = {
    "RayJob": JOB_SEEDS,
    "RayCluster": CLUSTER_SEEDS,
    "ConfigMap": CONFIG_MAP_SEEDS,
    "NetworkPolicy": POLICY_SEEDS,
}
SEEDS = [
    pytest.param(KINDS[kind], seed, id=f"{kind}-{index}-{seed.path.rpartition('.')[2]}")
    for kind, seeds in SEEDS_OF.items()
    for index, seed in enumerate(seeds)
]
FREE = (
    "labels",
    "annotations",
    "headServiceAnnotations",
    "matchLabels",
    "nodeSelector",
    "metadata",
    "resources",
    "data",
)
"""Mappings whose keys are the user's: a misspelt one is another one."""


def seeded(build: Callable[[], dict[str, Any]], seed: Seed) -> dict[str, Any]:
    document = build()
    for path, value in seed.edits.items():
        edit(document, path, value)
    return document


@pytest.mark.parametrize("build", KINDS.values(), ids=KINDS)
def test_a_good_manifest_has_no_problem(build: Callable[[], dict[str, Any]]) -> None:
    assert manifest_problems([build()], RAY) == []


def test_good_documents_have_no_problem_together() -> None:
    assert manifest_problems([config_map(), network_policy(), ray_job(), ray_cluster()], RAY) == []


@pytest.mark.parametrize(("build", "seed"), SEEDS)
def test_a_mistake_is_reported_where_it_is(build: Callable[[], dict[str, Any]], seed: Seed) -> None:
    document = seeded(build, seed)
    problems = manifest_problems([document], RAY)
    expected = f"{document['kind']}/{seed.path}"
    there = [line for line in problems if line.startswith(f"{expected}: ")]
    assert any(seed.says in line for line in there), problems
    assert all("\n" not in line and len(line) < 400 for line in problems)


def test_many_worker_groups_are_too_many_for_a_queue() -> None:
    document = ray_job()
    [group] = document["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    groups = [group | {"groupName": f"group-{index}"} for index in range(18)]
    document["spec"]["rayClusterSpec"]["workerGroupSpecs"] = groups
    [problem] = manifest_problems([document], RAY)
    assert problem == "RayJob/spec.rayClusterSpec.workerGroupSpecs: must be at most 17 with a queue, got 18"
    document["metadata"]["labels"] = {}
    assert manifest_problems([document], RAY) == []


def keys(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Paths of all mappings, with each of their keys."""
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        step = f"[{key}]" if isinstance(key, int) else f'["{key}"]'
        if isinstance(key, str):
            yield path, key
        yield from keys(item, path + step)


@pytest.mark.parametrize("build", KINDS.values(), ids=KINDS)
def test_every_misspelt_key_is_refused_where_it_is(build: Callable[[], dict[str, Any]]) -> None:
    names = [(path, key) for path, key in keys(build()) if not path.endswith(tuple(f'["{free}"]' for free in FREE))]
    names += [("", "metadata"), ('["metadata"]', "name")]
    assert len(names) > 5
    for path, key in names:
        for wrong in {key[:-1] + ("x" if key[-1] != "x" else "y"), key[1:], key[:1].swapcase() + key[1:]} - {""}:
            document = build()
            parent = document
            for step in [part.strip('"') for part in path.strip("[]").split("][") if part]:
                parent = parent[int(step) if step.isdecimal() else step]
            parent[wrong] = parent.pop(key)
            problems = manifest_problems([document], RAY)
            missing = ["kind: must be one of"] if (path, key) == ("", "kind") else [f"{wrong}: ", f'{wrong}"]: ']
            missing += ["limits: must have "] if "/" in wrong else []  # A resource of one of requests and limits alone.
            assert any(part in line for line in problems for part in missing), f"{path} {key} as {wrong}: {problems}"


def test_an_empty_value_is_refused_everywhere() -> None:
    for path, key in keys(ray_job()):
        document = ray_job()
        edit(document, f'{path}["{key}"]', None)
        assert manifest_problems([document], RAY) != [], (path, key)


def test_several_documents_are_told_apart() -> None:
    broken, other = ray_job(), ray_cluster()
    edit(broken, "spec.backoffLimit", -1)
    del other["metadata"]["name"]
    assert manifest_problems([config_map(), broken, other, [1]], RAY) == [  # type: ignore[list-item]
        "RayJob/demo/spec.backoffLimit: must be at least 0, got -1",
        "RayCluster/3/metadata.name: required, got nothing",
        "document 4: must be a mapping, got a list",
    ]
    twice = manifest_problems([ray_job(), ray_job()], RAY)
    assert twice == ["RayJob/demo/metadata.name: must differ from the other documents', got demo"]


def test_a_volume_takes_keys_that_its_config_map_has() -> None:
    job = ray_job()
    path = "spec.rayClusterSpec.headGroupSpec.template.spec.volumes[1].configMap.items[0].key"
    edit(job, path, "run.yml")
    assert manifest_problems([config_map(), job], RAY) == [
        f"RayJob/demo/{path}: must be a key of ConfigMap demo-config (run.yaml), got run.yml"
    ]
    assert manifest_problems([job], RAY) == [], "the ConfigMap may be in the cluster already"


def test_a_volume_finds_its_config_map_in_its_namespace() -> None:
    job, other = ray_job(), config_map()
    edit(other, "metadata.namespace", "else")
    problems = manifest_problems([other, job], RAY)
    path = "spec.rayClusterSpec.headGroupSpec.template.spec.volumes[1].configMap.name"
    rule = "must be a ConfigMap of the pods' namespace (training), got demo-config of else"
    assert f"RayJob/demo/{path}: {rule}" in problems
    edit(other, "metadata.namespace", "training")
    assert manifest_problems([other, job], RAY) == []


ENV = "spec.rayClusterSpec.headGroupSpec.template.spec.containers[0].env"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (f"{ENV}[0]", {"name": "A_TOKEN", "value": "s3cret"}),
        (f"{ENV}[0]", {"name": "A_TOKEN", "value": 53, "#": "s3cret"}),
        (f"{ENV}[0]", {"name": "A_TOKEN", "value": {"x": "s3cret"}}),
        (f"{ENV}[0]", {"name": "PROXY", "value": "http://me:s3cret@proxy"}),
        (f"{ENV}[0]", {"name": "A_TOKEN", "values": "s3cret"}),
        (ENV, {"A_TOKEN": "s3cret"}),
        ("spec.HF_TOKEN", "s3cret"),
        ("spec.runtimeEnvYAML", "env_vars: {WANDB_API_KEY: s3cret}"),
        ("spec.runtimeEnvYAML", "env_vars: {WANDB_API_KEY: [s3cret]}"),
        ("spec.metadata", {"HF_TOKEN": "s3cret"}),
        ("spec.rayClusterSpec.gcsFaultToleranceOptions", {"redisPassword": "s3cret"}),
        ("spec.rayClusterSpec.gcsFaultToleranceOptions", {"redisPassword": {"value": "s3cret"}}),
    ],
)
def test_a_secret_is_not_shown(path: str, value: Any) -> None:
    job = ray_job()
    edit(job, path, value)
    problems = manifest_problems([job], RAY)
    assert problems
    assert [line for line in problems if "s3cret" in line or "53" in line] == []


def test_what_is_no_secret_is_allowed() -> None:
    for name in ("RAY_AUTH_TOKEN_PATH", "TOKENIZERS_PARALLELISM", "MONKEY", "MYPASSWORD_FILE", "SECRETS_DIR", "PASSES"):
        job = ray_job()
        edit(job, "spec.rayClusterSpec.headGroupSpec.template.spec.containers[0].env[0].name", name)
        assert manifest_problems([job], RAY) == []


@pytest.mark.parametrize(
    ("image", "version"),
    [
        ("rayproject/ray:2.60.0-py311-gpu", "2.60.0"),
        ("localhost:5000/x/tandem:0.1.0-ray2.60.0", "2.60.0"),
        ("tandem:0.1.0-RAY_2.60.0rc1-cu12@sha256:0f", "2.60.0rc1"),
        ("rayproject/ray:latest", None),
        ("tandem:array2.1.0", None),
        ("localhost:5000/ray", None),
        ("tandem", None),
    ],
)
def test_the_version_of_ray_in_an_image(image: str, version: str | None) -> None:
    assert image_ray_version(image) == version


def test_a_command_of_its_own_is_announced_to_the_operator() -> None:
    job = ray_job()
    head = "spec.rayClusterSpec.headGroupSpec.template"
    edit(job, f"{head}.spec.containers[0].command", ["bash", "-c", "$KUBERAY_GEN_RAY_START_CMD"])
    edit(job, f"{head}.metadata.annotations", {"ray.io/overwrite-container-cmd": "true"})
    assert manifest_problems([job], RAY) == []


def check(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, list[str]]:
    """`tandem k8s` with arguments: exit code, what it prints, and its errors."""
    code = main(["k8s", *arguments])
    out, err = capsys.readouterr()
    return code, out, err.splitlines()


def test_a_file_is_checked_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, job = tmp_path / "run.yaml", ray_job()
    path.write_text(dump([config_map(), job]) + "---\n")
    assert check(capsys, "--check", str(path)) == (0, f"{path}: ok (ConfigMap demo-config, RayJob demo)\n", [])
    edit(job, "spec.backoffLimit", -1)
    edit(job, "spec.submisionMode", "HTTPMode")
    path.write_text(dump([config_map(), job]))
    assert check(capsys, "--check", str(path)) == (
        2,
        "",
        [
            "error: RayJob/demo/spec.backoffLimit: must be at least 0, got -1",
            "error: RayJob/demo/spec.submisionMode: unknown field (did you mean submissionMode?), got HTTPMode",
        ],
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "--check: must hold manifests, got "),
        ("a: [s3cret", "--check: must be a YAML file that can be read, got "),
        ("a: 2026-13-45", "--check: must be a YAML file that can be read, got "),
        (None, "--check: must be a YAML file that can be read, got "),
    ],
)
def test_a_file_without_manifests(
    text: str | None, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.yaml"
    if text is not None:
        path.write_text(text)
    code, _, [line] = check(capsys, "--check", str(path))
    assert code == 2
    assert line.startswith(f"error: {says}{path}")
    assert "s3cret" not in line


def test_a_config_or_a_file_of_manifests(capsys: pytest.CaptureFixture[str]) -> None:
    wrong = {
        (
            "configs/grpo.yaml",
            "--check",
            "run.yaml",
        ): "--check: must stand alone, without CONFIG and --kind, got configs",
        ("--check", "run.yaml", "--kind", "rayjob"): "--check: must stand alone, without CONFIG and --kind, got rayjob",
        (): "CONFIG: required without --check, got nothing (see tandem k8s --help)",
    }
    for arguments, says in wrong.items():
        code, out, [line] = check(capsys, *arguments)
        assert (code, out) == (2, "")
        assert line.startswith(f"error: {says}")


def test_quantities_are_numbers() -> None:
    values = {"500m": 0.5, "2Gi": 2**31, "1.5k": 1500, "1e3": 1000, 3: 3, ".5": 0.5, "0": 0, "1E": 1e18}
    assert {text: float(quantity_value(text)) for text in values} == values
    for wrong in ("", "Gi", "1 Gi", "1gb", "-1", "0x10", "1Gib"):
        with pytest.raises(ValueError, match="must be a quantity"):
            quantity_value(wrong)


def test_every_rule_is_broken_by_a_mistake() -> None:
    """Each line that yields or raises a problem runs for some seed."""
    reached: set[tuple[str, int]] = set()
    files = {str(path) for path in CHECKED}

    def lines(frame: FrameType, event: str, _: Any) -> Any:
        if event == "line":
            reached.add((frame.f_code.co_filename, frame.f_lineno))
        return lines

    tracer = sys.gettrace()
    sys.settrace(lambda frame, _event, _argument: lines if frame.f_code.co_filename in files else None)
    try:
        for parameters in SEEDS:
            manifest_problems([seeded(*parameters.values)], RAY)
        test_many_worker_groups_are_too_many_for_a_queue()
    finally:
        sys.settrace(tracer)
    stated = {
        (str(path), node.lineno)
        for path in CHECKED
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Yield | ast.Raise)
    }
    assert len(stated) > 60
    assert sorted(stated - reached) == []


def test_options_of_ray_start_are_those_of_ray() -> None:
    ray = pytest.importorskip("ray.scripts.scripts")
    options = {name.removeprefix("--") for item in ray.start.params for name in item.opts if name.startswith("--")}
    document = ray_job()
    start = document["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]
    start |= {name: "1" for name in options if name != "labels" and not name.startswith("redis-")}
    unknown = [line for line in manifest_problems([document], RAY) if "unknown option" in line]
    # What Ray hides, or no longer reads.
    hidden = {"enable-object-reconstruction", "no-monitor", "no-redirect-output", "ray-debugger-external"}
    hidden |= {"tracing-startup-hook", "labels-file"}
    assert {line.partition("rayStartParams.")[2].partition(":")[0] for line in unknown} <= hidden
    edit(document, "spec.rayClusterSpec.headGroupSpec.rayStartParams", {"num-cpus": "0", "wrong": "1"})
    assert len(manifest_problems([document], RAY)) == 1


def test_validation_imports_no_ray() -> None:
    program = (
        "import sys, launch.kube.validate; print(*{'ray', 'torch', 'transformers', 'kubernetes'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


def test_seeds_change_something() -> None:
    assert len(JOB_SEEDS) + len(CLUSTER_SEEDS) + len(CONFIG_MAP_SEEDS) > 100
    for parameters in SEEDS:
        build, seed = parameters.values
        assert seeded(build, seed) != build()  # type: ignore[operator]
