"""Networks with random weights, built in place: the shapes of real ones, for measuring time and memory."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


class Builder:
    """Collects nodes and initializers; every method gives the name of the tensor it makes."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def constant(self, values: np.ndarray) -> str:
        name = f"w{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(values.astype(np.float32), name))
        return name

    def op(self, op: str, *inputs: str, **attributes: object) -> str:
        name = f"{op.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [f"{name}_out"], name=name, **attributes))
        return f"{name}_out"

    def conv(self, x: str, cin: int, cout: int, kernel: int, stride: int = 1, group: int = 1) -> str:
        fan_in = cin // group * kernel * kernel
        weight = self.constant(self.rng.normal(size=(cout, cin // group, kernel, kernel)) * np.sqrt(2 / fan_in))
        pads = [kernel // 2] * 4
        return self.op("Conv", x, weight, strides=[stride] * 2, pads=pads, group=group, kernel_shape=[kernel] * 2)

    def norm(self, x: str, channels: int) -> str:
        scale, variance = self.rng.uniform(0.8, 1.2, channels), self.rng.uniform(0.8, 1.2, channels)
        shift, mean = self.rng.normal(size=(2, channels)) * 0.1
        return self.op("BatchNormalization", x, *(self.constant(v) for v in (scale, shift, mean, variance)))

    def relu6(self, x: str) -> str:
        return self.op("Clip", x, self.constant(np.array(0.0)), self.constant(np.array(6.0)))

    def head(self, x: str, channels: int, classes: int) -> str:
        x = self.op("Flatten", self.op("GlobalAveragePool", x))
        weight = self.constant(self.rng.normal(size=(channels, classes)) / np.sqrt(channels))
        return self.op("Gemm", x, weight, self.constant(np.zeros(classes)))

    def model(self, output: str, size: int, classes: int) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "network",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, size, size])],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["N", classes])],
            self.initializers,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def resnet50() -> onnx.ModelProto:
    """The layers of ResNet-50 with their BatchNormalization not folded."""
    net = Builder()
    x = net.op("Relu", net.norm(net.conv("image", 3, 64, 7, 2), 64))
    x = net.op("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    cin = 64
    for width, blocks, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for block in range(blocks):
            step, cout = (stride if block == 0 else 1), 4 * width
            y = net.op("Relu", net.norm(net.conv(x, cin, width, 1), width))
            y = net.op("Relu", net.norm(net.conv(y, width, width, 3, step), width))
            y = net.norm(net.conv(y, width, cout, 1), cout)
            shortcut = net.norm(net.conv(x, cin, cout, 1, step), cout) if block == 0 else x
            x, cin = net.op("Relu", net.op("Add", y, shortcut)), cout
    return net.model(net.head(x, cin, 1000), 224, 1000)


def efficientnet_lite0() -> onnx.ModelProto:
    """The layers of EfficientNet-Lite0, BatchNormalization folded: inverted residuals with depthwise convolutions."""
    net = Builder()
    x, cin = net.relu6(net.conv("image", 3, 32, 3, 2)), 32
    stages = ((1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3), (6, 112, 3, 1, 5))
    for expand, cout, blocks, stride, kernel in (*stages, (6, 192, 4, 2, 5), (6, 320, 1, 1, 3)):
        for block in range(blocks):
            y, width = x, cin * expand
            if expand > 1:
                y = net.relu6(net.conv(y, cin, width, 1))
            y = net.relu6(net.conv(y, width, width, kernel, stride if block == 0 else 1, group=width))
            y = net.conv(y, width, cout, 1)
            x, cin = (net.op("Add", x, y) if block else y), cout
    return net.model(net.head(net.relu6(net.conv(x, cin, 1280, 1)), 1280, 1000), 224, 1000)


NETWORKS = {"resnet50": resnet50, "efficientnet_lite0": efficientnet_lite0}
