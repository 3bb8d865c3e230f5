"""Nodes that observe: what stands in them, how they come into a model, and out of it again.

They are called as AMCT's are, IFMR, HFMG and DMQBalancer in the domain amct.customop. Each reads one tensor, gives a
number that nobody uses, and holds all that an observer needs as JSON in one attribute: ONNX keeps floats in 32 bits
only, in which 0.999999 would be another number.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper

from amct_onnx.errors import ModelError
from amct_onnx.kernels.dmq import Dmq
from amct_onnx.kernels.hfmg import Hfmg
from amct_onnx.kernels.ifmr import Ifmr
from amct_onnx.passes.graph import unique_name
from amct_onnx.passes.protos import copy_fields
from amct_onnx.passes.weights import LightModel

DOMAIN, HALF_DOMAIN = "amct.customop", "amct.customop.extfp16"
"""Of the nodes that read float32, and of those that read float16, see `_widened`."""

ATTRIBUTE = "settings"

ALGORITHMS: dict[str, type[Ifmr] | type[Hfmg] | type[Dmq]] = {"IFMR": Ifmr, "HFMG": Hfmg, "DMQBalancer": Dmq}
"""Operator -> the parameters that it holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What one node says.

    tensor: what it looks at.
    places: what it is for, as `record` names it; and whether it is the second input of that layer.
    tensors: of the first node: the places that are no layers, in the order of the record.
    joint: of the first node: places that share a scale, two by two.
    algorithm: what finds the factors.
    batch_num: batches to look at.
    record_file: where the factors go, an absolute path.
    number, total: which node it is, from 0, and how many there are in the model.
    folded: of the first node: nodes that were folded into others of the model -> those.
    fp16_scales: scales are rounded to what fp16 holds.
    axis, weight_maxima: for DMQ: the axis of the channels, and the largest magnitude of the weight in each of them.
    """

    tensor: str
    places: tuple[tuple[str, bool], ...]
    algorithm: Ifmr | Hfmg | Dmq
    batch_num: int
    record_file: Path
    number: int
    total: int
    tensors: tuple[str, ...] = ()
    joint: tuple[tuple[str, ...], ...] = ()
    folded: Mapping[str, str] = field(default_factory=dict)
    fp16_scales: bool = False
    axis: int = 1
    weight_maxima: tuple[float, ...] = ()

    @property
    def op_type(self) -> str:
        """Of the node."""
        return next(name for name, kind in ALGORITHMS.items() if isinstance(self.algorithm, kind))

    def to_json(self) -> str:
        """As the attribute has it."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        values |= {
            "record_file": str(self.record_file),
            "algorithm": self.op_type,
            "parameters": asdict(self.algorithm),
        }
        return json.dumps(values, ensure_ascii=False)


@lru_cache(maxsize=4096)
def observation_of(settings: str) -> Observation:
    """What the attribute of a node says."""
    values: dict[str, Any] = json.loads(settings)
    parameters: dict[str, Any] = {name: _tuple(value) for name, value in values.pop("parameters").items()}
    algorithm = ALGORITHMS[values["algorithm"]](**parameters)
    values |= {"algorithm": algorithm, "record_file": Path(values["record_file"])}
    return Observation(**{name: _tuple(value) for name, value in values.items()})


def _tuple(value: Any) -> Any:
    return tuple(_tuple(item) for item in value) if isinstance(value, list) else value


def with_observers(model: LightModel, observations: Sequence[Observation], half: frozenset[str]) -> LightModel:
    """The model with a node for each observation.

    half: tensors of float16.
    """
    proto = _copy_without(model.proto, "node")
    nodes = list(model.proto.graph.node)
    taken = {node.name for node in nodes} | {name for node in nodes for name in (*node.input, *node.output)}
    domains = {HALF_DOMAIN if observation.tensor in half else DOMAIN: None for observation in observations}
    for observation in observations:
        domain = HALF_DOMAIN if observation.tensor in half else DOMAIN
        name = unique_name(f"{observation.places[0][0]}.{observation.op_type}", taken)
        source = observation.tensor
        if domain == HALF_DOMAIN:
            casts = _widened(source, name, taken, _opset_of(proto))
            nodes += casts
            source = casts[-1].output[0]
        node = helper.make_node(observation.op_type, [source], [name], name=name, domain=domain)
        node.attribute.append(helper.make_attribute(ATTRIBUTE, observation.to_json()))
        nodes.append(node)
    proto.graph.node.extend(nodes)
    proto.opset_import.extend(helper.make_opsetid(domain, 1) for domain in domains)
    return LightModel(proto=proto, weights=model.weights)


def _widened(tensor: str, name: str, taken: set[str], opset: int) -> list[onnx.NodeProto]:
    """Nodes that make float32 of a float16 tensor, which operators in Python do not take, with an axis in front.

    That axis keeps a node between two casts: onnxruntime, which computes in float32, would leave out a rounding to
    float16 that is taken back at once.
    """
    names = [unique_name(f"{name}.{step}", taken) for step in ("axes", "unsqueeze", "cast")]
    nodes = [helper.make_node("Constant", [], [names[0]], name=names[0], value_ints=[0])]
    nodes.append(helper.make_node("Unsqueeze", [tensor, names[0]], [names[1]], name=names[1]))
    if opset < 13:
        nodes = [helper.make_node("Unsqueeze", [tensor], [names[1]], name=names[1], axes=[0])]
    return [*nodes, helper.make_node("Cast", [names[1]], [names[2]], name=names[2], to=TensorProto.FLOAT)]


def _opset_of(model: onnx.ModelProto) -> int:
    return next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))


def without_observers(model: LightModel, where: object) -> tuple[LightModel, list[Observation]]:
    """The model without these nodes, and what they said. What made float32 of float16 for them stays, without use.

    where: what to call the model in errors.

    Raises:
        ModelError: it has no such node, or one that this engine did not write.
    """
    nodes = list(model.proto.graph.node)
    found = [node for node in nodes if node.domain in (DOMAIN, HALF_DOMAIN)]
    if not found:
        raise ModelError(f"{where}: observes nothing; give the model that quantize_model wrote")
    observations = [_read(node, where) for node in found]
    proto = _copy_without(model.proto, "node")
    proto.graph.node.extend(node for node in nodes if node.domain not in (DOMAIN, HALF_DOMAIN))
    kept = [entry for entry in proto.opset_import if entry.domain not in (DOMAIN, HALF_DOMAIN)]
    del proto.opset_import[:]
    proto.opset_import.extend(kept)
    return LightModel(proto=proto, weights=model.weights), observations


def _read(node: onnx.NodeProto, where: object) -> Observation:
    settings = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    try:
        return observation_of(settings[ATTRIBUTE].decode())
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelError(
            f"{where}: node {node.name!r} ({node.op_type}) was not written by this version of amct_onnx; "
            "run quantize_model again"
        ) from error


def _copy_without(model: onnx.ModelProto, field: str) -> onnx.ModelProto:
    """A copy of the message without one field of its graph."""
    copy = onnx.ModelProto()
    copy_fields(model, copy, "graph")
    copy_fields(model.graph, copy.graph, field)
    return copy
