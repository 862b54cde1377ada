"""The network policy of a run: who may talk to its pods, and where these may talk to."""

from launch.config import RunConfig
from launch.kube.objects import Document, Manifest
from launch.kube.pods import object_labels

METADATA = ("169.254.0.0/16", "100.100.100.200/32", "168.63.129.16/32")
"""Where clouds give a node's credentials to whoever asks from it: link-local addresses, Alibaba's, and Azure's."""
METADATA_V6 = (
    *("fe80::/10", "fd00:ec2::/32", "fd20:ce::254/128", "fd00:c1::a9fe:a9fe/128", "fd00:42::42/128"),
    *("64:ff9b::a9fe:0/112", "64:ff9b::6464:64c8/128", "64:ff9b::a83f:8110/128"),
)
"""The same: link-local addresses, those of AWS, Google, Oracle and Scaleway, and METADATA behind a NAT64."""
_DASHBOARD_PORTS = (8265, 52365)
"""Of the dashboard and of each node's agent: what KubeRay's operator asks."""


def network_policy(config: RunConfig, name: str) -> Document:
    """Pods of the run talk to each other; the operator to their dashboard; they to DNS and the world, less METADATA.

    No policy can name the pods of the same run in general, so each run has one of its own.
    """
    labels = object_labels(config, name)
    ours = {"matchLabels": {key: labels[key] for key in ("app.kubernetes.io/part-of", "app.kubernetes.io/instance")}}
    # Both selectors in one entry: pods of that name in that namespace. In two, either would be enough.
    operator = {
        "namespaceSelector": {
            "matchLabels": {"kubernetes.io/metadata.name": config.cluster.kubernetes.operator_namespace}
        },
        "podSelector": {"matchLabels": {"app.kubernetes.io/name": "kuberay-operator"}},
    }
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {
            "name": f"{name}-network",
            "namespace": config.cluster.kubernetes.namespace,
            "labels": labels,
        },
        "spec": {
            "podSelector": ours,
            "policyTypes": ["Ingress", "Egress"],  # a direction that is named is closed but for its rules
            "ingress": [
                {"from": [{"podSelector": ours}]},
                {"from": [operator], "ports": [{"protocol": "TCP", "port": port} for port in _DASHBOARD_PORTS]},
            ],
            "egress": [{"to": [{"podSelector": ours}]}, *outward()],
        },
    }


def outward() -> list[Manifest]:
    """Egress rules: DNS, wherever the cluster has it (a node's cache is at a link-local address), and the world."""
    return [
        {"ports": [{"protocol": protocol, "port": 53} for protocol in ("UDP", "TCP")]},
        {
            "to": [
                {"ipBlock": {"cidr": "0.0.0.0/0", "except": list(METADATA)}},
                {"ipBlock": {"cidr": "::/0", "except": list(METADATA_V6)}},
            ]
        },
    ]
