"""From a configuration to one decision per layer, and a sentence for every node left out."""

import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
from graphs import model
from odd_graphs import ODD_GRAPHS

from amct_onnx import (
    AdaRound,
    Arq,
    ConfigError,
    Dmq,
    Hfmg,
    Ifmr,
    LayerConfig,
    ModelError,
    NotAvailableError,
    QuantConfig,
    quantize_onnx,
)
from amct_onnx import prepare as preparing
from amct_onnx.formats.config_source import load_config
from amct_onnx.passes.weights import detached
from amct_onnx.planning import make_plan

RNG = np.random.default_rng(0)


def prepare(source):
    """The prepared state of a model in one message."""
    state, _ = preparing.prepare(detached(source))
    return state


def weights(**shapes):
    return {name: RNG.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


# One node of every kind of layer: convolutions of one to three axes, plain and transposed, pooling, Gemm, MatMul.
EVERY_KIND = model(
    """
    g (float[N, 4, 8] line, float[N, 4, 8, 8] image, float[N, 4, 8, 8, 8] block, float[N, 4] row)
      => (float[N, 4, 6] a, float[N, 4, 6, 6] b, float[N, 4, 6, 6, 6] c, float[N, 4, 8, 8] d, float[N, 4, 10] e,
          float[N, 4, 10, 10] f, float[N, 4, 4, 4] g, float[N, 2] h, float[N, 2] i) {
      [conv1d] a = Conv (line, w1)
      [conv2d] b = Conv (image, w2)
      [conv3d] c = Conv (block, w3)
      [depthwise] d = Conv <group = 4, pads = [1, 1, 1, 1]> (image, wd)
      [up1d] e = ConvTranspose (line, w1)
      [up2d] f = ConvTranspose (image, w2)
      [pool] g = AveragePool <kernel_shape = [2, 2], strides = [2, 2]> (image)
      [gemm] h = Gemm (row, w)
      [matmul] relu_in = MatMul (row, v)
      [relu] i = Relu (relu_in)
    }
    """,
    weights(w1=(4, 4, 3), w2=(4, 4, 3, 3), w3=(4, 4, 3, 3, 3), wd=(4, 1, 3, 3), w=(4, 2), v=(4, 2)),
)
WEIGHTED = ("conv1d", "conv2d", "conv3d", "depthwise", "up1d", "up2d", "gemm", "matmul")
LAYERS = ("conv1d", "conv2d", "conv3d", "depthwise", "up1d", "up2d", "pool", "gemm", "matmul")


@pytest.fixture(scope="module")
def every_kind():
    return prepare(EVERY_KIND)


def planned(state, config=None, **fields):
    """The plan for a QuantConfig, its fields, or a dict in the shape of a .cfg or a config.json."""
    config = QuantConfig(**fields) if config is None else load_config(config)
    return make_plan(state, config)


def refusal(state, error, config=None, **fields):
    with pytest.raises(error) as caught:
        planned(state, config, **fields)
    return str(caught.value)


def chain():
    """Two convolutions and a Gemm between which others stand."""
    return model(
        """
        g (float[N, 4, 8, 8] x) => (float[N, 2] y) {
          [conv1] c1 = Conv <pads = [1, 1, 1, 1]> (x, w1)
          [relu1] r1 = Relu (c1)
          [conv2] c2 = Conv <pads = [1, 1, 1, 1]> (r1, w2)
          [mean] m = GlobalAveragePool (c2)
          [flat] f = Flatten (m)
          [head] y = Gemm (f, w)
        }
        """,
        weights(w1=(4, 4, 3, 3), w2=(4, 4, 3, 3), w=(4, 2)),
    )


@pytest.fixture(scope="module")
def small():
    return prepare(chain())


# Which block applies

BY_LAYER = LayerConfig(activation=Hfmg(num_of_bins=1024, asymmetric=False))
BY_TYPE = LayerConfig(activation=Hfmg(num_of_bins=2048, asymmetric=False))
COMMON = LayerConfig(activation=Hfmg(num_of_bins=8192, asymmetric=False))


def test_a_layer_is_decided_by_its_name_then_its_type_then_the_common_block(small):
    plan = planned(
        small,
        common_config=COMMON,
        override_layer_types={"Conv": BY_TYPE},
        override_layer_configs={"conv1": BY_LAYER},
    )
    bins = {name: layer.activation.num_of_bins for name, layer in plan.layers.items()}
    assert bins == {"conv1": 1024, "conv2": 2048, "head": 8192}


def test_without_a_configuration_of_their_own_layers_take_the_defaults(small):
    plan = planned(small)
    assert list(plan.layers) == ["conv1", "conv2", "head"]
    assert all(layer.activation == Ifmr(asymmetric=True) for layer in plan.layers.values())
    assert {name: layer.weight for name, layer in plan.layers.items()} == {
        "conv1": Arq(channel_wise=True),
        "conv2": Arq(channel_wise=True),
        "head": Arq(channel_wise=False),
    }
    assert plan.notes == {}
    assert plan.disabled == {}


def test_blocks_are_taken_whole_and_not_merged(small):
    only_weight = {"calibration_config": {"arq_quantize": {"channel_wise": False}}}
    plan = planned(
        small,
        {
            "common_config": {
                "ifmr_quantize": {"search_range_start": 0.5, "search_range_end": 1.5, "search_step": 0.1},
                "arq_quantize": {"channel_wise": False},
            },
            "override_layer_types": [{"layer_type": "Gemm", **only_weight}],
            "override_layer_configs": [
                {"layer_name": "conv1", "calibration_config": {"ifmr_quantize": {"max_percentile": 0.9}}}
            ],
        },
    )
    assert plan.layers["conv2"].activation == Ifmr(search_range=(0.5, 1.5), search_step=0.1, asymmetric=True)
    assert plan.layers["conv2"].weight.channel_wise is False
    # the override says nothing of the range: it is the algorithm's, not that of common_config
    assert plan.layers["conv1"].activation == Ifmr(max_percentile=0.9, asymmetric=True)
    assert plan.layers["conv1"].weight.channel_wise is True
    assert plan.layers["head"].activation == Ifmr(asymmetric=True)


def test_an_override_by_name_also_replaces_one_by_type_whole(small):
    plan = planned(
        small,
        override_layer_types={"Conv": LayerConfig(weight=Arq(channel_wise=False))},
        override_layer_configs={"conv1": LayerConfig(activation=Hfmg())},
    )
    assert plan.layers["conv1"].weight.channel_wise is True
    assert isinstance(plan.layers["conv1"].activation, Hfmg)
    assert plan.layers["conv2"].weight.channel_wise is False
    assert isinstance(plan.layers["conv2"].activation, Ifmr)


# asymmetric: the layer's own block, common_config where the algorithm is the same, activation_offset


@pytest.mark.parametrize("offset", [True, False])
@pytest.mark.parametrize("where", ["override_layer_types", "override_layer_configs"])
@pytest.mark.parametrize("own", [True, False, None])
@pytest.mark.parametrize("common", [True, False, None])
@pytest.mark.parametrize("same_algorithm", [True, False])
def test_asymmetric_is_inherited_from_the_common_block_of_the_same_algorithm(
    small, offset, where, own, common, same_algorithm
):
    name = "Conv" if where == "override_layer_types" else "conv1"
    algorithm = Ifmr if same_algorithm else Hfmg
    plan = planned(
        small,
        activation_offset=offset,
        common_config=LayerConfig(activation=Ifmr(asymmetric=common)),
        **{where: {name: LayerConfig(activation=algorithm(asymmetric=own))}},
    )
    expected = own if own is not None else common if same_algorithm and common is not None else offset
    assert plan.layers["conv1"].activation.asymmetric is expected


@pytest.mark.parametrize("offset", [True, False])
@pytest.mark.parametrize("common", [True, False, None])
def test_asymmetric_of_the_common_block_beats_activation_offset(small, offset, common):
    plan = planned(small, activation_offset=offset, common_config=LayerConfig(activation=Hfmg(asymmetric=common)))
    expected = offset if common is None else common
    assert {layer.activation.asymmetric for layer in plan.layers.values()} == {expected}


@pytest.mark.parametrize("common", [True, None])
def test_a_convolution_of_three_axes_is_symmetric(every_kind, common):
    plan = planned(every_kind, common_config=LayerConfig(activation=Ifmr(asymmetric=common)))
    symmetric = [name for name, layer in plan.layers.items() if not layer.activation.asymmetric]
    assert symmetric == ["conv3d"]
    said = "".join(plan.notes.get("conv3d", ()))
    assert ("asymmetric" in said) is (common is True)


@pytest.mark.parametrize("override", [{"conv3d": True}, {"Conv3d": True}, {"Conv3D": True}])
def test_an_override_cannot_make_it_asymmetric(every_kind, override):
    ((name, asymmetric),) = override.items()
    field = "override_layer_configs" if name == "conv3d" else "override_layer_types"
    block = LayerConfig(activation=Ifmr(asymmetric=asymmetric))
    message = refusal(every_kind, ConfigError, **{field: {name: block}})
    for part in (repr(name), "asymmetric", "3-D Conv"):
        assert part in message


# What a layer cannot honour: a note where common_config asks, an error where an override does

IMPOSSIBLE = [
    pytest.param({"weight": Arq(channel_wise=True)}, "gemm", "Gemm", "channel_wise", id="channel_wise of Gemm"),
    pytest.param({"weight": Arq(channel_wise=True)}, "matmul", "MatMul", "channel_wise", id="channel_wise of MatMul"),
    pytest.param({"weight": Arq(num_bits=6)}, "conv1d", "Conv1d", "quant_bits: 6", id="6 bits of a line"),
    pytest.param({"weight": Arq(num_bits=7)}, "conv3d", "Conv3d", "quant_bits: 7", id="7 bits of a block"),
    pytest.param({"weight": Arq(num_bits=7)}, "up2d", "ConvTranspose2d", "quant_bits: 7", id="7 bits of transposed"),
    pytest.param({"weight": Arq(num_bits=6)}, "gemm", "Gemm", "quant_bits: 6", id="6 bits of Gemm"),
    pytest.param({"weight": AdaRound()}, "up1d", "ConvTranspose1d", "ada_quantize", id="rounding of transposed"),
    pytest.param({"activation": Ifmr(num_bits=16)}, "matmul", "MatMul", "INT16", id="16 bits of MatMul"),
    pytest.param({"activation": Hfmg(num_bits=16)}, "pool", "AveragePool", "INT16", id="16 bits of a pooling"),
    pytest.param({"balancer": Dmq()}, "pool", "AveragePool", "dmq_balancer", id="balancing of a pooling"),
]


@pytest.mark.parametrize(("block", "layer", "layer_type", "request_"), IMPOSSIBLE)
def test_a_common_request_that_a_layer_cannot_honour_is_dropped_with_a_note(
    every_kind, block, layer, layer_type, request_
):
    others = tuple(name for name in LAYERS if name != layer)
    plan = planned(every_kind, common_config=LayerConfig(**block), skip_layers=others)
    (note,) = plan.notes[layer]
    assert request_ in note
    assert "common_config" in note
    decided = plan.layers[layer]
    assert decided.activation.num_bits == 8
    assert decided.balancer is None
    assert decided.weight == Arq(channel_wise=layer in ("conv1d", "conv3d", "up1d", "up2d"))


@pytest.mark.parametrize(("block", "layer", "layer_type", "request_"), IMPOSSIBLE)
def test_the_same_request_in_an_override_is_an_error(every_kind, block, layer, layer_type, request_):
    for field, name in (("override_layer_configs", layer), ("override_layer_types", layer_type)):
        message = refusal(every_kind, ConfigError, **{field: {name: LayerConfig(**block)}})
        assert request_ in message
        assert repr(name) in message


@pytest.mark.parametrize("bits", [6, 7])
def test_six_and_seven_bits_are_for_two_dimensional_convolutions(every_kind, bits):
    plan = planned(every_kind, common_config=LayerConfig(weight=Arq(num_bits=bits)))
    assert {name for name in WEIGHTED if plan.layers[name].weight.num_bits == bits} == {"conv2d", "depthwise"}
    assert planned(every_kind, override_layer_types={"Conv2d": LayerConfig(weight=Arq(num_bits=bits))}).notes == {}


def test_one_scale_for_all_channels_can_be_had_everywhere(every_kind):
    block = LayerConfig(weight=Arq(channel_wise=False))
    plan = planned(every_kind, common_config=block)
    assert {layer.weight.channel_wise for layer in plan.layers.values()} == {False}
    plan = planned(every_kind, override_layer_configs=dict.fromkeys(WEIGHTED, block))
    assert {plan.layers[name].weight.channel_wise for name in WEIGHTED} == {False}
    assert plan.notes == {}


@pytest.mark.parametrize("weight", [Arq(channel_wise=True), Arq(num_bits=7), AdaRound()])
def test_a_pooling_is_told_nothing_about_weights_that_it_does_not_have(every_kind, weight):
    plan = planned(every_kind, common_config=LayerConfig(weight=weight), skip_layers=WEIGHTED)
    assert list(plan.layers) == ["pool"]
    assert plan.notes == {}


# Names of types

OF_TYPE = {
    "Conv": ("conv1d", "conv2d", "conv3d", "depthwise"),
    "ConvTranspose": ("up1d", "up2d"),
    "Gemm": ("gemm",),
    "MatMul": ("matmul",),
    "AveragePool": ("pool",),
    "Conv1d": ("conv1d",),
    "Conv2d": ("conv2d", "depthwise"),
    "Conv3d": ("conv3d",),
    "ConvTranspose1d": ("up1d",),
    "ConvTranspose2d": ("up2d",),
    "ConvTranspose3d": (),
    "Linear": ("gemm", "matmul"),
    "AvgPool1d": (),
    "AvgPool2d": ("pool",),
    "AvgPool3d": (),
    "Convolution": ("conv1d", "conv2d", "conv3d", "depthwise"),
    "Deconvolution": ("up1d", "up2d"),
    "InnerProduct": ("gemm", "matmul"),
    "Pooling": ("pool",),
    "Conv3D": ("conv3d",),
    "DepthwiseConv2dNative": ("depthwise",),
    "Conv2DBackpropInput": ("up2d",),
    "AvgPool": ("pool",),
    "LSTM": (),
    "GRU": (),
}


@pytest.mark.parametrize("name", OF_TYPE)
def test_a_type_is_skipped_under_its_name_in_every_framework(every_kind, name):
    plan = planned(every_kind, skip_layer_types=[name])
    assert tuple(plan.disabled) == OF_TYPE[name]
    assert tuple(plan.layers) == tuple(layer for layer in LAYERS if layer not in OF_TYPE[name])
    for layer in OF_TYPE[name]:
        assert name in plan.skipped[layer]
        assert "skip_layer_types" in plan.skipped[layer]


@pytest.mark.parametrize("name", OF_TYPE)
def test_a_type_is_overridden_under_its_name_in_every_framework(every_kind, name):
    plan = planned(every_kind, override_layer_types={name: LayerConfig(activation=Hfmg(asymmetric=False))})
    assert tuple(n for n, layer in plan.layers.items() if isinstance(layer.activation, Hfmg)) == OF_TYPE[name]


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize(("wide", "narrow"), [("Conv", "Conv2d"), ("Convolution", "Conv2D"), ("Conv", "Conv1d")])
def test_the_name_that_says_the_number_of_axes_wins(every_kind, order, wide, narrow):
    blocks = {wide: BY_TYPE, narrow: BY_LAYER}
    plan = planned(every_kind, override_layer_types=dict(list(blocks.items())[::order]))
    bins = {name: plan.layers[name].activation.num_of_bins for name in OF_TYPE["Conv"]}
    narrow_ones = ("conv1d",) if narrow == "Conv1d" else ("conv2d", "depthwise")
    assert bins == {name: 1024 if name in narrow_ones else 2048 for name in OF_TYPE["Conv"]}


@pytest.mark.parametrize("field", ["skip_layer_types", "override_layer_types"])
def test_an_unknown_type_is_refused_with_the_nearest_ones(field):
    value = ["Conv2dd"] if field == "skip_layer_types" else {"Conv2dd": LayerConfig()}
    with pytest.raises(ConfigError) as caught:
        QuantConfig(**{field: value})
    for part in (field, "'Conv2dd'", "'Conv2d'"):
        assert part in str(caught.value)


# Names of layers


@pytest.mark.parametrize("field", ["skip_layers", "skip_fusion_layers", "override_layer_configs", "only_layers"])
def test_an_unknown_layer_is_refused_with_the_nearest_ones(small, field):
    value = {"conv3": LayerConfig()} if field == "override_layer_configs" else ["conv3"]
    message = refusal(small, ConfigError, **{field: value})
    for part in (field, "'conv3'", "'conv1'", "'conv2'"):
        assert part in message
    assert "head" not in message


def test_a_name_that_is_like_no_other_is_refused_without_a_guess(small):
    message = refusal(small, ConfigError, skip_layers=["zzzzzz"])
    assert "'zzzzzz'" in message
    assert "did you mean" not in message


def test_an_override_of_what_cannot_be_quantized_says_why(small):
    message = refusal(small, ConfigError, override_layer_configs={"relu1": LayerConfig()})
    for part in ("'relu1'", "Relu is not an operator that can be quantized"):
        assert part in message


def test_an_override_of_what_preparation_took_out_says_why():
    m = chain()
    m.graph.node.append(onnx.helper.make_node("Conv", ["x", "w1"], ["nowhere"], name="dead"))
    message = refusal(prepare(m), ConfigError, override_layer_configs={"dead": LayerConfig()})
    for part in ("'dead'", "leads to no output"):
        assert part in message


def test_a_skipped_layer_may_have_a_block_that_would_not_do_otherwise(small):
    plan = planned(small, skip_layers=["relu1", "conv1"], override_layer_configs={"relu1": LayerConfig()})
    assert list(plan.layers) == ["conv2", "head"]


def test_the_lists_say_in_the_plan_why_a_layer_is_left_out(small):
    plan = planned(small, skip_layers=["conv1"], skip_layer_types=["Gemm"])
    assert list(plan.layers) == ["conv2"]
    assert list(plan.disabled) == ["conv1", "head"]
    assert "skip_layers" in plan.skipped["conv1"]
    assert "skip_layer_types" in plan.skipped["head"]
    assert "'Gemm'" in plan.skipped["head"]


def test_a_layer_that_is_left_out_is_still_decided_for_the_configuration_file(small):
    plan = planned(small, skip_layers=["conv1"], override_layer_configs={"conv1": BY_LAYER})
    assert plan.disabled["conv1"].activation == BY_LAYER.activation


def test_a_layer_inside_a_body_can_be_named(small):
    case = next(build() for build in ODD_GRAPHS if build.__name__ == "if_bodies")
    inner = sorted(case.keeps_float)
    state = prepare(case.model)
    assert set(inner) <= set(planned(state).skipped)
    assert set(inner) <= set(planned(state, skip_layers=inner).skipped)


# The full configuration


def as_json(*layers, **more):
    return {"version": 1, **{name: {"quant_enable": True} for name in layers}, **more}


def test_a_full_configuration_quantizes_the_layers_that_it_enables_and_no_others(small):
    plan = planned(small, as_json("conv2", head={"quant_enable": False}))
    assert list(plan.layers) == ["conv2"]
    assert list(plan.disabled) == ["conv1", "head"]
    for name in ("conv1", "head"):
        assert "quant_enable" in plan.skipped[name]


def test_a_full_configuration_takes_one_batch_unless_told(small):
    assert planned(small, as_json("conv1")).batch_num == 1
    assert planned(small, as_json("conv1", batch_num=3)).batch_num == 3
    assert planned(small, {}).batch_num is None


def test_a_full_configuration_names_unknown_layers_and_their_neighbours(small):
    message = refusal(small, ConfigError, as_json("conv1", "head2"))
    for part in ("'head2'", "'head'"):
        assert part in message


def test_a_full_configuration_may_list_what_cannot_be_quantized_only_as_disabled(small):
    disabled = as_json("conv1", relu1={"quant_enable": False, "activation_quant_params": {}})
    assert list(planned(small, disabled).layers) == ["conv1"]
    message = refusal(small, ConfigError, as_json("conv1", "relu1"))
    assert "'relu1'" in message
    assert "Relu" in message


def test_a_full_configuration_without_an_enabled_layer_leaves_nothing_to_do(small):
    message = refusal(small, ModelError, as_json(conv1={"quant_enable": False}))
    for part in ("no layer", "'conv1'", "quant_enable"):
        assert part in message


def test_a_full_configuration_is_checked_by_layer_as_an_override_is(every_kind):
    gemm = {"quant_enable": True, "weight_quant_params": {"channel_wise": True}}
    message = refusal(every_kind, ConfigError, as_json("conv2d", gemm=gemm))
    assert "'gemm'" in message
    assert "channel_wise" in message


# What is not there yet

WISHES = [
    pytest.param({"activation": Ifmr(num_bits=4)}, "4-bit activations", id="4-bit activations"),
]


@pytest.mark.parametrize(("block", "what"), WISHES)
def test_a_wish_of_the_future_names_layer_and_field(small, block, what):
    block = LayerConfig(**block)
    for fields in (
        {"override_layer_configs": {"conv2": block}},
        {"common_config": block, "skip_layers": ["conv1"]},
        {"override_layer_types": {"Conv2d": block}, "skip_layers": ["conv1"]},
    ):
        message = refusal(small, NotAvailableError, **fields)
        assert "'conv2'" in message
        assert what in message


@pytest.mark.parametrize(("block", "what"), WISHES)
def test_a_wish_of_the_future_does_no_harm_where_the_layer_is_skipped(small, block, what):
    plan = planned(small, override_layer_configs={"conv2": LayerConfig(**block)}, skip_layers=["conv2"])
    assert list(plan.layers) == ["conv1", "head"]


# Nothing to quantize


def test_a_model_without_layers_says_which_operators_count():
    m = model("g (float[N, 4] x) => (float[N, 4] y) { [relu] y = Relu (x) }")
    message = refusal(prepare(m), ModelError)
    for part in ("Conv", "Gemm", "MatMul", "AveragePool"):
        assert part in message


def test_when_every_layer_is_left_out_each_reason_is_shown():
    m = model(
        """
        g (float[4, 4] x, float[4, 4] v) => (float[4, 4] y) {
          [free] a = MatMul (x, v)
          [turned] b = Gemm <transA = 1> (a, w)
          [listed] y = MatMul (b, w)
        }
        """,
        weights(w=(4, 4)),
    )
    message = refusal(prepare(m), ModelError, skip_layers=["listed"])
    for part in ("no layer", "'free'", "run time", "'turned'", "transA", "'listed'", "skip_layers"):
        assert part in message


# Every node is accounted for


def nodes_of(graph, inside=""):
    """The name of every node, bodies included; an unnamed one of the main graph under the name that it gets."""
    for position, node in enumerate(graph.node):
        if node.name or not inside:
            yield node.name or f"{node.op_type}_{position}"
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from nodes_of(attribute.g, node.name)


@pytest.fixture(scope="module")
def finals(one_thread):
    """Builder -> (case, final plan, names of the nodes that were written), each computed once."""
    found = {}

    def final(build):
        if build not in found:
            case = build()
            result = quantize_onnx(case.model, calibration=case.feeds[:1], progress=False)
            written = [node.name for node in result.deploy_model.graph.node if not node.op_type.startswith("Ascend")]
            found[build] = case, result.plan, written
        return found[build]

    return final


each_odd_graph = pytest.mark.parametrize("build", ODD_GRAPHS, ids=lambda build: build.__name__)


@each_odd_graph
def test_every_node_of_the_model_has_a_decision_or_a_reason(build, finals):
    case, plan, _ = finals(build)
    assert [name for name in nodes_of(case.model.graph) if name not in plan.layers and name not in plan.skipped] == []


@each_odd_graph
def test_every_node_that_was_written_has_a_decision_or_a_reason(build, finals):
    _, plan, written = finals(build)
    assert [name for name in written if name not in plan.layers and name not in plan.skipped] == []


@each_odd_graph
def test_no_node_has_both_and_each_reason_is_a_sentence(build, finals):
    case, plan, _ = finals(build)
    assert not set(plan.layers) & set(plan.skipped)
    assert not set(plan.layers) & case.keeps_float
    assert not set(plan.layers) & set(plan.disabled)
    assert set(plan.notes) <= set(plan.layers)
    for reason in plan.skipped.values():
        assert len(reason.split()) >= 3
        assert "\n" not in reason


def test_the_plan_is_in_the_order_of_the_graph(every_kind):
    assert tuple(planned(every_kind).layers) == LAYERS
    plan = planned(every_kind, skip_layer_types=["AveragePool", "Conv1d", "Gemm"])
    assert tuple(plan.disabled) == ("conv1d", "pool", "gemm")


def test_planning_leaves_graph_and_configuration_as_they_are(small):
    before = small.graph.to_model().SerializeToString(deterministic=True)
    config = QuantConfig(skip_layers=["conv1"], common_config=COMMON)
    assert make_plan(small, config) == make_plan(small, replace(config))
    assert small.graph.to_model().SerializeToString(deterministic=True) == before


def test_a_dict_and_its_json_text_give_the_same_plan(small, tmp_path):
    given = as_json("conv1", "head", batch_num=2, activation_offset=False)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(given))
    assert planned(small, given) == planned(small, str(path))
