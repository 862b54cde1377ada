"""KubeRay's CRDs, beside the repository: good manifests pass them, and what they refuse, our validation refuses."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from launch.kube.validate import manifest_problems
from tests.kube_crd import problems_by_crd
from tests.kube_manifests import DELETE, RAY, config_map, edit, ray_cluster, ray_job
from tests.kube_seeds import CLUSTER_SEEDS, CONFIG_MAP_SEEDS, JOB_SEEDS

BUILDS = {"RayJob": ray_job, "RayCluster": ray_cluster, "ConfigMap": config_map}
SEEDS = {"RayJob": JOB_SEEDS, "RayCluster": CLUSTER_SEEDS, "ConfigMap": CONFIG_MAP_SEEDS}
REPEATED = ("submitterPodTemplate", 'workerGroupSpecs"][0]["template', 'RayCluster/["spec"]["headGroupSpec"]["template')
"""Pods that are like the head's in the RayJob."""
WRONG = (7, -1, "x y!", True, [], {}, ["x"], {"x": "y"}, 0.5, DELETE)


def paths(value: Any, path: str = "") -> Iterator[str]:
    """Paths of all fields and items, parents first."""
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        below = path + (f"[{key}]" if isinstance(key, int) else f'["{key}"]')
        yield below
        yield from paths(item, below)


@pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS)
def test_a_good_manifest_passes_the_crd(build: Callable[[], dict[str, Any]]) -> None:
    assert problems_by_crd(build()) == []


@pytest.mark.parametrize(
    ("kind", "path", "value", "says"),
    [
        ("RayJob", "spec.submisionMode", "HTTPMode", "'submisionMode' was unexpected"),
        ("RayJob", "spec.rayClusterSpec.workerGroupSpecs[0].minReplicas", "1", "is not of type 'integer'"),
        ("RayJob", "spec.managedBy", "me", "the managedBy field value must be either"),
        ("RayJob", "spec.deletionStrategy", {}, "deletionStrategy requires either BOTH"),
        ("RayCluster", "spec.managedBy", "me", "the managedBy field value must be either"),
        ("ConfigMap", "dat", {}, "'dat' was unexpected"),
    ],
)
def test_the_crd_refuses(kind: str, path: str, value: Any, says: str) -> None:
    document = BUILDS[kind]()
    edit(document, path, value)
    assert any(says in line for line in problems_by_crd(document))


def test_the_crd_lacks_rules_that_ours_has() -> None:
    """Why the operator's rules are written down here at all."""
    passed = []
    for kind, seeds in SEEDS.items():
        for seed in seeds:
            document = BUILDS[kind]()
            for path, value in seed.edits.items():
                edit(document, path, value)
            if not problems_by_crd(document):
                passed.append(seed.path)
    total = sum(map(len, SEEDS.values()))
    assert total // 3 < len(passed) < total, "seeds are of both sorts"
    assert "spec.submissionMode" in passed


@pytest.mark.parametrize("kind", BUILDS)
def test_what_we_accept_the_crd_accepts(kind: str) -> None:
    """Every field of a good manifest is removed, or gets a value that is wrong there, or for another field."""
    accepted = refused = 0
    for path in paths(BUILDS[kind]()):
        document = BUILDS[kind]()
        for value in () if any(pod in f"{kind}/{path}" for pod in REPEATED) else WRONG:
            edit(document, path, value)
            if manifest_problems([document], RAY):
                refused += 1
            else:
                accepted += 1
                assert problems_by_crd(document) == [], f"{path} = {value!r}"
    assert refused > 20 and accepted > 5
