"""Deploy models that keep to every rule, and what is needed to break them."""

from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from amct_onnx.formats.record import LayerRecord

CHANNELS = 20


@dataclass
class Deploy:
    """A deploy model with the record and the float model that belong to it."""

    model: onnx.ModelProto
    record: dict[str, LayerRecord]
    float_model: onnx.ModelProto


@dataclass
class Builder:
    """Adds quantized layers to a deploy model and their twins to a float one."""

    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    nodes: list = field(default_factory=list)
    constants: list = field(default_factory=list)
    float_nodes: list = field(default_factory=list)
    float_constants: list = field(default_factory=list)
    record: dict = field(default_factory=dict)

    def constant(self, name, values):
        self.constants.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def float_constant(self, name, values):
        self.float_constants.append(numpy_helper.from_array(np.asarray(values, np.float32), name))
        return name

    def node(self, op, name, inputs, **attributes):
        output = f"{name}.output"
        self.nodes.append(helper.make_node(op, inputs, [output], name=name, **attributes))
        return output

    def twin(self, op, name, inputs, **attributes):
        """A node in both models."""
        self.float_nodes.append(helper.make_node(op, inputs, [f"{name}.output"], name=name, **attributes))
        return self.node(op, name, inputs, **attributes)

    def quant(self, name, source, scale, offset):
        attributes = {"scale": float(np.float32(1) / np.float32(scale)), "offset": float(offset), "dst_type": "INT8"}
        return self.node("AscendQuant", f"{name}.quant", [source], **attributes)

    def layer(self, op, name, source, weight_shape=(), *, scale=0.05, offset=0, per_channel=False, **attributes):
        """AscendQuant, the layer with a bias, AscendDequant."""
        quant = self.quant(name, source, scale, offset)
        outputs = 0 if not weight_shape else weight_shape[0] if op == "Conv" else weight_shape[1]
        scales = np.float32(0.01) * (1 + np.arange(outputs if per_channel else 1, dtype=np.float32))
        scales = scales if weight_shape else np.ones(1, np.float32)
        words = np.float32(scale) * scales
        inputs, float_inputs = [quant], [source]
        bias = self.rng.normal(size=outputs).astype(np.float32)
        integers = np.round(bias / words).astype(np.int32) if outputs else None
        if weight_shape:
            weight = self.rng.integers(-127, 128, weight_shape).astype(np.int8)
            inputs.append(self.constant(f"{name}.weight", weight))
            float_inputs.append(self.float_constant(f"{name}.weight", weight))
        if weight_shape and op != "MatMul":
            inputs.append(self.constant(f"{name}.bias", integers))
            float_inputs.append(self.float_constant(f"{name}.bias", bias))
        result = self.node(op, name, inputs, **attributes)
        self.float_nodes.append(helper.make_node(op, float_inputs, [f"{name}.output"], name=name, **attributes))
        float_result = result
        if op == "MatMul":
            added = f"{name}.add"
            result = self.node("Add", added, [result, self.constant(f"{name}.bias", integers)])
            operands = [float_result, self.float_constant(f"{name}.bias", bias)]
            self.float_nodes.append(helper.make_node("Add", operands, [result], name=added))
        param = self.constant(f"{name}.dequant.param", words.view(np.uint32).astype(np.uint64))
        end = self.node("AscendDequant", f"{name}.dequant", [result, param], dtype=0)
        self.float_nodes.append(helper.make_node("Identity", [result], [end], name=f"{name}.identity"))
        self.record[name] = LayerRecord(
            scale_d=scale, offset_d=offset, scale_w=tuple(map(float, scales)), offset_w=(0,) * len(scales)
        )
        return end

    def finish(self, inputs, outputs, infos=()):
        ends = [[tensor_info(name, shape) for name, shape in side.items()] for side in (inputs, outputs)]
        models = []
        for nodes, constants in ((self.nodes, self.constants), (self.float_nodes, self.float_constants)):
            graph = helper.make_graph(nodes, "g", *ends, constants)
            graph.value_info.extend(infos)
            made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
            made.ir_version = 8
            models.append(made)
        return Deploy(models[0], self.record, models[1])


def tensor_info(name, shape, elem_type=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, elem_type, shape)


