"""What `tandem k8s` renders: sizes, packing, secrets, every rule's line, and the manifests in k8s/ and tests/golden/.

After a change, render a golden file again: python -m launch k8s CONFIG --kind KIND > FILE
"""

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pathspec import GitIgnoreSpec

from actors.config import UserError
from launch.config import RunConfig, load, validate
from launch.jobs.selection import select_files
from launch.kube.assumptions import render_warnings
from launch.kube.config import KubernetesConfig
from launch.kube.packing import DRIVER_RESOURCE, pack_nodes, pod_groups
from launch.kube.pods import literal
from launch.kube.render import LONGEST_NAME, Kind, kube_name, manifests, render
from launch.kube.sizes import host_memory, worker_size
from launch.settings.file import apply_overrides, parse
from launch.settings.rules_kubernetes import check_kubernetes
from launch.sizes.placement import Reservation, demands
from tests.fake_models import header, write_safetensors
from tests.kube_crd import problems_by_crd

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
EXAMPLES: dict[str, tuple[str, Kind]] = {
    "k8s/examples/single-node.yaml": ("configs/grpo.yaml", "rayjob"),
    "k8s/examples/ppo-2x8.yaml": ("configs/k8s-ppo-2x8.yaml", "rayjob"),
    "k8s/examples/kueue.yaml": ("configs/k8s-grpo-kueue.yaml", "rayjob"),
    "k8s/examples/raycluster-dev.yaml": ("configs/grpo.yaml", "raycluster"),
    "tests/golden/k8s/autoscaling.yaml": ("tests/golden/k8s/autoscaling.config.yaml", "rayjob"),
    "tests/golden/k8s/queue.yaml": ("tests/golden/k8s/queue.config.yaml", "rayjob"),
}
GIB = 2**30
IMAGE = "cluster.kubernetes.image=registry.example.com/tandem:0.1.0-ray2.60.0"


