"""What confines a run's pods, what an image holds and whose it is, and which packages may be installed."""

import ipaddress
import re
import runpy
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from launch.cli import main
from launch.config import load
from launch.kube.network import METADATA, METADATA_V6
from launch.kube.render import dump, manifests

ROOT = Path(__file__).resolve().parent.parent
K = "cluster.kubernetes"
INSTANCE = "app.kubernetes.io/instance"


@pytest.fixture(autouse=True)
def at_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where configurations are rendered."""
    monkeypatch.chdir(ROOT)


def rendered(*overrides: str, kind: Any = "rayjob") -> dict[str, dict[str, Any]]:
    """Documents of configs/grpo.yaml by kind."""
    return {document["kind"]: document for document in manifests(load("configs/grpo.yaml", list(overrides)), kind)}


def ray_pods(documents: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Specs of head and workers."""
    spec = documents.get("RayJob", {}).get("spec", {}).get("rayClusterSpec") or documents["RayCluster"]["spec"]
    return [group["template"]["spec"] for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])]


def reaches(policy: dict[str, Any], address: str, port: int) -> bool:
    """Whether pods under a policy may talk to an address that is no pod's."""
    place = ipaddress.ip_address(address)

    def holds(peer: dict[str, Any]) -> bool:
        block = peer.get("ipBlock")
        inside = block and place in ipaddress.ip_network(block["cidr"])
        return bool(inside) and not any(place in ipaddress.ip_network(text) for text in block.get("except", []))

    return any(
        (not rule.get("ports") or port in [item["port"] for item in rule["ports"]])
        and (not rule.get("to") or any(map(holds, rule["to"])))
        for rule in policy["spec"]["egress"]
    )


def base_policy() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "k8s/base/network-policy.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("of_the_run", [True, False])
def test_pods_do_not_reach_the_metadata_services(of_the_run: bool) -> None:
    policy = rendered()["NetworkPolicy"] if of_the_run else base_policy()
    assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
    four = ("169.254.169.254", "169.254.170.2", "100.100.100.200")
    six = ("fe80::a9fe:a9fe", "fd00:ec2::254", "fd00:ec2::23", "fd20:ce::254", "fd00:c1::a9fe:a9fe", "fd00:42::42")
    for address in (*four, *six, "64:ff9b::a9fe:a9fe", "64:ff9b::6464:64c8", "64:ff9b::a83f:8110"):
        assert not reaches(policy, address, 80), address
    for address, port in (("93.184.215.14", 443), ("10.0.0.7", 8000), ("2001:db8::1", 443), ("169.254.20.10", 53)):
        assert reaches(policy, address, port), f"the hub, reward endpoints and DNS: {address}"


def test_the_base_and_the_runs_let_out_the_same() -> None:
    _, *outward = rendered()["NetworkPolicy"]["spec"]["egress"]
    assert outward == base_policy()["spec"]["egress"]
    blocks = [peer["ipBlock"]["except"] for peer in outward[-1]["to"]]
    assert blocks == [list(METADATA), list(METADATA_V6)]


