"""Scalars of Kubernetes manifests: names, labels, quantities, and the base of every part of a manifest."""

import re
from decimal import Decimal
from typing import Annotated, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainValidator, model_validator

_QUANTITY = re.compile(r"\+?(\d+(?:\.\d*)?|\.\d+)(?:([KMGTPE]i|[numkMGTPE])|([eE][+-]?\d+))?")
_UNITS = {  # k is the only thousandfold in lower case: m is a thousandth, M a million
    "": Decimal(1),
    "n": Decimal("1e-9"),
    "u": Decimal("1e-6"),
    "m": Decimal("1e-3"),
    **{unit: Decimal(1000) ** (power + 1) for power, unit in enumerate("kMGTPE")},
    **{f"{unit}i": Decimal(1024) ** (power + 1) for power, unit in enumerate("KMGTPE")},
}
_WORD = r"[A-Za-z0-9](?:[-A-Za-z0-9_.]*[A-Za-z0-9])?"
_SUBDOMAIN = r"[a-z0-9](?:[-a-z0-9]*[a-z0-9])?(?:\.[a-z0-9](?:[-a-z0-9]*[a-z0-9])?)*"


class ManifestPart(BaseModel):
    """Base of every mapping in a manifest: unknown fields are refused, and "1" is not 1."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class OneOf(ManifestPart):
    """A part with exactly one of those of its fields that are parts themselves."""

    @model_validator(mode="after")
    def _exactly_one(self) -> "OneOf":
        parts = [name for name, field in type(self).model_fields.items() if _is_part(field.annotation)]
        found = [name for name in parts if getattr(self, name) is not None]
        if len(found) != 1:
            raise ValueError(f"must have exactly one of {', '.join(parts)}, got {' and '.join(found) or 'none'}")
        return self


def _is_part(annotation: object) -> bool:
    return any(isinstance(item, type) and issubclass(item, ManifestPart) for item in get_args(annotation))


def quantity_value(quantity: str | int) -> Decimal:
    """The number that a quantity stands for: 2Gi is 2147483648, 500m is 0.5. Raises ValueError for what is none."""
    found = _QUANTITY.fullmatch(str(quantity))
    if found is None:
        raise ValueError("must be a quantity such as 8Gi")
    number, unit, exponent = found.groups()
    return Decimal(number + (exponent or "")) * _UNITS[unit or ""]


def _quantity(value: object) -> str | int:
    if isinstance(value, bool) or not isinstance(value, str | int):  # to Python, YAML's true is an int
        raise ValueError("must be a quantity such as 8Gi")
    quantity_value(value)
    return value


def _int_or_name(value: object) -> str | int:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError("must be a port's number or its name")
    if isinstance(value, int) and not 1 <= value <= 65535:
        raise ValueError("must be from 1 to 65535")
    # With a letter: digits alone would be taken for a number.
    if isinstance(value, str) and not re.fullmatch(r"(?=.{1,15}$)[a-z0-9-]*[a-z][a-z0-9-]*", value):
        raise ValueError("must be a port's number or its name (at most 15 of a-z, 0-9 and -)")
    return value


def _words(pattern: str, longest: int, rule: str) -> AfterValidator:
    def check(text: str) -> str:
        if len(text) > longest or not re.fullmatch(pattern, text):
            raise ValueError(f"must be at most {longest} characters, {rule}")
        return text

    return AfterValidator(check)


def _image(text: str) -> str:
    if re.search(r"\s", text):
        raise ValueError("must be an image without blanks")
    return text


def _absolute(text: str) -> str:
    if not text.startswith("/") or ":" in text:
        raise ValueError("must be an absolute path without ':'")
    return text


def _inside(text: str) -> str:
    if text.startswith("/") or ".." in text.split("/"):
        raise ValueError("must be a path inside the volume: neither absolute nor with ..")
    return text


def _qualified(text: str) -> str:
    prefix, slash, name = text.rpartition("/")
    if len(name) > 63 or not re.fullmatch(_WORD, name):
        raise ValueError("must be a label's key: letters, digits, '-', '_' and '.', after an optional domain and '/'")
    if slash and (len(prefix) > 253 or not re.fullmatch(_SUBDOMAIN, prefix)):
        raise ValueError("must be a label's key, and what stands before '/' the name of a domain")
    return text


def _resource(text: str) -> str:
    if "/" in text:
        return _qualified(text)
    if text not in ("cpu", "memory", "ephemeral-storage") and not text.startswith("hugepages-"):
        raise ValueError("must be cpu, memory, ephemeral-storage or a resource with a domain, such as nvidia.com/gpu")
    return text


def unique(field: str) -> AfterValidator:
    """Refuses lists in which two items have the same value of a field."""

    def check(items: list[ManifestPart]) -> list[ManifestPart]:
        values = [getattr(item, field) for item in items]
        for value in values:
            if values.count(value) > 1:
                raise ValueError(f"must have every {field} once, got {value} {values.count(value)} times")
        return items

    return AfterValidator(check)


Int32 = Annotated[int, Field(ge=-(2**31), lt=2**31)]
Count = Annotated[int, Field(ge=0, lt=2**31)]
Positive = Annotated[int, Field(ge=1, lt=2**31)]
Port = Annotated[int, Field(ge=1, le=65535)]
Mode = Annotated[int, Field(ge=0, le=0o777)]
Quantity = Annotated[str | int, PlainValidator(_quantity)]
PortOrName = Annotated[str | int, PlainValidator(_int_or_name)]
AbsolutePath = Annotated[str, AfterValidator(_absolute)]
InnerPath = Annotated[str, AfterValidator(_inside)]
LabelKey = Annotated[str, AfterValidator(_qualified)]
LabelValue = Annotated[str, _words(f"(?:{_WORD})?", 63, "letters, digits, '-', '_' and '.' inside")]
Labels = dict[LabelKey, LabelValue]
ResourceName = Annotated[str, AfterValidator(_resource)]
DnsLabel = Annotated[str, _words(r"[a-z0-9](?:[-a-z0-9]*[a-z0-9])?", 63, "lower-case letters, digits and '-' inside")]
DnsName = Annotated[str, _words(_SUBDOMAIN, 253, "lower-case letters, digits, '-' and '.' inside")]
RayClusterName = Annotated[
    str, _words(r"[a-z](?:[-a-z0-9]*[a-z0-9])?", 53, "a lower-case letter, then such letters, digits and '-' inside")
]
RayJobName = Annotated[
    str, _words(r"[a-z](?:[-a-z0-9]*[a-z0-9])?", 47, "a lower-case letter, then such letters, digits and '-' inside")
]
EnvName = Annotated[
    str, _words(r"[-._A-Za-z][-._A-Za-z0-9]*", 253, "letters, digits, '_', '-' and '.', no digit first")
]
# . and .. would be directories, not files
FileKey = Annotated[str, _words(r"(?!\.\.?$)[-._A-Za-z0-9]+", 253, "letters, digits, '-', '_' and '.'")]
Text = Annotated[str, Field(min_length=1)]
ImageName = Annotated[Text, AfterValidator(_image)]


class ManifestMetadata(ManifestPart):
    """Identity of a document."""

    name: DnsName
    namespace: DnsLabel | None = None
    labels: Labels = {}
    annotations: dict[LabelKey, str] = {}