@pytest.fixture(autouse=True)
def at_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where configurations are rendered."""
    monkeypatch.chdir(ROOT)


def configured(*overrides: str) -> RunConfig:
    """GRPO with a policy and an engine on a GPU each, and `a.b=c` overrides."""
    values: dict[str, Any] = {
        "algorithm": {"name": "grpo", "steps": 1},
        "model": {"path": "acme/model", "dtype": "bf16"},
        "data": {"train": "examples/own_task.jsonl"},
        "reward": {"functions": ["exact_match"]},
        "policy": {"gpus_per_rank": 1, "zero_stage": 1},
        "rollout": {"gpus_per_engine": 1},
        "checkpoint": {"every": 1},
    }
    config = validate(apply_overrides(values, list(overrides)))
    check_kubernetes(config)
    return config


def spec(config: RunConfig, kind: Kind = "rayjob") -> dict[str, Any]:
    """The spec of the RayJob or RayCluster."""
    return manifests(config, kind)[-1]["spec"]


def worker_groups(config: RunConfig) -> dict[str, Any]:
    groups = spec(config, "raycluster")["workerGroupSpecs"]
    return {group["groupName"]: group for group in groups}


def container(group: dict[str, Any]) -> dict[str, Any]:
    return group["template"]["spec"]["containers"][0]


def everywhere(value: Any) -> Iterator[dict[str, Any]]:
    """Every mapping in a manifest."""
    if isinstance(value, dict):
        yield value
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from everywhere(item)


@pytest.mark.parametrize("kind", ["rayjob", "raycluster"])
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_renders_and_is_the_same_run(path: Path, kind: Kind) -> None:
    config = load(str(path), [])
    documents = list(yaml.safe_load_all(render(config, kind)))
    if kind == "raycluster":
        assert [document["kind"] for document in documents] == ["NetworkPolicy", "RayCluster"]
        assert not any("configMap" in item for item in everywhere(documents)), "nothing is there to be mounted"
        return
    assert [document["kind"] for document in documents] == ["ConfigMap", "NetworkPolicy", "RayJob"]
    assert "immutable" not in documents[0], (
        "the node's agent would serve the old one to the pods of a run started again"
    )
    again = validate(parse(documents[0]["data"]["run.yaml"], "the ConfigMap"))
    if config.cluster.placement != "separate":
        assert again == config
    assert sum(demand.count for demand in demands(again)) == sum(
        count for group in pod_groups(config) for node in group.nodes for count in node.processes.values()
    )


@pytest.mark.parametrize(
    "path", [*CONFIGS, *(ROOT / "tests/golden/k8s").glob("*.config.yaml")], ids=lambda path: path.stem
)
def test_the_api_server_knows_every_field(path: Path) -> None:
    """By KubeRay's full CRDs, where they are, and Kubernetes' own schemas."""
    documents = [document for kind in LONGEST_NAME for document in manifests(load(str(path), []), kind)]
    assert [problem for document in documents for problem in problems_by_crd(document)] == []


@pytest.mark.parametrize("golden", EXAMPLES)
def test_golden_manifests_are_what_is_rendered(golden: str) -> None:
    """k8s/README.md and this file say how to render them again."""
    config, kind = EXAMPLES[golden]
    assert (ROOT / golden).read_text(encoding="utf-8") == render(load(config, []), kind)


def test_all_examples_are_compared_and_documented() -> None:
    assert {str(path.relative_to(ROOT)) for path in (ROOT / "k8s/examples").iterdir()} < EXAMPLES.keys()
    text = (ROOT / "k8s/README.md").read_text(encoding="utf-8")
    for golden, (config, kind) in EXAMPLES.items():
        if golden.startswith("k8s"):
            assert f"tandem k8s {config}{' --kind raycluster' * (kind == 'raycluster')} > {golden}\n" in text


@pytest.mark.parametrize("golden", EXAMPLES)
def test_secrets_are_only_references(golden: str) -> None:
    documents = list(yaml.safe_load_all((ROOT / golden).read_text(encoding="utf-8")))
    assert "Secret" not in {document["kind"] for document in documents}
    secret = re.compile(r"KEY|TOKEN|PASSWORD", re.IGNORECASE)
    named = [item for item in everywhere(documents[-1]) if secret.search(str(item.get("name", ""))) and "name" in item]
    variables = [item for item in named if item.keys() & {"value", "valueFrom"}]
    assert variables or "autoscaling" not in golden
    for item in variables:
        assert item.keys() == {"name", "valueFrom"}
        assert item["valueFrom"].keys() == {"secretKeyRef"}


def test_the_password_of_redis_is_a_reference() -> None:
    options = spec(load("tests/golden/k8s/queue.config.yaml", []))["rayClusterSpec"]["gcsFaultToleranceOptions"]
    assert options["redisPassword"] == {"valueFrom": {"secretKeyRef": {"name": "redis", "key": "password"}}}


@pytest.mark.parametrize("golden", EXAMPLES)
def test_every_pod_is_confined(golden: str) -> None:
    """No container of ours may be root, gain privileges or get a token, but the autoscaler's head."""
    document = list(yaml.safe_load_all((ROOT / golden).read_text(encoding="utf-8")))[-1]
    pods = [item for item in everywhere(document) if "containers" in item]
    assert len(pods) >= 2
    for pod in pods:
        security = pod["securityContext"]
        assert security["runAsNonRoot"] is True
        assert security["runAsUser"] > 0
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        head = pod["containers"][0]["name"] == "ray-head"
        assert pod["automountServiceAccountToken"] is (head and "autoscaling" in golden)
        for item in pod["containers"]:
            assert item["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            for kind in ("memory", "nvidia.com/gpu"):
                assert item["resources"]["requests"].get(kind) == item["resources"]["limits"].get(kind)


def expanded(text: str) -> str:
    """As Kubernetes documents it: $(NAME) is a variable's value, here V, and $$ one $."""
    return re.sub(r"\$\$|\$\(\w+\)", lambda found: "$" if found[0] == "$$" else "V", text)


@settings(deadline=None)
@given(st.text("$()A{", max_size=12))
def test_kubernetes_expands_nothing_of_the_users(text: str) -> None:
    assert expanded("$(A) $$(A) $$$(A)") == "V $(A) $V"
    assert expanded(literal(text)) == text


def test_the_users_text_is_literal() -> None:
    groups = worker_groups(configured("cluster.env={A: $$(X)}"))
    values = {item["name"]: item.get("value") for item in container(groups["workers"])["env"]}
    assert values["A"] == "$$$$(X)"


def test_the_entrypoint_is_a_command_without_shell_syntax() -> None:
    """KubeRay pastes it into a script of its own."""
    entrypoint = spec(configured("run.name=a.b"))["entrypoint"]
    assert re.fullmatch(r"[A-Za-z0-9 /=._-]+", entrypoint)


def test_a_drain_ends_before_the_pod_and_after_a_checkpoint() -> None:
    for overrides in ([], ["cluster.stop_wait_s=1200"], ["cluster.kubernetes.grace_s=331"]):
        config = configured(*overrides)
        pod = worker_groups(config)["workers"]["template"]["spec"]
        values = {item["name"]: item.get("value") for item in pod["containers"][0]["env"]}
        drain = int(values["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
        assert config.cluster.stop_wait_s < drain < pod["terminationGracePeriodSeconds"]
        assert values["RAY_JOB_STOP_WAIT_TIME_S"] == str(config.cluster.stop_wait_s)


def test_outputs_are_on_the_volume_wherever_the_code_looks() -> None:
    mounts = container(worker_groups(configured())["workers"])["volumeMounts"]
    assert [item for item in mounts if item["name"] == "shared"] == [
        {"name": "shared", "mountPath": "/shared"},
        {"name": "shared", "mountPath": "/opt/tandem/outputs", "subPath": "outputs"},
    ]
    mounts = container(worker_groups(configured("run.output=/shared/runs"))["workers"])["volumeMounts"]
    assert [item["mountPath"] for item in mounts if item["name"] == "shared"] == ["/shared"]


def test_separate_groups_find_their_pods_by_label() -> None:
    config = configured("cluster.placement=separate", "algorithm.kl_coef=0.1", "policy.node_labels={zone: a}")
    groups = worker_groups(config)
    assert groups["trainer"]["labels"] == {"tandem-role": "trainer", "zone": "a"}
    assert groups["rollout"]["labels"] == {"tandem-role": "rollout"}
    run = validate(parse(manifests(config)[0]["data"]["run.yaml"], "the ConfigMap"))
    labels = {demand.group: dict(demand.labels) for demand in demands(run)}
    assert labels == {
        "policy": {"tandem-role": "trainer", "zone": "a"},
        "rollout": {"tandem-role": "rollout"},
        "reference": {"tandem-role": "trainer"},
        "reward": {},
    }


def test_names_are_valid_and_differ() -> None:
    assert kube_name("grpo", 47) == "grpo"
    assert kube_name("grpo-1", 47) == "grpo-1"
    names = ["a.b", "a_b", "a-b", "a-b-", "x" * 48, "x" * 49, "9" * 60, "-".join("ab" * 40)]
    names += ["Foo", "foo", "FOO", "1st", "run-1st", "2X8", "2x8"]
    found = [kube_name(name, 47) for name in names]
    assert len(set(found)) == len(names)
    assert all(re.fullmatch(r"[a-z]([a-z0-9-]*[a-z0-9])?", name) and len(name) <= 47 for name in found)


# Sizes, by hand.


def test_a_known_model_gets_the_memory_of_its_processes(tmp_path: Path) -> None:
    """8 billion parameters in bf16: 14.9 GiB of weights; 12 bytes each of optimizer state on hosts, over 8 ranks."""
    parameters = 8_000_000_000
    shape = {"model_type": "granite", "num_attention_heads": 32, "hidden_size": 4096, "num_hidden_layers": 32}
    (tmp_path / "config.json").write_text(json.dumps(shape | {"intermediate_size": 11008, "vocab_size": 32000}))
    write_safetensors(tmp_path / "model.safetensors", header({"all": (parameters,)}, "BF16", 2))
    policy = "policy={ranks: 8, ranks_per_node: 8, gpus_per_rank: 1, zero_stage: 2, offload_optimizer: true}"
    config = configured(
        f"model.path={tmp_path}", policy, "rollout={engines: 4, tensor_parallel: 2, gpus_per_engine: 2}", IMAGE
    )
    memory = host_memory(config)
    assert memory is not None
    weights, offloaded = 2 * parameters, 12 * parameters // 8
    assert memory["policy"] == 400 * 2**20 + 3 * GIB + weights + offloaded
    assert memory["rollout"] == 2 * (550 * 2**20 + 3 * GIB) + weights
    group = pod_groups(config)[0]
    # 8 x (0.39 + 3 + 14.90 + 11.18) + 1 for Ray, 10 % more, is 260.4 -> 261; the engines' node needs less.
    assert worker_size(config, group, memory).memory_gib == 261 + 16
    assert [node.processes for node in group.nodes] == [{"policy": 8, "reward": 1}, {"rollout": 4}]
    assert render_warnings(config) == [
        f"model.path: {tmp_path} is on this machine; pods have the image's /opt/tandem and the volume at /shared"
    ]


def test_a_model_on_cpu_gets_what_check_estimates() -> None:
    """The demo's sizes: 1.1 x (0.5 for rewards + 1 for Ray + processes) + shared memory of 2."""
    config = load("configs/demo-grpo.yaml", ["model={init: {hidden_size: 64, layers: 2, heads: 2}}"])
    memory = host_memory(config)
    assert memory is not None
    [group] = pod_groups(config)
    assert group.gpus == 0
    [node] = group.nodes
    held = sum(memory[name] * count for name, count in node.processes.items() if name != "reward") / GIB
    reward = node.processes["reward"] / 2
    size = worker_size(config, group, memory)
    assert size.memory_gib == -int(-(1.1 * (held + reward + 1)) // 1) + 2
    assert (size.shm_gib, size.object_store_mib) == (2, 1024)


@pytest.mark.parametrize(
    ("overrides", "requests", "shm"),
    [
        ([], {"cpu": "16", "memory": "134Gi", "nvidia.com/gpu": "2"}, "4Gi"),  # 2 x 64 + 0.5 + 1 -> 130, + 4
        (["cluster.kubernetes.memory_gib_per_gpu=10"], {"cpu": "16", "memory": "26Gi", "nvidia.com/gpu": "2"}, "4Gi"),
        (["cluster.kubernetes.memory_gib=100"], {"cpu": "16", "memory": "100Gi", "nvidia.com/gpu": "2"}, "4Gi"),
        (["cluster.kubernetes.shm_gib=20"], {"cpu": "16", "memory": "150Gi", "nvidia.com/gpu": "2"}, "20Gi"),
        (
            ["cluster.object_store_mib=8192", "cluster.kubernetes.head.memory_gib=11"],
            {"cpu": "16", "memory": "140Gi", "nvidia.com/gpu": "2"},
            "10Gi",
        ),
        (["cluster.kubernetes.cpus_per_gpu=3"], {"cpu": "6", "memory": "134Gi", "nvidia.com/gpu": "2"}, "4Gi"),
        (["policy.cpus_per_rank=30"], {"cpu": "31", "memory": "134Gi", "nvidia.com/gpu": "2"}, "4Gi"),  # 30 + 0.5 + 0.1
        # A reward process takes half a GiB and a tenth of a CPU: 128 + 4 + 1 + 4.
        (["reward.workers=8"], {"cpu": "16", "memory": "137Gi", "nvidia.com/gpu": "2"}, "4Gi"),
        # The driver beside the groups.
        (
            ["cluster.kubernetes.gcs={storage: rocksdb, size_gib: 1}"],
            {"cpu": "17", "memory": "138Gi", "nvidia.com/gpu": "2"},
            "4Gi",
        ),
    ],
)
def test_sizes_of_a_model_that_is_not_here(overrides: list[str], requests: dict[str, str], shm: str) -> None:
    group = worker_groups(configured(*overrides))["workers"]
    assert container(group)["resources"]["requests"] == requests
    [volume] = [item for item in group["template"]["spec"]["volumes"] if item["name"] == "shm"]
    assert volume["emptyDir"] == {"medium": "Memory", "sizeLimit": shm}
    assert int(group["rayStartParams"]["object-store-memory"]) < int(shm.removesuffix("Gi")) * GIB


def test_processes_on_cpu_get_a_core_each_up_to_a_limit() -> None:
    for workers, cpus in ((3, "5"), (100, "16"), (300, "31")):  # 300 x 0.1 + 0.25 + 0.5 are reserved
        config = configured("policy={}", "rollout={}", "model={init: {}}", f"reward.workers={workers}")
        assert container(worker_groups(config)["workers"])["resources"]["requests"]["cpu"] == cpus


def test_the_head_does_no_work() -> None:
    head = spec(configured())["rayClusterSpec"]["headGroupSpec"]
    assert head["rayStartParams"]["num-cpus"] == head["rayStartParams"]["num-gpus"] == "0"
    assert "nvidia.com/gpu" not in container(head)["resources"]["limits"]


@pytest.mark.parametrize("placement", ["split", "separate"])
def test_the_driver_finds_room_beside_the_groups(placement: str) -> None:
    """Where it is not on the head: every pod it may be on has its CPU beside what is reserved there."""
    overrides = [f"cluster.placement={placement}", f"{K}.gcs={{storage: rocksdb, size_gib: 1}}"]
    config = load("configs/own-task.yaml", overrides)
    job = spec(config)
    asked = json.loads(job["entrypointResources"])
    assert asked.keys() == {DRIVER_RESOURCE}
    found = {group["groupName"]: group for group in job["rayClusterSpec"]["workerGroupSpecs"]}
    packed = {group.name: group for group in pod_groups(config)}
    assert found.keys() == packed.keys()
    homes = {
        name
        for name, group in found.items()
        if int(group.get("resources", {}).get(DRIVER_RESOURCE, 0)) >= asked[DRIVER_RESOURCE]
    }
    assert homes == found.keys() - {"rollout"}
    for name in homes:
        cpus = int(container(found[name])["resources"]["requests"]["cpu"])
        assert all(node.reserved["CPU"] + job["entrypointNumCpus"] <= cpus for node in packed[name].nodes)
    assert "entrypointResources" not in spec(load("configs/own-task.yaml", overrides[:1]))


# Packing.


def reservation(name: str, processes: int, gpus: float, per_node: int | None) -> Reservation:
    """Bundles of a group as launch/sizes/placement.py makes them."""
    together = per_node or 1
    count = processes * together
    return Reservation(
        name=name,
        bundles=[{"CPU": 0.25 * together, **({"GPU": gpus * together} if gpus else {})} for _ in range(processes)],
        ranks={name: [rank // together for rank in range(count)]},
        apart=per_node is not None,
    )


GROUPS = st.lists(
    st.tuples(st.integers(1, 12), st.sampled_from([0, 0.25, 0.3, 0.5, 1, 2, 4]), st.sampled_from([None, 1, 2])),
    min_size=1,
    max_size=5,
)


@settings(max_examples=200, deadline=None)
@given(GROUPS)
def test_packing_places_everything_within_capacity(groups: list[tuple[int, float, int | None]]) -> None:
    wanted = [reservation(f"g{index}", *group) for index, group in enumerate(groups)]
    nodes = pack_nodes(wanted, 8)
    for item, (bundles, gpus, per_node) in zip(wanted, groups, strict=True):
        counts = [node.processes[item.name] for node in nodes]
        assert sum(counts) == bundles * (per_node or 1)
        if per_node:
            assert sorted(set(counts) - {0}) == [per_node]  # exactly n on each node that has any
        assert sum(node.reserved["GPU"] for node in nodes) == pytest.approx(
            sum(bundle.get("GPU", 0) for other in wanted for bundle in other.bundles)
        )
        assert gpus <= 8
    for node in nodes:
        assert len(node.free) == 8
        assert node.processes
        assert all(-1e-9 <= share <= 1 for share in node.free)
        # What is gone from the GPUs is what was reserved; a bundle of more than one takes whole ones.
        assert 8 - sum(node.free) >= node.reserved["GPU"] - 1e-6
        assert node.gpus <= 8


def test_packing_is_tight_and_in_order() -> None:
    wanted = [reservation("policy", 1, 1, 4), reservation("rollout", 7, 1, None), reservation("critic", 1, 1, 4)]
    nodes = pack_nodes([*wanted, reservation("reference", 1, 0.5, None), reservation("reward_model", 1, 0.5, None)], 8)
    assert [dict(node.processes) for node in nodes] == [
        {"policy": 4, "rollout": 4},
        {"rollout": 3, "critic": 4, "reference": 1, "reward_model": 1},
    ]
    assert [node.gpus for node in nodes] == [8, 8]


def test_shared_groups_share_their_gpus() -> None:
    config = load("tests/golden/k8s/queue.config.yaml", [])
    [group] = pod_groups(config)
    assert [dict(node.processes) for node in group.nodes] == [
        {"policy": 2, "rollout": 2, "reference": 2, "reward": 4},
        {"policy": 2, "reference": 2},
    ]
    assert group.gpus == 2


# Rules: (overrides, the line).

K = "cluster.kubernetes"
AT_LOADING = [
    (
        f"{K}.retries=1; checkpoint.resume=false",
        f"{K}.retries must be 0 with checkpoint.resume false: each would start",
    ),
    (f"{K}.imag=x", f"{K}.imag: unknown field (did you mean image?)"),
    (f"{K}.image=tandem", f"{K}.image must name the installed Ray in its tag (ray2.60.0), got tandem"),
    (f"{K}.image=tandem:ray2.59.0", f"{K}.image must name the installed Ray in its tag (ray2.60.0), got tandem:ray2"),
    (f"{K}.image=ray2.60.0/tandem:1", f"{K}.image must name the installed Ray in its tag (ray2.60.0), got ray2"),
    (f"{K}.ttl_s=5; {K}.shutdown=false", f"{K}.ttl_s must be left out without shutdown, after which it counts, got 5"),
    (
        f"{K}.deletion_rules=[{{when: failed, policy: DeleteSelf}}]",
        f"{K}.shutdown must be false with deletion_rules, got true",
    ),
    (f"{K}.deletion_rules=[{{when: done, policy: DeleteSelf}}]", f"{K}.deletion_rules.0.when: must be one of"),
    (f"{K}.submission_mode=HttpMode", f"{K}.submission_mode: must be one of"),
    (f"{K}.submission_mode=InteractiveMode", f"{K}.submission_mode: must be one of"),
    (f"{K}.deadline_s=1800", f"{K}.deadline_s must exceed start_deadline_s (1800), got 1800"),
    (
        f"{K}.submission_mode=SidecarMode; {K}.gcs={{storage: rocksdb, size_gib: 1}}",
        f"{K}.gcs.storage must be none in SidecarMode",
    ),
    (f"{K}.queue={{name: a}}; {K}.shutdown=false", f"{K}.shutdown must be true with queue"),
    (
        f"{K}.queue={{name: a}}; {K}.shutdown=false; {K}.deletion_rules=[{{when: failed, policy: DeleteSelf}}]",
        f"{K}.deletion_rules must be left out with queue",
    ),
    (
        f"{K}.queue={{name: a}}; {K}.autoscaling={{}}; cluster.placement=separate",
        f"{K}.autoscaling must be left out with queue",
    ),
    (
        f"{K}.queue={{name: a, required_topology: b, preferred_topology: c}}",
        f"{K}.queue.preferred_topology must be left out with required_topology, got c",
    ),
    (
        f"{K}.queue={{name: a, required_topology: 'b c'}}",
        f"{K}.queue.required_topology must be the key of a node label, got 'b c'",
    ),
    (
        f"{K}.shutdown=false; {K}.autoscaling={{}}; cluster.placement=separate; "
        f"{K}.deletion_rules=[{{when: failed, policy: DeleteWorkers}}]",
        f"{K}.deletion_rules must not hold DeleteWorkers with autoscaling, got it",
    ),
    (f"{K}.autoscaling={{}}", f"{K}.autoscaling must be left out without rollout engines on nodes of their own"),
    (f"{K}.rollout_node_selector={{a: b}}", f"{K}.rollout_node_selector must be left out without rollout engines on"),
    (
        f"{K}.grace_s=330",
        f"{K}.grace_s must exceed 330, cluster.stop_wait_s and 30 more, got 330",
    ),
    (
        f"policy={{}}; rollout={{}}; model={{init: {{}}}}; {K}.cpus_per_gpu=4",
        f"{K}.cpus_per_gpu must be left out where no group asks for a GPU, got 4",
    ),
    (
        f"{K}.memory_gib=90; {K}.memory_gib_per_gpu=32",
        f"{K}.memory_gib_per_gpu must be left out with memory_gib, which is all memory, got 32",
    ),
    (
        f"{K}.secrets={{A B: {{name: a, key: b}}}}",
        f"{K}.secrets.A B must be a name of letters, digits and _, got 'A B'",
    ),
    (
        f"{K}.secrets={{RAY_AUTH_TOKEN: {{name: a, key: b}}}}",
        f"{K}.secrets.RAY_AUTH_TOKEN must be left out, as ray_auth",
    ),
    (
        f"{K}.secrets={{SPOT: {{name: a, key: b}}}}; policy.env={{SPOT: x}}",
        f"{K}.secrets.SPOT must be left out, as an env field sets SPOT, got both",
    ),
    (
        f"{K}.ray_auth=disabled; {K}.ray_auth_secret=a",
        f"{K}.ray_auth_secret must be left out with ray_auth disabled, got a",
    ),
    (f"{K}.gcs={{address: 'a:1'}}", f"{K}.gcs.address must be left out with storage none, got a:1"),
    (
        f"{K}.gcs={{storage: redis}}",
        f"{K}.gcs.address must be host:port or redis(s)://host:port with storage redis, got nothing",
    ),
    (
        f"{K}.gcs={{storage: redis, address: 'redis://:hush@redis:6379'}}",
        f"{K}.gcs.address must be host:port or redis(s)://host:port with storage redis, got a user or a password (not",
    ),
    (
        f"{K}.gcs={{storage: redis, address: 'a:1', size_gib: 1}}",
        f"{K}.gcs.size_gib must be left out with storage redis",
    ),
    (
        f"{K}.gcs={{storage: redis, address: 'a:1', password: {{name: a, key: b, optional: true}}}}",
        f"{K}.gcs.password.optional must be false",
    ),
    (f"{K}.gcs={{storage: rocksdb}}", f"{K}.gcs.claim must be given with storage rocksdb, or size_gib, but not both"),
    (f"{K}.volume={{mount: /opt}}", f"{K}.volume.mount must not overlap /opt/tandem, got /opt"),
    (f"{K}.volume={{mount: /tmp/x}}", f"{K}.volume.mount must not overlap /tmp, got /tmp/x"),
    (f"{K}.volume={{mount: shared}}", f"{K}.volume.mount: must "),
    (f"{K}.tolerations=[{{key: a, value: b}}]", f"{K}.tolerations.0.value must be left out with operator Exists"),
    (f"{K}.tolerations=[{{operator: Equal}}]", f"{K}.tolerations.0.operator Equal needs key and value, got key None"),
    (f"{K}.node_selector={{a b: c}}", f"{K}.node_selector.a b must be a Kubernetes name"),
    (f"{K}.labels={{a: b c}}", f"{K}.labels.a must have a value of at most 63 letters"),
    (f"{K}.labels={{ray.io/cluster: a}}", f"{K}.labels.ray.io/cluster must be left out, as Tandem, KubeRay or Kueue"),
    (f"{K}.annotations={{kueue.x-k8s.io/x: a}}", f"{K}.annotations.kueue.x-k8s.io/x must be left out, as Tandem"),
    (f"{K}.run_as_user=0", f"{K}.run_as_user: must be above 0, got 0"),
    (f"{K}.namespace=a.b", f"{K}.namespace: must "),
]
AT_RENDERING = [
    (
        "run.output=/data",
        "run.output: must be relative, or below cluster.kubernetes.volume.mount (/shared), on Kubernetes",
    ),
    ("run.output=../x", "run.output: must be a directory of its own on Kubernetes"),
    ("run.output=.", "run.output: must be a directory of its own on Kubernetes"),
    ("run.output=launch/x", "run.output: must be a directory of its own on Kubernetes"),
    (f"{K}.shm_gib=2", f"{K}.shm_gib: must exceed the object store (2 GiB), got 2"),
    (f"{K}.memory_gib=4", f"{K}.memory_gib: must exceed shared memory (4 GiB), got 4"),
    (f"{K}.head.memory_gib=3", f"{K}.head.memory_gib: must be at least 4, 2 beside its shared memory, got 3"),
    (
        "policy={ranks: 6, ranks_per_node: 6, gpus_per_rank: 1, zero_stage: 1}; " + f"{K}.gpus_per_node=4",
        f"{K}.gpus_per_node: must hold what is on one node, of policy 6 GPUs, got 4",
    ),
    (
        "policy.node_labels={zone: a}; rollout.node_labels={zone: b}",
        "policy.node_labels.zone: must be b as another group's on the same pods (workers), got a",
    ),
    (
        "cluster.driver_labels={role: driver}",
        "cluster.driver_labels: must be left out on Kubernetes, where the driver is on the head "
        "(cluster.kubernetes.gcs.storage puts it on a worker), got {'role': 'driver'}",
    ),
    ("cluster.env={HOME: /x}", "cluster.env.HOME: must be left out on Kubernetes, as it is a volume of the pod"),
    (
        "rollout.env={RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S: '3'}",
        "rollout.env.RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S: must be left out on Kubernetes, as ",
    ),
    (
        "policy.env={RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S: '3'}",
        "policy.env.RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S: must be left out on Kubernetes, as it follows from grace_s",
    ),
    ("policy.node_labels={zone: 'in(a, b)'}", "policy.node_labels.zone: must be a plain label on Kubernetes"),
]


@pytest.mark.parametrize(("overrides", "line"), AT_LOADING, ids=lambda value: value[:60])
def test_a_contradiction_is_one_line(overrides: str, line: str) -> None:
    with pytest.raises((UserError, ValueError)) as error:
        configured(*overrides.split("; "))
    assert str(error.value).startswith(line)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("overrides", "line"), AT_RENDERING, ids=lambda value: value[:60])
def test_what_cannot_be_on_kubernetes_is_one_line(overrides: str, line: str) -> None:
    config = configured(*overrides.split("; "))
    with pytest.raises(UserError) as error:
        manifests(config)
    [problem] = error.value.problems
    assert problem.startswith(line)


def test_defaults_contradict_nothing() -> None:
    """A run that is never rendered is not disturbed: each of these is fine without cluster.kubernetes."""
    for overrides in (
        ["checkpoint.resume=false"],
        ["run.output=/data"],
        ["cluster.stop_wait_s=5000"],
        ["cluster.env={HOME: /x, RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S: '3'}"],
    ):
        config = configured(*overrides)
        assert validate(config.model_dump(mode="json")) == config
        assert config.cluster.kubernetes == KubernetesConfig()


def test_retries_follow_from_what_can_resume() -> None:
    found = {
        overrides: spec(configured(*overrides))["backoffLimit"]
        for overrides in (
            (),
            ("checkpoint.resume=false",),
            (f"{K}.retries=5",),
        )
    }
    assert list(found.values()) == [2, 0, 5]


def test_submission_modes_have_their_own_fields() -> None:
    for mode in ("K8sJobMode", "HTTPMode", "SidecarMode"):
        job = spec(configured(f"{K}.submission_mode={mode}"))
        assert job["submissionMode"] == mode
        assert ("submitterPodTemplate" in job) is (mode == "K8sJobMode")


def test_warnings_name_what_was_assumed() -> None:
    unnamed, unknown, start = render_warnings(configured("checkpoint.every=null"))
    assert unnamed == (
        f"{K}.image: not given, so pods start from tandem:0.1.0-ray2.60.0, which every node must hold already; to name "
        f"one that nodes can pull: {K}.image=REGISTRY/tandem:0.1.0-ray2.60.0"
    )
    assert [unknown, start] == render_warnings(configured("checkpoint.every=null", IMAGE))
    assert unknown.startswith(f"{K}.memory_gib: the model is not on this machine")
    assert start.startswith("checkpoint.every: not given, so a retry starts from the beginning")
    assert render_warnings(configured(f"{K}.memory_gib=64", IMAGE)) == []
    scaled = [IMAGE, "cluster.placement=separate", f"{K}.autoscaling={{}}", f"{K}.memory_gib=64"]
    [late] = render_warnings(configured(*scaled, "cluster.wait_s=1199"))
    assert late.startswith("cluster.wait_s: rollout pods come only when the run waits for them")
    assert render_warnings(configured(*scaled, "cluster.wait_s=1200")) == []


def test_paths_of_this_machine_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights, data and functions that the pods lack; not what is in the image, on the volume or built in."""
    (tmp_path / "mine").mkdir()
    for name in ("mine/scores.py", "rows.py", "exact_match", "examples"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    functions = f"reward.functions=[exact_match, 'mine.scores:score', '{tmp_path}/rows.py:score', '/shared/r.py:score']"
    config = configured(functions, "data.converter='rows.py:rows'", "data.train=examples", f"{K}.memory_gib=64", IMAGE)
    assert [warning.partition(" is on this machine")[0] for warning in render_warnings(config)] == [
        "reward.functions.1.name: mine/scores.py",
        f"reward.functions.2.name: {tmp_path}/rows.py",
        "data.converter: rows.py",
    ]


def test_the_base_fits_what_is_rendered() -> None:
    """Kubernetes' own schemas know every object in k8s/base, and the names are those of the defaults."""
    listed = yaml.safe_load((ROOT / "k8s/base/kustomization.yaml").read_text(encoding="utf-8"))["resources"]
    assert {path.name for path in (ROOT / "k8s/base").iterdir()} - {*listed} == {
        "kustomization.yaml",
        "secret.example.yaml",
    }
    documents = [
        document
        for name in [*listed, "secret.example.yaml"]
        for document in yaml.safe_load_all((ROOT / "k8s/base" / name).read_text(encoding="utf-8"))
    ]
    assert [problem for document in documents for problem in problems_by_crd(document)] == []
    names = {(document["kind"], document["metadata"]["name"]) for document in documents}
    defaults = KubernetesConfig()
    assert {
        ("Namespace", defaults.namespace),
        ("ServiceAccount", defaults.service_account),
        ("PersistentVolumeClaim", defaults.volume.claim),
    } < names
    secret = documents[-1]
    assert {(item.name, item.key) for item in defaults.secrets.values()} == {
        (secret["metadata"]["name"], key) for key in secret["stringData"]
    }
    [policy] = [document for document in documents if document["kind"] == "NetworkPolicy"]
    labels = spec(configured(), "raycluster")["headGroupSpec"]["template"]["metadata"]["labels"]
    assert policy["spec"]["podSelector"]["matchLabels"].items() <= labels.items()


def test_dockerfiles_have_the_installed_ray() -> None:
    for name in ("Dockerfile", "Dockerfile.cpu"):
        assert f"ray.__version__ == '{spec(configured())['rayClusterSpec']['rayVersion']}'" in (ROOT / name).read_text()


def test_the_image_has_the_packages_of_pyproject() -> None:
    """The Dockerfile names those of the extras, so that they and flash-attn have layers of their own."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    wanted = extras["gpu"] + extras["embedding"]
    text = (ROOT / "Dockerfile").read_text()
    words = re.sub(r"#.*", "", text).replace("\\", " ").replace(";", " ").replace('"', " ").split()
    assert [name for name in wanted if name not in words] == []
    before = text[: text.index("ARG FLASH_ATTN")]
    assert all(f" {name} " in before for name in ("psutil", "numpy", "ninja")), "flash-attn's build imports them"


SECRETS = [".env", "examples/.env.local", "hf-token.txt", "k8s/my_token.txt", "wandb-key.txt", "tls.key", "a/ca.pem"]
SECRETS += ["kubeconfig", "k8s/kubeconfig.yaml", ".netrc", "keys/id_rsa"]


def test_secrets_do_not_travel_and_modules_do(tmp_path: Path) -> None:
    """Neither with the image nor with an upload. Docker's patterns begin at the root, and the last one decides."""
    modules = [str(path.relative_to(ROOT)) for path in (ROOT / "launch").rglob("*.py")]
    for name in (*SECRETS, *modules):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / ".rayignore").write_text((ROOT / ".rayignore").read_text())
    assert select_files(tmp_path).files.keys() - {".rayignore"} == set(modules)
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    anchored = [re.sub(r"^(!?)(?!\*\*|#|!)", r"\1/", line) for line in lines if line.strip()]
    spec = GitIgnoreSpec.from_lines(anchored)
    assert [name for name in SECRETS if not spec.match_file(name)] == []
    assert [name for name in modules if spec.match_file(name)] == []
