"""What layer types and names of a strategy mean, and what is said of those that mean nothing."""

import pytest
from test_strategy import CPU, feeds, graph

from amct_onnx import quantize_onnx
from amct_onnx.errors import ConfigError
from amct_onnx.formats.torch_names import NamedNode, is_of_torch_type, nodes_named

RULE = {"quantizable_data_type": ["weights"], "overall_quantize_config": {"bit_width": 4}}
NODES = ("/conv1/Conv", "/layer1/layer1.0/conv2/Conv")


def named(names=("conv1.weight", "layer1.0.conv2.weight")):
    source = graph("[c] h = Conv(x, w) [d] y = Conv(h, v)")
    for node, name, own in zip(source.graph.node, names, NODES, strict=True):
        node.name = own
        for tensor in source.graph.initializer:
            if tensor.name == node.input[1]:
                tensor.name = name
        node.input[1] = name
    return source


def four_bit_layers(source, **rule):
    result = quantize_onnx(source, {**CPU, "layer_quantize_config": [{**RULE, **rule}]}, calibration=feeds())
    return [name for name, layer in result.plan.layers.items() if layer.weight.bit_width == 4]


@pytest.mark.parametrize("names", [("conv1.weight", "layer1.0.conv2.weight"), ("onnx::Conv_12", "onnx::Conv_13")])
@pytest.mark.parametrize(
    ("rule", "wanted"),
    [
        ({"layer_name": "/conv1/Conv"}, ["/conv1/Conv"]),
        ({"layer_name": "ResNet::ResNet/Conv2d[conv1]/input.2"}, ["/conv1/Conv"]),
        ({"layer_name": "R::R/Sequential[layer1]/Block[0]/Conv2d[conv2]/ret.3"}, ["/layer1/layer1.0/conv2/Conv"]),
        ({"layer_name": "layer1.0.conv2"}, ["/layer1/layer1.0/conv2/Conv"]),
        ({"layer_name": "R::R/Conv2d[conv2]/ret.3"}, ["/layer1/layer1.0/conv2/Conv"]),
        ({"layer_type": "torch.nn.Conv2d"}, ["/conv1/Conv", "/layer1/layer1.0/conv2/Conv"]),
        ({"layer_type": "Conv"}, ["/conv1/Conv", "/layer1/layer1.0/conv2/Conv"]),
        ({"layer_type": "Conv1d"}, []),
    ],
    ids=str,
)
def test_types_and_names_of_torch_find_their_nodes(names, rule, wanted):
    assert four_bit_layers(named(names), **rule) == wanted


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (
            {"layer_name": "ResNet::ResNet/Conv2d[conv3]/input.2"},
            "no node belongs to module 'conv3'; candidates: '/conv1/Conv'",
        ),
        ({"layer_name": "ResNet::ResNet/Linear[conv1]/input.2"}, "says Linear, but module 'conv1' is '/conv1/Conv'"),
        ({"layer_name": "Net::Net/ret.15"}, "names no node and no module; candidates: '/conv1/Conv'"),
        ({"layer_type": "Conv2dd"}, "did you mean 'Conv2d'"),
    ],
    ids=str,
)
def test_names_that_mean_nothing_are_refused_with_what_could_be_meant(rule, said):
    with pytest.raises(ConfigError, match=said):
        four_bit_layers(named(), **rule)


def test_a_module_without_a_weight_is_all_of_its_calls(caplog):
    nodes = [
        NamedNode(name="/layer1/layer1.0/relu/Relu", op="Relu"),
        NamedNode(name="/layer1/layer1.0/relu_1/Relu", op="Relu"),
        NamedNode(name="/layer1/layer1.1/relu/Relu", op="Relu"),
        NamedNode(name="/layer1/layer1.0/relu_2/Clip", op="Clip"),
    ]
    found = nodes_named("R::R/Sequential[layer1]/Block[0]/ReLU[relu]/input.9", nodes)
    assert found == [node.name for node in nodes[:2]]
    assert "are taken for one module" in caplog.text
    assert nodes_named("layer1.0.relu_1", nodes) == ["/layer1/layer1.0/relu_1/Relu"]


def test_a_linear_layer_has_a_weight():
    assert is_of_torch_type(NamedNode(name="m", op="MatMul", weight="fc.weight"), "Linear")
    assert not is_of_torch_type(NamedNode(name="m", op="MatMul"), "Linear")
    assert is_of_torch_type(NamedNode(name="m", op="MatMul"), "matmul")


def test_several_modules_of_one_name_are_listed():
    source = named(("a.conv.weight", "b.conv.weight"))
    with pytest.raises(ConfigError, match=r"could be any of '/conv1/Conv', '/layer1/layer1.0/conv2/Conv'"):
        four_bit_layers(source, layer_name="N::N/Conv2d[conv]/x")


def test_rules_that_disagree_about_one_tensor_are_refused():
    def rule(kind, bits):
        overall = {"overall_quantize_config": {"bit_width": bits}}
        return {"layer_type": kind, "quantizable_data_type": ["activation"], **overall}

    source = graph("[c] h = Conv(x, w) [r] y = Relu(h)")
    strategy = {**CPU, "layer_quantize_config": [rule("Conv2d", 6), rule("ReLU", 7)]}
    with pytest.raises(ConfigError, match=r"'Conv2d' and 'ReLU' .* disagree about tensor 'y'"):
        quantize_onnx(source, strategy, calibration=feeds())
