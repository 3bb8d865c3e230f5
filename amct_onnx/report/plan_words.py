"""Decisions in words."""

from __future__ import annotations

from amct_onnx.kernels.hfmg import Hfmg
from amct_onnx.kernels.ifmr import Ifmr
from amct_onnx.kernels.nuq import Nuq
from amct_onnx.kernels.quant_params import QuantParams
from amct_onnx.kernels.strategy import TensorStrategy
from amct_onnx.passes.state import LayerPlan


def activation_text(activation: Ifmr | Hfmg | QuantParams | TensorStrategy) -> str:
    """How an input is quantized, in words."""
    if isinstance(activation, QuantParams):
        return f"int{activation.num_bits} given"
    if isinstance(activation, TensorStrategy):
        return _strategy_text(activation)
    algorithm = "ifmr" if isinstance(activation, Ifmr) else "hfmg"
    sign = "asymmetric" if activation.asymmetric else "symmetric"
    return f"int{activation.num_bits} {sign} {algorithm}"


def weight_text(layer: LayerPlan) -> str:
    """How a weight is quantized, in words; empty where there is none."""
    if layer.op_type == "AveragePool":
        return ""
    weight = layer.weight
    balanced = ", dmq" if layer.balancer is not None else ""
    if isinstance(weight, TensorStrategy):
        return _strategy_text(weight)
    if isinstance(weight, Nuq):
        return f"nuq, {weight.num_steps} integers{balanced}"
    if isinstance(weight, QuantParams):
        return f"int{weight.num_bits} {'per tensor' if weight.axis is None else 'per channel'} given"
    return f"int{weight.num_bits} {'per channel' if weight.channel_wise else 'per tensor'}{balanced}"


def _strategy_text(tensor: TensorStrategy) -> str:
    if tensor.datatype != "int":
        return tensor.datatype
    sign = "symmetric" if tensor.symmetry else "asymmetric"
    return f"int{tensor.bit_width} {sign} {tensor.method} {tensor.scale_type}"