def network():
    """Conv, ConvTranspose, AveragePool, Gemm with balance factors, MatMul with a bias; an AscendAntiQuant aside."""
    net, c = Builder(), CHANNELS
    conv = {"per_channel": True, "kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "offset": 3}
    a = net.layer("Conv", "conv", "x", (c, c, 3, 3), **conv)
    a = net.twin("Relu", "relu", [a])
    b = net.layer("ConvTranspose", "up", a, (c, c, 2, 2), per_channel=True, kernel_shape=[2, 2], strides=[2, 2])
    p = net.layer("AveragePool", "pool", b, scale=0.025, kernel_shape=[4, 4], strides=[4, 4], offset=-7)
    f = net.twin("Flatten", "flatten", [p])
    m = net.node("Mul", "fc.mul", [f, net.constant("fc.tensor_balance_factor", np.full((1, 80), 0.5, np.float32))])
    net.float_nodes.append(helper.make_node("Identity", [f], [m], name="fc.identity"))
    g = net.layer("Gemm", "fc", m, (80, c), offset=-128, alpha=1.0, beta=1.0, transB=0)
    side = net.quant("side", g, 0.1, 5)
    z = net.node("AscendAntiQuant", "side.anti_quant", [side], scale=0.1, offset=5.0)
    net.float_nodes.append(helper.make_node("Identity", [g], [z], name="side.identity"))
    y = net.layer("MatMul", "proj", g, (c, 24), offset=4)
    return net.finish({"x": [1, c, 4, 4]}, {y: [1, 24], z: [1, c]}, [tensor_info("up.dequant.output", [1, c, 8, 8])])


def volume():
    """A 3-D Conv."""
    net, c = Builder(), CHANNELS
    y = net.layer("Conv", "conv", "x", (c, c, 2, 2, 2), kernel_shape=[2, 2, 2], dilations=[1, 1, 1])
    return net.finish({"x": [1, c, 4, 4, 4]}, {y: None})


def old_gemm():
    """What AMCT wrote in 2021: quant_bit instead of dst_type, no attribute on AscendDequant, words as varints."""
    weight = numpy_helper.from_array(np.full((3, 10), 127, np.int8), "fc.weight")
    bias = numpy_helper.from_array(np.zeros(10, np.int32), "fc.bias")
    param = TensorProto(name="Gemm_0.dequant.param", data_type=TensorProto.UINT64, dims=[1], uint64_data=[0x400177C0])
    quant = helper.make_node("AscendQuant", ["input"], ["Gemm_0.quant.output0"], name="Gemm_0.quant", quant_bit=8)
    quant.attribute.extend([helper.make_attribute("scale", 1.0002059), helper.make_attribute("offset", -128.0)])
    inputs = ["Gemm_0.quant.output0", "fc.weight", "fc.bias"]
    gemm = helper.make_node("Gemm", inputs, ["Gemm_0_output0"], name="Gemm_0", alpha=1.0, beta=1.0, transB=0)
    dequant = helper.make_node("AscendDequant", ["Gemm_0_output0", param.name], ["3"], name="Gemm_0.dequant")
    ends = [tensor_info("input", [1024, 3])], [tensor_info("3", [1024, 10])]
    graph = helper.make_graph([quant, gemm, dequant], "torch-jit-export", *ends, [weight, bias, param])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)])
    made.ir_version, made.producer_name, made.producer_version = 6, "pytorch", "1.5"
    return made


# Edits


def node(model, name):
    return next(n for n in model.graph.node if n.name == name)


def tensor(model, name):
    return next(t for t in model.graph.initializer if t.name == name)


def set_attribute(model, name, **values):
    """Replace attributes; None takes one away."""
    where = node(model, name)
    kept = [attribute for attribute in where.attribute if attribute.name not in values]
    del where.attribute[:]
    where.attribute.extend(kept)
    where.attribute.extend(helper.make_attribute(key, value) for key, value in values.items() if value is not None)


def set_tensor(model, name, values):
    tensor(model, name).CopyFrom(numpy_helper.from_array(np.asarray(values), name))


def values_of(model, name):
    return numpy_helper.to_array(tensor(model, name)).copy()


def add_node(model, op, name, inputs, **attributes):
    """A further node, whose result nothing reads."""
    model.graph.node.append(helper.make_node(op, inputs, [f"{name}.output"], name=name, **attributes))
    return f"{name}.output"


def make_input(model, name, shape, elem_type=TensorProto.FLOAT):
    """Turn an initializer into an input of the model."""
    model.graph.initializer.remove(tensor(model, name))
    model.graph.input.append(tensor_info(name, shape, elem_type))


def external(model, name, **entries):
    """Take an initializer's data out of the model."""
    where = tensor(model, name)
    data = where.raw_data
    where.ClearField("raw_data")
    where.data_location = TensorProto.EXTERNAL
    del where.external_data[:]
    for key, value in entries.items():
        where.external_data.add(key=key, value=str(value))
    return data
