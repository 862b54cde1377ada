"""NetworkPolicies: the fields that our manifests may have, by their names in the API."""

import ipaddress
from typing import Annotated, Literal

from pydantic import AfterValidator, create_model, model_validator

from launch.kube.schema_pod import LabelSelector
from launch.kube.schema_types import ManifestMetadata, ManifestPart, PortOrName


def _network(text: str) -> str:
    try:
        ipaddress.ip_network(text)
    except ValueError:
        raise ValueError("must be a network such as 10.0.0.0/8") from None
    return text


Network = Annotated[str, AfterValidator(_network)]


class _Block(ManifestPart):
    cidr: Network

    @model_validator(mode="after")
    def _holds_its_exceptions(self) -> "_Block":
        whole = ipaddress.ip_network(self.cidr)
        for text in getattr(self, "except"):
            part = ipaddress.ip_network(text)
            if part.version != whole.version or not part.subnet_of(whole):  # pyright: ignore[reportArgumentType]
                raise ValueError(f".except: must lie within {self.cidr}, got {text}")
        return self


# `except` and `from` are words of Python: a class statement cannot have such fields.
IpBlock = create_model("IpBlock", __base__=_Block, **{"except": (list[Network], [])})  # pyright: ignore


class NetworkPort(ManifestPart):
    """A port of the pods that are talked to."""

    protocol: Literal["TCP", "UDP", "SCTP"] | None = None
    port: PortOrName | None = None


class NetworkPeer(ManifestPart):
    """Pods of this namespace, or of those selected, or addresses."""

    podSelector: LabelSelector | None = None
    namespaceSelector: LabelSelector | None = None
    ipBlock: IpBlock | None = None  # pyright: ignore[reportInvalidTypeForm]

    @model_validator(mode="after")
    def _pods_or_addresses(self) -> "NetworkPeer":
        pods = self.podSelector is not None or self.namespaceSelector is not None
        if pods == (self.ipBlock is not None):
            got = "both" if pods else "neither"
            raise ValueError(f"must have ipBlock, or podSelector and namespaceSelector, got {got}")
        return self


class _Rule(ManifestPart):
    ports: list[NetworkPort] = []


class EgressRule(_Rule):
    """What the pods may talk to; everything, where `to` is left out."""

    to: list[NetworkPeer] = []


IngressRule = create_model("IngressRule", __base__=_Rule, **{"from": (list[NetworkPeer], [])})  # pyright: ignore


class NetworkPolicySpec(ManifestPart):
    """Whom it holds, and what it allows."""

    podSelector: LabelSelector
    policyTypes: list[Literal["Ingress", "Egress"]] = []
    ingress: list[IngressRule] = []  # pyright: ignore[reportInvalidTypeForm]
    egress: list[EgressRule] = []


class NetworkPolicyManifest(ManifestPart):
    """A NetworkPolicy."""

    apiVersion: Literal["networking.k8s.io/v1"]
    kind: Literal["NetworkPolicy"]
    metadata: ManifestMetadata
    spec: NetworkPolicySpec
