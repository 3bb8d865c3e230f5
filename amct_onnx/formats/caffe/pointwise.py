"""Layers that work value by value: activations, Power, and Eltwise over several inputs."""

from __future__ import annotations

from amct_onnx.formats.caffe.network import Shape
from amct_onnx.formats.caffe.site import Site


def relu(site: Site) -> list[Shape]:
    """ReLU, with a slope LeakyRelu."""
    slope = site.params("relu_param").negative_slope
    if slope == 0:
        site.emit("Relu", [site.inputs[0].tensor])
    else:
        site.emit("LeakyRelu", [site.inputs[0].tensor], alpha=slope)
    return [site.shape]


def prelu(site: Site) -> list[Shape]:
    """PReLU, one slope for each channel or one for all."""
    is_shared = site.params("prelu_param").channel_shared
    if len(site.shape) < 2:
        raise site.error(f"its input must have at least 2 axes, found {list(site.shape)}")
    (slope,) = site.arrays(slope=(1,) if is_shared else site.shape[1:2])
    shape = (-1, *[1] * (len(site.shape) - 2))
    site.emit("PRelu", [site.inputs[0].tensor, site.constant("slope", slope.reshape(shape))])
    return [site.shape]


def relu6(site: Site) -> list[Shape]:
    """ReLU6 -> Clip to [0, 6]."""
    return _clip(site, 0.0, 6.0)


def clip(site: Site) -> list[Shape]:
    """Clip to [min, max]."""
    params = site.params("clip_param")
    if not (params.HasField("min") and params.HasField("max")):
        raise site.error("clip_param must give min and max")
    return _clip(site, params.min, params.max)


def _clip(site: Site, low: float, high: float) -> list[Shape]:
    site.emit("Clip", [site.inputs[0].tensor, site.number("min", low), site.number("max", high)])
    return [site.shape]


def elu(site: Site) -> list[Shape]:
    """ELU -> Elu."""
    site.emit("Elu", [site.inputs[0].tensor], alpha=site.params("elu_param").alpha)
    return [site.shape]


def sigmoid(site: Site) -> list[Shape]:
    """Sigmoid."""
    site.emit("Sigmoid", [site.inputs[0].tensor])
    return [site.shape]


def tanh(site: Site) -> list[Shape]:
    """TanH -> Tanh."""
    site.emit("Tanh", [site.inputs[0].tensor])
    return [site.shape]


def abs_val(site: Site) -> list[Shape]:
    """AbsVal -> Abs."""
    site.emit("Abs", [site.inputs[0].tensor])
    return [site.shape]


def power(site: Site) -> list[Shape]:
    """(shift + scale * x) ^ power -> as many of Mul, Add and Pow as it takes; the last carries the name."""
    params = site.params("power_param")
    wanted = [
        ("Mul", "scale", params.scale, 1.0),
        ("Add", "shift", params.shift, 0.0),
        ("Pow", "power", params.power, 1.0),
    ]
    steps = [(operator, role, value) for operator, role, value, neutral in wanted if value != neutral]
    source = site.inputs[0].tensor
    for operator, role, value in steps[:-1]:
        source = site.step(operator.lower(), operator, [source, site.number(role, value)])
    if steps:
        operator, role, value = steps[-1]
        site.emit(operator, [source, site.number(role, value)])
    else:
        site.emit("Identity", [source])
    return [site.shape]


def eltwise(site: Site) -> list[Shape]:
    """Eltwise -> Mul, Add (of inputs times their coefficients) or Max of inputs of one shape."""
    params = site.params("eltwise_param")
    for blob in site.inputs[1:]:
        if blob.shape != site.shape:
            raise site.error(f"its inputs must have one shape, found {list(site.shape)} and {list(blob.shape)}")
    coefficients = list(params.coeff) or [1.0] * len(site.inputs)
    if len(coefficients) != len(site.inputs) or (params.coeff and params.operation == 0):
        raise site.error(
            f"coeff goes with SUM, one for each of its {len(site.inputs)} inputs; found {len(params.coeff)}"
        )
    tensors = [blob.tensor for blob in site.inputs]
    if params.operation == 2:  # Caffe takes coefficients here, without effect
        site.emit("Max", tensors)
        return [site.shape]
    operator = "Mul" if params.operation == 0 else "Add"
    for index, coefficient in enumerate(coefficients):
        if coefficient != 1:
            factor = site.number(f"coeff{index}", coefficient)
            tensors[index] = site.step(f"mul{index}", "Mul", [tensors[index], factor])
    result = tensors[0]
    for index, tensor in enumerate(tensors[1:-1], 1):
        result = site.step(f"{operator.lower()}_{index}", operator, [result, tensor])
    site.emit(operator, [result, tensors[-1]])
    return [site.shape]
