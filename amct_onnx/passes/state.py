"""What travels through the passes: the graph, the plan, and the table that the passes fill in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amct_onnx.kernels.adaround import AdaRound
from amct_onnx.kernels.arq import Arq
from amct_onnx.kernels.distribution import Distribution, RangeCandidate
from amct_onnx.kernels.dmq import Dmq
from amct_onnx.kernels.grid import Grid
from amct_onnx.kernels.hfmg import Hfmg
from amct_onnx.kernels.ifmr import Ifmr
from amct_onnx.kernels.nuq import Nuq
from amct_onnx.kernels.quant_params import QuantParams
from amct_onnx.kernels.strategy import TensorStrategy
from amct_onnx.passes.graph import Graph


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerPlan:
    """The decision for one layer.

    name, op_type: the node.
    activation: algorithm for input 0, with `asymmetric` decided; or what it would find, where that is given. It is also
        for input 1 where that is an activation.
    weight: algorithm for the weight, with `channel_wise` decided; or what it would find. A layer without a weight
        ignores it; where input 1 is an activation, it holds what is given for that.
    bias: strategy for the bias; None for int32 on the product of both scales.
    balancer: moves outliers from the input to the weight; or its factors, where they are given; None for no balancing.
    cluster: the integers that are left to the weight, where they are given; else empty.
    hidden, recurrent: of an LSTM or GRU, what is given for its hidden state and for what that is multiplied by; else
        None: they are found as the others are.
    equalise: scale its channels against those of a neighbour that is equalised too.
    correct_bias: take out of its bias what the error of its weights adds on average.
    """

    name: str
    op_type: str
    activation: Ifmr | Hfmg | QuantParams | TensorStrategy
    weight: Arq | AdaRound | Nuq | QuantParams | TensorStrategy
    bias: TensorStrategy | None = None
    balancer: Dmq | tuple[float, ...] | None = None
    cluster: tuple[int, ...] = ()
    hidden: QuantParams | None = None
    recurrent: QuantParams | None = None
    equalise: bool = False
    correct_bias: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorPlan:
    """The decision for one input of a node that is no layer: it goes through integers and back.

    node, index: which input of which node.
    activation: algorithm; `asymmetric` is decided.
    joint: it shares its scale with the other input of the node, which is planned too.
    """

    node: str
    index: int
    activation: Ifmr | Hfmg | QuantParams
    joint: bool = False

    @property
    def key(self) -> str:
        """What it is called in tables and records."""
        return f"{self.node}:{self.index}"


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantPlan:
    """One decision for every node of the model.

    layers: what is quantized, in the order of the graph.
    tensors: single inputs of other nodes that are quantized.
    disabled: what could be quantized and was switched off by the user, in the order of the graph.
    unfit: what was planned and turned out not to be quantizable on the data, in the order of the graph.
    folded: nodes that were folded into another one, which computes what they did -> that one.
    skipped: every other node, the disabled and the unfit ones -> the reason, a sentence that a user can read.
    notes: layer -> what was decided otherwise than asked, one sentence each.
    choices: what was tried for the whole network, and what came of it, one sentence each.
    batch_num: calibration batches to use; None for all.
    do_fusion, wide_fusion, skip_fusion: where BatchNormalization is folded.
    balance_batches: batches that balancing looks at; None for all.
    fold_balancers: balancing leaves no Mul where it can be folded into what produces the input.
    fp16_scales: activation scales are rounded to what fp16 holds.
    cut_scales: layers whose dequantization scale is cut to 19 bits.
    tensor_strategies: tensor -> how it is quantized where it is produced, whoever reads it.
    replace_relu6: Clip between 0 and 6 becomes Relu.
    align_concat, align_pool: the inputs of a concatenation, of a pooling, get the grid of its output.
    dpu_shifts: positions are changed until the DPU's shifters reach them.
    dpu_arithmetic: average pooling and LeakyRelu compute what they do on the DPU.
    whole_bias_errors: biases that are corrected batch by batch lose the whole mean error at the end instead.
    """

    layers: Mapping[str, LayerPlan] = field(default_factory=dict)
    tensors: tuple[TensorPlan, ...] = ()
    disabled: Mapping[str, LayerPlan] = field(default_factory=dict)
    unfit: Mapping[str, LayerPlan] = field(default_factory=dict)
    folded: Mapping[str, str] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)
    notes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    choices: tuple[str, ...] = ()
    batch_num: int | None = None
    do_fusion: bool = True
    wide_fusion: bool = False
    skip_fusion: frozenset[str] = frozenset()
    balance_batches: int | None = None
    fold_balancers: bool = False
    fp16_scales: bool = False
    cut_scales: frozenset[str] = frozenset()
    tensor_strategies: Mapping[str, TensorStrategy] = field(default_factory=dict)
    replace_relu6: bool = False
    align_concat: bool = False
    align_pool: bool = False
    dpu_shifts: bool = False
    dpu_arithmetic: bool = False
    whole_bias_errors: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantState:
    """The table that travels through the passes. Columns that later passes fill start empty.

    graph: rewritten in place.
    plan: made once, between preparation and calibration.
    gone: nodes that passes took out of the graph -> the reason.
    folded: nodes that were folded into another one, which computes what they did -> that one.
    copies: initializers that layers got for themselves -> the one that they had in common with others.
    remarks: nodes that stayed -> why a pass that looked at them left them.
    balances: layer -> what its weight was multiplied by and its input divided by, [Cin].
    activations: layer, or key of a tensor that is quantized by itself -> parameters of its input.
    weights: layer -> parameters of its weight, or of the second input where it multiplies two activations.
    hidden: LSTM or GRU -> parameters of its hidden state, initial_h.
    recurrent: LSTM or GRU -> parameters of the weight that its hidden state is multiplied by, R.
    softened: layer -> its weight, softly rounded, that activations are observed behind; in its own layout and type.
    clusters: layer -> the integers that NUQ leaves to its weight, int8, ascending.
    rounded: layer -> its weight as integers, where they are not the nearest; int8, output channels first.
    means: layer -> mean of its input for each channel, [Cin].
    bias_shifts: layer -> what the quantized models have on top of its bias, [Cout].
    grids: tensor -> the grid of its values.
    weight_grids, bias_grids: layer -> the grid of its weight, in the operator's own layout, and of its bias.
    remarks_on_tensors: planned tensors that stay float -> the reason.
    left_float: planned layers and tensors that turned out not to be quantizable -> the reason.
    distributions: layer, or key of a tensor -> what was seen of its input; "<layer>:1" for the second input of a layer.
    considered: the same -> ranges that were considered for it, the chosen one not among them.
    """

    graph: Graph
    plan: QuantPlan = field(default_factory=QuantPlan)
    gone: dict[str, str] = field(default_factory=dict)
    folded: dict[str, str] = field(default_factory=dict)
    copies: dict[str, str] = field(default_factory=dict)
    remarks: dict[str, str] = field(default_factory=dict)
    balances: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    activations: dict[str, QuantParams] = field(default_factory=dict)
    weights: dict[str, QuantParams] = field(default_factory=dict)
    hidden: dict[str, QuantParams] = field(default_factory=dict)
    recurrent: dict[str, QuantParams] = field(default_factory=dict)
    softened: dict[str, NDArray[np.floating[Any]]] = field(default_factory=dict)
    clusters: dict[str, NDArray[np.int8]] = field(default_factory=dict)
    rounded: dict[str, NDArray[np.int8]] = field(default_factory=dict)
    means: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    bias_shifts: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    grids: dict[str, Grid] = field(default_factory=dict)
    weight_grids: dict[str, Grid] = field(default_factory=dict)
    bias_grids: dict[str, Grid] = field(default_factory=dict)
    remarks_on_tensors: dict[str, str] = field(default_factory=dict)
    left_float: dict[str, str] = field(default_factory=dict)
    distributions: dict[str, Distribution] = field(default_factory=dict)
    considered: dict[str, tuple[RangeCandidate, ...]] = field(default_factory=dict)

    def layers(self) -> list[LayerPlan]:
        """The planned layers that are still to be quantized, in the order of the graph."""
        return [layer for name, layer in self.plan.layers.items() if name not in self.left_float]

    def tensors(self) -> list[TensorPlan]:
        """The planned tensors that are still to be quantized."""
        return [tensor for tensor in self.plan.tensors if tensor.key not in self.left_float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Invariant:
    """Something that holds for a state: `check` gives one sentence per violation."""

    name: str
    check: Callable[[QuantState], list[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """A rewrite: `run` edits the state in place. What must hold before, and what holds after."""

    name: str
    run: Callable[[QuantState], None]
    requires: tuple[Invariant, ...] = ()
    ensures: tuple[Invariant, ...] = ()