@pytest.mark.parametrize("kind", ["rayjob", "raycluster"])
def test_only_pods_of_the_same_run_are_peers(kind: str) -> None:
    documents = rendered("run.name=mine", kind=kind)
    policy = documents["NetworkPolicy"]["spec"]
    peers = [peer for rule in policy["ingress"] for peer in rule["from"]]
    peers += [peer for rule in policy["egress"] for peer in rule.get("to", []) if "ipBlock" not in peer]
    operators = [peer for peer in peers if "namespaceSelector" in peer]
    assert [peer for peer in peers if peer not in operators] == [{"podSelector": policy["podSelector"]}] * 2
    assert policy["podSelector"]["matchLabels"][INSTANCE] == "mine"
    assert [peer["namespaceSelector"]["matchLabels"] for peer in operators] == [
        {"kubernetes.io/metadata.name": "kuberay"}
    ]
    spec = documents["RayJob"]["spec"]["rayClusterSpec"] if kind == "rayjob" else documents["RayCluster"]["spec"]
    templates = [group["template"] for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])]
    if kind == "rayjob":
        templates.append(documents["RayJob"]["spec"]["submitterPodTemplate"])
    for template in templates:
        assert policy["podSelector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    base = base_policy()["spec"]
    assert [peer for rule in base["ingress"] for peer in rule["from"]] == operators, "other runs are no peers"


def test_the_operator_is_that_of_a_namespace() -> None:
    policy = rendered(f"{K}.operator_namespace=ray-system")["NetworkPolicy"]
    selectors = [peer.get("namespaceSelector") for rule in policy["spec"]["ingress"] for peer in rule["from"]]
    assert selectors == [None, {"matchLabels": {"kubernetes.io/metadata.name": "ray-system"}}]


def test_a_run_writes_its_own_directory_and_the_hubs_cache() -> None:
    for spec in ray_pods(rendered("run.name=mine")):
        mounts = [mount for mount in spec["containers"][0]["volumeMounts"] if mount["name"] == "shared"]
        written = {mount["mountPath"]: mount["subPath"] for mount in mounts if not mount.get("readOnly")}
        assert written == {"/opt/tandem/outputs/mine": "outputs/mine", "/shared/huggingface": "huggingface"}
        assert [mount["mountPath"] for mount in mounts if mount.get("readOnly")] == ["/shared", "/opt/tandem/outputs"]


@pytest.mark.parametrize(
    ("overrides", "written"),
    [
        (["run.output=/shared/a/b"], {"/shared/a/b/grpo": "a/b/grpo", "/shared/huggingface": "huggingface"}),
        (["run.output=/shared"], {"/shared/grpo": "grpo", "/shared/huggingface": "huggingface"}),
        (
            ["run.output=/shared/a", "cluster.env={HF_HOME: /shared/hub/me}", "policy.env={HF_HUB_CACHE: /tmp/x}"],
            {"/shared/a/grpo": "a/grpo", "/shared/hub/me": "hub/me"},
        ),
        ([f"{K}.volume.writable=all"], {"/shared": None, "/opt/tandem/outputs": "outputs"}),
    ],
)
def test_what_is_written_follows_the_settings(overrides: list[str], written: dict[str, str | None]) -> None:
    for spec in ray_pods(rendered(*overrides)):
        mounts = [mount for mount in spec["containers"][0]["volumeMounts"] if mount["name"] == "shared"]
        assert {one["mountPath"]: one.get("subPath") for one in mounts if not one.get("readOnly")} == written


def test_a_cluster_to_work_on_has_runs_of_any_name() -> None:
    for spec in ray_pods(rendered(kind="raycluster")):
        assert not any(mount.get("readOnly") for mount in spec["containers"][0]["volumeMounts"])


def test_containers_cannot_write_to_their_image() -> None:
    documents = rendered()
    for spec in (*ray_pods(documents), documents["RayJob"]["spec"]["submitterPodTemplate"]["spec"]):
        [item] = spec["containers"]
        assert item["securityContext"]["readOnlyRootFilesystem"] is True
        scratch = {mount["mountPath"]: mount["name"] for mount in item["volumeMounts"]}
        own = [volume["name"] for volume in spec["volumes"] if volume.get("emptyDir") == {}]
        assert {scratch["/tmp"], scratch["/home/tandem"]} == {*own}
        assert {"name": "HOME", "value": "/home/tandem"} in item["env"]
    assert "readOnlyRootFilesystem" not in dump(list(rendered(f"{K}.read_only_root=false").values()))


def test_a_cluster_without_a_token_is_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the check, by the rendering, for every field, and for manifests edited by hand."""
    line = f"warning: {K}.ray_auth: disabled, so whoever reaches the cluster's ports can run code as its user"
    for verb in ("k8s", "check"):
        main([verb, "configs/demo-sft.yaml", f"{K}.ray_auth=disabled"])
        printed = capsys.readouterr()
        assert line in " ".join((printed.out + printed.err).split()), verb
        main([verb, "configs/demo-sft.yaml"])
        printed = capsys.readouterr()
        assert "ports can run code" not in printed.out + printed.err
    main(["check", "configs/demo-sft.yaml", "policy.env={RAY_AUTH_MODE: disabled}"])
    assert "policy.env.RAY_AUTH_MODE: disabled, so whoever" in " ".join("".join(capsys.readouterr()).split())
    documents = rendered(f"{K}.ray_auth=disabled")
    (tmp_path / "run.yaml").write_text(dump(list(documents.values())))
    assert main(["k8s", "--check", str(tmp_path / "run.yaml")]) == 0
    out = capsys.readouterr().out
    assert "warning: RayJob/grpo/spec.rayClusterSpec.authOptions: disabled, so whoever" in out


def test_what_the_launcher_may_do_is_what_submitting_takes() -> None:
    """No `get` of secrets; and the policy of the run can be made."""
    documents = yaml.safe_load_all((ROOT / "k8s/base/service-accounts.yaml").read_text(encoding="utf-8"))
    [role] = [document for document in documents if document["kind"] == "Role"]
    allowed = {resource: {*rule["verbs"]} for rule in role["rules"] for resource in rule["resources"]}
    assert allowed["networkpolicies"] >= {"create", "get", "patch", "delete"}
    assert not allowed.keys() & {"secrets", "pods/exec", "roles", "rolebindings"}
    assert not any("*" in verbs for verbs in allowed.values())


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.cpu"])
def test_an_image_has_code_by_name_that_its_user_cannot_change(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    copies = [line.split()[1:] for line in re.findall(r"^COPY .*", text, re.MULTILINE)]
    assert {"actors", "algorithms", "launch", "configs", "examples"} <= {word for words in copies for word in words}
    for *sources, _ in copies:
        assert not [word for word in sources if word.startswith("--chown") or "*" in word or word in (".", "./")]
        assert all((ROOT / word).exists() for word in sources), sources
    assert text.index("\nUSER 1000:1000\n") > text.rindex("\nRUN "), "root makes it all"
    owned = re.findall(r"--owner=tandem --group=tandem ([^\\]*)", text)
    assert [words.split() for words in owned] == [["/opt/tandem/outputs", "/shared"]]
    assert re.search(r"^ARG BASE=\S+\nFROM \$\{BASE\}$", text, re.MULTILINE), "a digest can be given"


def test_packages_of_gpus_are_exact() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert [pin for pin in extras["gpu"] if "==" not in pin] == []
    words = re.sub(r"#.*", "", (ROOT / "Dockerfile").read_text(encoding="utf-8")).replace(";", " ").split()
    assert [word for word in words if word in ("flash-attn", "bitsandbytes", "torch", "vllm")] == []


@pytest.mark.parametrize("name", ["cpu", "dev", "interop", "mutants", "oracle"])
def test_every_package_has_its_hashes(name: str) -> None:
    """pip refuses a list of which one lacks them, and files with others."""
    text = (ROOT / f"requirements/{name}.txt").read_text(encoding="utf-8")
    entries = re.sub(r" \\\n +", " ", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE)).splitlines()
    assert len(entries) > 5
    for entry in entries:
        assert re.fullmatch(r"[\w.-]+==[\w.]+( --hash=sha256:[0-9a-f]{64})+", entry), entry


@pytest.mark.parametrize(
    ("wheel", "ours"),
    [
        ("six-1.17.0-py2.py3-none-any.whl", True),
        ("a-1-cp311-cp311-manylinux_2_27_x86_64.manylinux_2_28_x86_64.whl", True),
        ("a-1-cp38-abi3-manylinux_2_17_aarch64.whl", True),
        ("a-1-py3-none-manylinux_2_17_x86_64.whl", True),
        ("a-1-1-cp314-cp314-linux_x86_64.whl", True),
        ("a-1-cp314-cp314t-manylinux_2_27_x86_64.whl", False),
        ("a-1-cp310-cp310-manylinux_2_27_x86_64.whl", False),
        ("a-1-cp315-abi3-manylinux_2_27_x86_64.whl", False),
        ("a-1-cp311-cp311-musllinux_1_2_x86_64.whl", False),
        ("a-1-cp311-cp311-macosx_11_0_arm64.whl", False),
        ("a-1-cp311-cp311-manylinux_2_27_ppc64le.whl", False),
    ],
)
def test_the_files_whose_hashes_are_kept(wheel: str, ours: bool) -> None:
    fits = runpy.run_path(str(ROOT / "requirements/add_hashes.py"))["fits"]
    assert fits(wheel) is ours


def test_the_list_of_torch_may_have_hashes(tmp_path: Path) -> None:
    """pip gets the list itself, so that it checks those that a user has added."""
    pinned = runpy.run_path(str(ROOT / "requirements/install_torch.py"))["pinned"]
    assert pinned(ROOT / "requirements/torch.txt") == "2.13.0+cpu"
    (tmp_path / "torch.txt").write_text(f"# torch==1+cpu\ntorch==2.13.0+cpu --hash=sha256:{'0' * 64}\n")
    assert pinned(tmp_path / "torch.txt") == "2.13.0+cpu"
