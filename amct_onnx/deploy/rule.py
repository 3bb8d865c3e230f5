"""What a rule is, and what it may look at."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from amct_onnx.deploy.flow import Flow
from amct_onnx.deploy.tensors import Array, TensorData
from amct_onnx.deploy.view import Node, Value, View
from amct_onnx.formats.record import LayerRecord

Severity = Literal["error", "warning"]


class Problem(NamedTuple):
    """Something that breaks a rule.

    where: the node or tensor, empty for the model itself.
    severity: None for the first one of the rule's.
    """

    where: str
    found: str
    expected: str
    severity: Severity | None = None


class Gap(NamedTuple):
    """Something that a rule could not look at."""

    where: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FloatModel:
    """The model before quantization; `nodes` by name."""

    nodes: Mapping[str, Node]
    data: TensorData

    def values(self, value: Value) -> Array | None:
        """The values of a constant, None for anything else and what cannot be read."""
        return None if value.tensor is None else self.data.read(value.tensor)


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A deploy model and what is known beside it.

    size: bytes of the file, or of the data in a model in memory.
    record: layer -> its factors, None where no record was given.
    """

    view: View
    flow: Flow
    data: TensorData
    size: int
    record: Mapping[str, LayerRecord] | None
    float_model: FloatModel | None

    def values(self, value: Value) -> Array | None:
        """The values of a constant, None for anything else and what cannot be read."""
        return None if value.tensor is None else self.data.read(value.tensor)


Check = Callable[[Subject], Iterator[Problem | Gap]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One thing that a deploy model must keep to.

    severities: what breaking it can be; the first one unless the check says otherwise.
    source: where this is known from, by the names that docs/verify.md explains.
    """

    number: int
    severities: tuple[Severity, ...]
    sentence: str
    source: str
    check: Check
