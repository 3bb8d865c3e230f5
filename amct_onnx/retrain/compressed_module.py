"""The module of a model that is trained sparse, quantized, or both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor, nn

from amct_onnx.formats.prune_record import Mask, PrunedGroup, PruneRecord
from amct_onnx.kernels.sparsity import selective_mask
from amct_onnx.passes.weights import LightModel
from amct_onnx.retrain.channel_pruning import PrunedRow
from amct_onnx.retrain.planning import RetrainPlan
from amct_onnx.retrain.program import Step
from amct_onnx.retrain.prune_planning import PrunePlan
from amct_onnx.retrain.quantized_module import QuantRetrainModule
from amct_onnx.retrain_config import SelectivePrune


class WeightMask(nn.Module):
    """Two of every four weights along the input channels are zero, those of the least magnitude.

    Weights at zero get no gradient and keep their value, so that they may come back when others are chosen.

    Attributes:
        mask: which weights stay, in the shape of the weight.
        steps: batches seen in train mode; every `update_freq`-th, from the first on, the choice is made anew.
    """

    mask: Tensor
    steps: Tensor

    def __init__(self, wish: SelectivePrune, weight: Tensor, axis: int) -> None:
        super().__init__()
        self.update_freq, self.axis = wish.update_freq, axis
        self.register_buffer("mask", self._chosen(weight))
        self.register_buffer("steps", torch.tensor(0))

    def forward(self, weight: Tensor) -> Tensor:
        """`weight` with zeros."""
        if self.training:
            if self.update_freq and int(self.steps) % self.update_freq == 0:
                self.mask.copy_(self._chosen(weight))
            self.steps += 1
        return self.masked(weight)

    def masked(self, weight: Tensor) -> Tensor:
        """`weight` with the present zeros."""
        return weight * self.mask.to(weight.dtype)

    def _chosen(self, weight: Tensor) -> Tensor:
        values = weight.detach().cpu().numpy()
        return torch.from_numpy(selective_mask(values, self.axis)).to(weight.device)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruning:
    """What was made sparse before training.

    plan: the decision for every layer.
    groups: which channels are gone.
    rows: what was asked for and what was done, group by group.
    input_axes: layer with masked weights -> the axis of its weight that the input channels are on.
    """

    plan: PrunePlan = field(default_factory=PrunePlan)
    groups: tuple[PrunedGroup, ...] = ()
    rows: tuple[PrunedRow, ...] = ()
    input_axes: Mapping[str, int] = field(default_factory=dict)


class CompressedModule(QuantRetrainModule):
    """A `QuantRetrainModule`, possibly without any quantizer, whose channels are fewer or whose weights are masked.

    Attributes:
        pruning: what was made sparse.
    """

    def __init__(
        self,
        source: LightModel,
        plan: RetrainPlan,
        pruning: Pruning,
        ties: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        super().__init__(source, plan, ties)
        self.pruning = pruning
        self._masks: dict[str, WeightMask] = {}
        self._masked_layers: dict[str, str] = {}
        layers = {step.name: step for step in self._program.steps}
        steps: list[Step] = []
        weights = {self._weight_name(layers[name]): name for name in pruning.plan.selective}
        for step in self._program.steps:
            for read in step.inputs:
                if read in weights and read not in self._masks:
                    steps.append(self._mask_step(weights[read], read))
            inputs = tuple(self._mask_key(read) if read in self._masks else read for read in step.inputs)
            steps.append(replace(step, inputs=inputs, reads=(*inputs, *step.reads[len(step.inputs) :])))
        self._program = replace(self._program, steps=tuple(steps))

    def _weight_name(self, layer: Step) -> str:
        """The initializer behind a layer's weight, be it quantized or not."""
        return self._weights[layer.name][0] if layer.name in self._weights else layer.inputs[1]

    def _mask_step(self, layer: str, weight: str) -> Step:
        mask = WeightMask(self.pruning.plan.selective[layer], super().weight(weight), self.pruning.input_axes[layer])
        self.add_module_at(f"{layer}.weight_mask", mask)
        self._masks[weight] = mask
        self._masked_layers[layer] = weight
        key = self._mask_key(weight)
        return Step(name=key, op="WeightMask", inputs=(weight,), outputs=(key,), reads=(weight,), module=mask)

    @staticmethod
    def _mask_key(weight: str) -> str:
        return f"{weight} masked"

    def weight(self, name: str) -> Tensor:
        """The present value of an initializer that is trained, with zeros where it is masked."""
        values = super().weight(name)
        return self._masks[name].masked(values) if name in self._masks else values

    def rounded_weights(self) -> dict[str, Tensor]:
        """The weights of layers as evaluation sees them, by initializer."""
        with torch.no_grad():
            masked = {name: self.weight(name) for name in self._masks}
        return masked | super().rounded_weights()

    def trained_model(self, instead: Mapping[str, Tensor] = MappingProxyType({})) -> LightModel:
        """The model with the present values, masked weights with their zeros, or for those named with others."""
        with torch.no_grad():
            masked = {name: self.weight(name) for name in self._masks}
        return super().trained_model(masked | dict(instead))

    def mask(self, layer: str) -> Mask:
        """Which weights of a layer stay, in the shape that torch gives the weight."""
        found = self._masks[self._masked_layers[layer]].mask.cpu().numpy()
        is_transposed = found.ndim == 2 and self.pruning.input_axes[layer] == 0
        return np.ascontiguousarray(found.T) if is_transposed else found

    def prune_record(self) -> PruneRecord:
        """What the record file says of the sparsity."""
        return PruneRecord(
            groups=self.pruning.groups, masks={name: self.mask(name) for name in self.pruning.plan.selective}
        )
