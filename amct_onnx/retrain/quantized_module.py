"""The module of a model whose layers are trained quantized."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

import torch
from torch import Tensor, nn

from amct_onnx.kernels.quant_params import QuantParams
from amct_onnx.passes.weights import LightModel
from amct_onnx.retrain.module import OnnxModule
from amct_onnx.retrain.planning import RetrainLayer, RetrainPlan
from amct_onnx.retrain.program import Step
from amct_onnx.retrain.quantizers import ActivationQuantizer, WeightQuantizer


class QuantRetrainModule(OnnxModule):
    """An `OnnxModule` with quantizers in front of its layers, in the `state_dict` under the names of these.

    Layers that read the same tensor in the same way share the quantizer of the first of them.

    Attributes:
        plan: one decision for every node.
    """

    def __init__(self, source: LightModel, plan: RetrainPlan, ties: Mapping[str, str] = MappingProxyType({})) -> None:
        super().__init__(source, ties)
        self.plan = plan
        self._activations: dict[str, ActivationQuantizer] = {}
        self._weights: dict[str, tuple[str, WeightQuantizer]] = {}
        self._shared: dict[tuple[object, ...], tuple[str, ActivationQuantizer]] = {}
        steps = [part for step in self._program.steps for part in self._with_quantizers(step)]
        self._program = replace(self._program, steps=tuple(steps))

    def _with_quantizers(self, step: Step) -> list[Step]:
        layer = self.plan.layers.get(step.name)
        if layer is None:
            return [step]
        x, weight, *others = step.inputs
        x_step, x = self._quantized_activation(layer, x)
        quantizer = WeightQuantizer(layer, self._channels(layer, weight))
        self.add_module_at(f"{layer.name}.weight_quantizer", quantizer)
        self._weights[layer.name] = (weight, quantizer)
        quantizer.begin(self._fetch(self.names[weight]), *self._factors(layer.name))
        w_step = _module_step(f"{layer.name}.weight_quantizer", quantizer, weight, *layer.factors)
        inputs = (x, *w_step.outputs, *others)
        return [*x_step, w_step, replace(step, inputs=inputs, reads=inputs)]

    def _quantized_activation(self, layer: RetrainLayer, x: str) -> tuple[list[Step], str]:
        """The step that quantizes `x`, unless that of another layer does so already; and the tensor it makes."""
        key = (x, layer.activation, layer.fixed_min, layer.symmetric)
        if key in self._shared:
            made, quantizer = self._shared[key]
            self._activations[layer.name] = quantizer
            return [], made
        quantizer = ActivationQuantizer(layer, self.plan)
        self.add_module_at(f"{layer.name}.activation_quantizer", quantizer)
        step = _module_step(f"{layer.name}.activation_quantizer", quantizer, x)
        self._shared[key] = (step.outputs[0], quantizer)
        self._activations[layer.name] = quantizer
        return [step], step.outputs[0]

    def _channels(self, layer: RetrainLayer, weight: str) -> int:
        return int(self._fetch(self.names[weight]).shape[layer.axis]) * layer.group

    def weight(self, name: str) -> Tensor:
        """The present value of an initializer that is trained."""
        return self._fetch(self.names[name])

    def rounded_weights(self) -> dict[str, Tensor]:
        """The weights of the quantized layers as evaluation sees them, by initializer."""
        with torch.no_grad():
            return {
                name: quantizer(self.weight(name), *self._factors(layer))
                for layer, (name, quantizer) in self._weights.items()
            }

    def _factors(self, layer: str) -> list[Tensor]:
        return [self._fetch(self._program.constants[name]) for name in self.plan.layers[layer].factors]

    def activation_quantizer(self, layer: str) -> ActivationQuantizer:
        """What quantizes the input of a layer."""
        return self._activations[layer]

    def layer_weight(self, layer: str) -> Tensor:
        """The present weight of a layer, not rounded."""
        return self.weight(self._weights[layer][0])

    def weight_params(self, layer: str) -> QuantParams:
        """The present scale of a layer's weight, along axis 0 of the weight with its output channels first."""
        return self._weights[layer][1].params(self.layer_weight(layer), *self._factors(layer))


def _module_step(name: str, module: nn.Module, *tensors: str) -> Step:
    return Step(name=name, op=type(module).__name__, inputs=tensors, outputs=(name,), reads=tensors, module=module)
