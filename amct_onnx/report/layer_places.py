"""Layers that the float, the fake-quant and the deploy model have in common, and where they are in each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from amct_onnx.errors import ModelError
from amct_onnx.passes.session import Session, open_session
from amct_onnx.passes.weights import LightModel
from amct_onnx.report.compare import exposing, layer_behind, layer_twins

Array = NDArray[Any]
Values = Mapping[str, Array]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerPlaces:
    """Where a layer is in the models.

    quant, dequant: nodes of the deploy model.
    float_tensor, fake_tensor: what it gives in the other two.
    fake_input: what it reads in the fake-quant model, before that is quantized.
    """

    quant: onnx.NodeProto
    dequant: onnx.NodeProto
    op_type: str
    float_tensor: str
    fake_tensor: str
    fake_input: str

    @property
    def scale(self) -> np.float32:
        """Of its AscendQuant, one divided by the activation's."""
        return np.float32(float_attribute(self.quant, "scale"))

    @property
    def offset(self) -> np.float32:
        """Of its AscendQuant."""
        return np.float32(float_attribute(self.quant, "offset"))


def float_attribute(node: onnx.NodeProto, name: str) -> float:
    """A number, 0 where there is none."""
    return next((float(a.f) for a in node.attribute if a.name == name), 0.0)


class ModelTriple:
    """The three models, and the layers that all of them have.

    Attributes:
        outputs: names of the outputs that all have.
        layers: by name, in the order of the deploy model.
        skipped: layers that one of the others does not have.
        quantized: AscendQuant -> the tensor of the fake-quant model that it would read there.
    """

    def __init__(self, reference: LightModel, fake: LightModel, deploy: LightModel) -> None:
        self.reference, self.fake, self.deploy = reference, fake, deploy
        ends = [{value.name for value in model.proto.graph.output} for model in (fake, deploy)]
        outputs = [value.name for value in reference.proto.graph.output]
        self.outputs = [name for name in outputs if all(name in end for end in ends)]
        twins = layer_twins(reference.proto, fake.proto)
        self.layers: dict[str, LayerPlaces] = {}
        skipped = []
        producers = {name: node for node in deploy.proto.graph.node for name in node.output}
        fakes = {node.name: node for node in fake.proto.graph.node}
        quants = [node for node in deploy.proto.graph.node if node.op_type == "AscendQuant"]
        found = {quant.name: _fake_input(quant, fakes) for quant in quants}
        self.quantized = {name: tensor for name, tensor in found.items() if tensor is not None}
        for node in deploy.proto.graph.node:
            if node.op_type != "AscendDequant":
                continue
            layer = layer_behind(node.name) or node.name
            quant, op_type = _source_of(node, producers)
            if quant is None or quant.name not in self.quantized or layer not in twins:
                skipped.append(layer)
                continue
            self.layers[layer] = LayerPlaces(
                quant=quant,
                dequant=node,
                op_type=op_type,
                float_tensor=twins[layer][0],
                fake_tensor=twins[layer][1],
                fake_input=self.quantized[quant.name],
            )
        self.skipped = tuple(skipped)
        if not self.layers or not self.outputs:
            raise ModelError("float, fake-quant and deploy model do not belong together: they have no layer in common")


def _source_of(dequant: onnx.NodeProto, producers: Mapping[str, onnx.NodeProto]) -> tuple[onnx.NodeProto | None, str]:
    """The AscendQuant that an AscendDequant's layer reads, along first inputs, and the layer's operator."""
    node, op_type = producers.get(dequant.input[0]), ""
    while node is not None and node.op_type != "AscendQuant":
        if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul", "AveragePool"):
            op_type = node.op_type
        source = next((name for name in node.input if name in producers), None)
        node = None if source is None else producers[source]
    return node, op_type


def _fake_input(quant: onnx.NodeProto, fakes: Mapping[str, onnx.NodeProto]) -> str | None:
    """The tensor that is quantized, in the fake-quant model."""
    for step in ("cast", "mul"):
        if (node := fakes.get(f"{quant.name}.fakequant.{step}")) is not None:
            return str(node.input[0])
    return None


def opened(model: LightModel, tensors: Iterable[str], what: str) -> Session:
    """A session that gives these tensors too; `what` is what errors call it."""
    fed = {value.name for value in model.proto.graph.input}
    return open_session(exposing(model, [name for name in tensors if name not in fed]), what)


def values_of(session: Session, feed: Values, what: str) -> dict[str, Array]:
    """What is fed and what the session gives, by name."""
    return {**feed, **session.run(feed, what)}


def quantized_both_ways(x: Array, layer: LayerPlaces) -> tuple[Array, Array]:
    """What the fake-quant model makes of a layer's input, and what rounding once behind the offset does."""
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = x.astype(np.float32) * layer.scale
        before = np.clip(np.rint(scaled) + layer.offset, -128, 127)
        behind = np.clip(np.rint(scaled + layer.offset), -128, 127)
    return before - layer.offset, behind - layer.offset
