"""verify_deploy_model: every rule broken by itself, files that mean harm, and what other tools write."""

import json
import os
import re
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from deploy_graphs import (
    CHANNELS,
    Deploy,
    add_node,
    external,
    network,
    node,
    old_gemm,
    set_attribute,
    set_tensor,
    tensor,
    tensor_info,
    values_of,
    volume,
)
from deploy_mutations import MUTATIONS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from amct_onnx import ModelError, RecordError, VerifyReport, verify_deploy_model
from amct_onnx.deploy import tensors, verify
from amct_onnx.deploy.container_rules import LARGEST_FILE
from amct_onnx.deploy.rules import RULES
from amct_onnx.formats.record import format_record

ROOT = Path(__file__).resolve().parents[1]
NEED_MORE = {21, 22, 23}
"""Rules that cannot be checked by the deploy model alone."""


def fired(report):
    return {finding.rule for finding in report.findings}


def checked(d: Deploy, *, beside=True):
    return verify_deploy_model(d.model, **({"record": d.record, "float_model": d.float_model} if beside else {}))


def saved(model, folder, name="net_deploy_model.onnx"):
    path = folder / name
    path.write_bytes(model.SerializeToString())
    return path


# Good files


@pytest.mark.parametrize("base", [network, volume])
def test_a_good_model_breaks_no_rule_and_every_rule_is_checked(base):
    report = checked(base())
    assert (report.findings, report.unchecked, report.ok) == ((), (), True)


def test_without_record_and_float_model_the_report_says_what_was_not_checked():
    report = checked(network(), beside=False)
    assert report.findings == ()
    assert {entry.rule for entry in report.unchecked} == NEED_MORE
    assert [entry.reason for entry in report.unchecked] == [
        "give the float model to check it",
        "without the float model it is found only in layers whose float bias is 0",
        "give the record file to check it; without one only pooling layers are",
    ]


def test_what_amct_wrote_in_2021_breaks_no_rule(tmp_path):
    model = old_gemm()
    assert 520 < model.ByteSize() < 560
    report = verify_deploy_model(saved(model, tmp_path))
    assert (report.findings, report.layers) == ((), 1)


def test_files_of_record_and_float_model_do_as_well(tmp_path):
    d = network()
    record, original = tmp_path / "record.txt", saved(d.float_model, tmp_path, "float.onnx")
    record.write_text(format_record(d.record), encoding="utf-8")
    report = verify_deploy_model(saved(d.model, tmp_path), record=record, float_model=str(original))
    assert (report.findings, report.unchecked) == ((), ())


def test_the_model_in_memory_stays_as_it_is():
    d = network()
    before = d.model.SerializeToString(deterministic=True)
    checked(d)
    assert d.model.SerializeToString(deterministic=True) == before


# Every rule


@pytest.mark.parametrize("case", MUTATIONS, ids=lambda case: f"{case.rule} {case.name}")
def test_each_mutation_breaks_just_its_rule(case):
    d = case.base()
    case.edit(d)
    report = checked(d, beside=case.beside)
    assert fired(report) == {case.rule}
    assert case.severity in {finding.severity for finding in report.findings}
    assert report.ok == ("error" not in {finding.severity for finding in report.findings})


def test_the_mutations_cover_every_rule_and_both_severities():
    shown = {(case.rule, case.severity) for case in MUTATIONS} | {(40, "error")}
    assert shown == {(rule.number, severity) for rule in RULES for severity in rule.severities}
    assert [rule.number for rule in RULES] == list(range(1, 43))


def test_a_file_above_two_gigabytes_is_not_even_opened(tmp_path):
    path = saved(network().model, tmp_path)
    os.truncate(path, LARGEST_FILE + 1)  # sparse: takes no room
    report = verify_deploy_model(path)
    assert fired(report) == {40}
    assert {entry.rule for entry in report.unchecked} == set(range(1, 43)) - {40}


def test_a_model_in_memory_of_that_size_breaks_the_rule_too(monkeypatch):
    monkeypatch.setattr("amct_onnx.deploy.container_rules.LARGEST_FILE", 5000)
    assert fired(checked(network())) == {40}


def test_no_more_than_some_findings_of_one_rule_are_listed(monkeypatch):
    monkeypatch.setattr(verify, "MOST_FINDINGS", 2)
    d = network()
    for name in ("conv", "up", "pool", "fc"):
        node(d.model, f"{name}.quant").name = f"{name}_quant"
    report = checked(d)
    assert [finding.rule for finding in report.findings] == [42, 42]
    assert [(entry.rule, entry.reason) for entry in report.unchecked] == [(42, "2 findings are enough")]


def test_the_documentation_lists_every_rule_as_it_is():
    text = (ROOT / "docs" / "verify.md").read_text(encoding="utf-8")
    rows = re.findall(r"(?m)^\| (\d+) \| ([^|]+) \| (.+) \| ([^|]+) \|$", text)
    wanted = [(str(rule.number), ", ".join(rule.severities), rule.sentence, rule.source) for rule in RULES]
    assert rows == wanted


# What other tools write


def test_names_of_another_tool_are_warnings():
    d = network()
    node(d.model, "conv.quant").name = "conv_quant0"
    assert checked(d).ok


def test_a_constant_node_is_as_good_as_an_initializer():
    d = network()
    for name in ("conv.dequant.param", "conv.weight", "conv.bias", "fc.tensor_balance_factor"):
        value = tensor(d.model, name)
        d.model.graph.node.insert(0, helper.make_node("Constant", [], [name], name=f"{name}.node", value=value))
        d.model.graph.initializer.remove(tensor(d.model, name))
    report = checked(d)
    assert (report.findings, report.unchecked) == ((), ())


def test_a_weight_may_stand_behind_a_transpose():
    d = network()
    set_tensor(d.model, "proj.weight", values_of(d.model, "proj.weight").T.copy())
    node(d.model, "proj").input[1] = add_node(d.model, "Transpose", "turned", ["proj.weight"])
    assert checked(d).findings == ()


def test_results_on_one_scale_may_be_joined():
    d = network()
    node(d.model, "conv.dequant").input[0] = add_node(d.model, "Concat", "join", ["conv.output", "conv.output"], axis=1)
    words = values_of(d.model, "conv.dequant.param")
    set_tensor(d.model, "conv.dequant.param", np.concatenate([words, words]))
    d.model.graph.node.remove(node(d.model, "up"))
    d.model.graph.node.append(helper.make_node("Identity", ["relu.output"], ["up.output"], name="up"))
    d.model.graph.node.remove(node(d.model, "up.dequant"))
    d.model.graph.node.append(helper.make_node("Identity", ["up.output"], ["up.dequant.output"], name="up.identity"))
    d.model.graph.node.remove(node(d.model, "up.quant"))
    assert 12 not in fired(checked(d, beside=False))
    set_tensor(d.model, "conv.dequant.param", words)
    assert 12 in fired(checked(d, beside=False))


def test_a_pad_with_the_offset_and_a_reflecting_one_are_right():
    for fill, mode in ((np.int8(3), "constant"), (np.int8(0), "reflect")):
        d = network()
        for name, values in {"ends": np.zeros(8, np.int64), "fill": fill}.items():
            d.model.graph.initializer.append(numpy_helper.from_array(np.asarray(values), name))
        padded = add_node(d.model, "Pad", "pad", ["conv.quant.output", "ends", "fill"], mode=mode)
        node(d.model, "conv").input[0] = padded
        assert checked(d).findings == ()


def test_a_pad_with_a_computed_value_is_not_judged():
    d = network()
    d.model.graph.input.append(tensor_info("fill", []))
    d.model.graph.initializer.append(numpy_helper.from_array(np.zeros(8, np.int64), "ends"))
    node(d.model, "conv").input[0] = add_node(d.model, "Pad", "pad", ["conv.quant.output", "ends", "fill"])
    report = checked(d)
    assert report.findings == ()
    assert [(entry.rule, entry.nodes) for entry in report.unchecked] == [(30, ("pad",))]


def test_sixteen_bits_where_they_are_taken():
    d = network()
    for name in ("conv", "up", "fc"):
        set_attribute(d.model, f"{name}.quant", dst_type="INT16")
    assert checked(d).findings == ()


def test_scales_cut_to_nineteen_bits_agree_with_the_record():
    d = network()
    words = values_of(d.model, "conv.dequant.param") & np.uint64(0xFFFFE000)
    assert (words != values_of(d.model, "conv.dequant.param")).any()
    set_tensor(d.model, "conv.dequant.param", words)
    report = verify_deploy_model(d.model, record=d.record)
    assert report.findings == ()


def test_the_bias_of_four_bit_layers_may_be_cast():
    d = network()
    set_attribute(d.model, "conv.quant", dst_type="INT4")
    set_tensor(d.model, "conv.weight", values_of(d.model, "conv.weight")[:, : CHANNELS // 2].copy())
    node(d.model, "conv").input[2] = add_node(d.model, "Cast", "conv.bias_quant", ["conv.bias"], to=TensorProto.FLOAT)
    assert fired(checked(d, beside=False)) == {32}


def recurrent(weight=np.int8, bias=np.int32, scales=np.uint64):
    """A window-cache LSTM."""
    values = {
        "W": np.ones((1, 16, 4), weight),
        "R": np.ones((1, 16, 4), weight),
        "B": np.ones((1, 32), bias),
        "scales": np.full(2, 0x3C000000, scales),
    }
    inputs = ["x", "W", "R", "h", "c", "B", "", "", "scales"]
    made = helper.make_node("BasicLSTMInplaceFillWindowCache", inputs, ["y"], name="lstm")
    ends = [tensor_info(name, [1, 1, 4]) for name in ("x", "h", "c")], [tensor_info("y", None)]
    constants = [numpy_helper.from_array(array, name) for name, array in values.items()]
    graph = helper.make_graph([made], "g", *ends, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])


def test_recurrent_layers_are_judged_by_weight_bias_and_scale():
    assert fired(verify_deploy_model(recurrent())) == set()
    assert fired(verify_deploy_model(recurrent(weight=np.float32))) == {19}
    assert fired(verify_deploy_model(recurrent(bias=np.float32))) == {20}
    assert fired(verify_deploy_model(recurrent(scales=np.int64))) == {12}


def test_the_float_type_is_judged_by_what_the_model_declares():
    d = network()
    d.model.graph.value_info.append(tensor_info("conv.dequant.output", None, TensorProto.FLOAT16))
    assert [(f.rule, f.node) for f in checked(d).findings] == [(16, "conv.dequant")]
    set_attribute(d.model, "conv.dequant", dtype=1)
    assert checked(d).findings == ()


def test_an_old_model_without_dtype_counts_as_float32():
    d = network()
    set_attribute(d.model, "conv.dequant", dtype=None)
    assert checked(d).findings == ()


# Layers that the record or the float model does not have


def test_layers_missing_in_the_record_and_the_float_model_are_named():
    d = network()
    del d.record["conv"]
    node(d.float_model, "conv").name = "other"
    report = checked(d)
    assert report.findings == ()
    assert [(entry.rule, entry.nodes, entry.count) for entry in report.unchecked] == [
        (21, ("conv",), 1),
        (23, ("conv",), 1),
    ]


def test_a_bias_into_which_a_norm_was_folded_is_not_judged():
    d = network()
    set_tensor(d.float_model, "conv.bias", np.full(CHANNELS, 9, np.float32))
    assert fired(checked(d)) == {21}
    norm = helper.make_node("BatchNormalization", ["conv.output", *["conv.bias"] * 4], ["normed"], name="norm")
    d.float_model.graph.node.append(norm)
    report = checked(d)
    assert report.findings == ()
    assert [entry.reason for entry in report.unchecked] == ["BatchNormalization was folded into it"]


def test_the_size_of_a_pooling_input_that_is_not_declared_is_named():
    d = network()
    del d.model.graph.value_info[:]
    report = checked(d)
    assert [(entry.rule, entry.nodes) for entry in report.unchecked] == [(28, ("pool",))]


# Data outside the model


@pytest.fixture
def outside(tmp_path):
    """A model whose weight lies in a file beside it: the model, its path, the data."""
    d = network()
    data = external(d.model, "conv.weight", location="w.data", offset=8, length=CHANNELS * CHANNELS * 9)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "w.data").write_bytes(bytes(8) + data)
    return d, saved(d.model, tmp_path / "in"), data


def verified(outside):
    d, path, _ = outside
    return verify_deploy_model(path, record=d.record, float_model=d.float_model)


def test_weights_beside_the_model_are_found(outside):
    report = verified(outside)
    assert (report.findings, report.unchecked) == ((), ())


def test_scales_beside_the_model_are_read(outside):
    d, path, _ = outside
    words = external(d.model, "fc.dequant.param", location="fc/scale")
    (path.parent / "fc").mkdir()
    (path.parent / "fc" / "scale").write_bytes(words)
    path.write_bytes(d.model.SerializeToString())
    assert verified(outside).findings == ()
    (path.parent / "fc" / "scale").write_bytes(np.asarray([1 << 32], np.uint64).tobytes())
    assert fired(verified(outside)) == {13, 14}


def test_a_link_inside_the_folder_is_followed(outside):
    _, path, _ = outside
    (path.parent / "w.data").rename(path.parent / "real")
    (path.parent / "w.data").symlink_to("real")
    assert verified(outside).findings == ()


@pytest.mark.parametrize("way", ["missing", "link out", "loop", "short", "directory", "fifo", "folder is a link out"])
def test_files_that_are_not_to_be_had(outside, way):
    d, path, data = outside
    file = path.parent / "w.data"
    file.unlink()
    if way == "link out":
        (path.parents[1] / "secret").write_bytes(bytes(8) + data)
        file.symlink_to("../secret")
    elif way == "loop":
        file.symlink_to("w.data")
    elif way == "short":
        file.write_bytes(data)
    elif way == "directory":
        file.mkdir()
    elif way == "fifo":
        os.mkfifo(file)
    elif way == "folder is a link out":
        (path.parents[1] / "w.data").write_bytes(bytes(8) + data)
        (path.parent / "sub").symlink_to("..")
        tensor(d.model, "conv.weight").external_data[0].value = "sub/w.data"
        path.write_bytes(d.model.SerializeToString())
    assert fired(verified(outside)) == {39}


def test_a_name_too_long_for_a_file_is_one_finding():
    d = network()
    external(d.model, "conv.weight", location="w" * 5000)
    path = ROOT / "tests"
    report = verify.TensorData(path, {}).external_fault(tensor(d.model, "conv.weight"))
    assert "cannot be read" in report


def test_a_model_in_memory_with_data_in_files_is_checked_as_far_as_it_goes(outside):
    report = verify_deploy_model(outside[0].model)
    assert report.findings == ()
    entry = next(entry for entry in report.unchecked if entry.rule == 39)
    assert (entry.nodes, entry.reason) == (("conv.weight",), tensors.IN_MEMORY)


def test_weights_given_beside_a_model_in_memory_count_as_its_own():
    d = network()
    names = [t.name for t in d.model.graph.initializer]
    weights = {name: values_of(d.model, name) for name in names}
    for name in names:
        external(d.model, name, location="nowhere")
    report = verify_deploy_model(d.model, record=d.record, float_model=d.float_model, weights=weights)
    assert (report.findings, report.unchecked) == ((), ())
    weights["conv.weight"] = weights["conv.weight"][:3]
    assert fired(verify_deploy_model(d.model, weights=weights)) == {38}


def test_scales_too_large_to_read_are_said_to_be(outside, monkeypatch):
    d, path, _ = outside
    words = external(d.model, "conv.dequant.param", location="scale")
    (path.parent / "scale").write_bytes(words)
    path.write_bytes(d.model.SerializeToString())
    monkeypatch.setattr(tensors, "LARGEST_READ", 100)
    report = verified(outside)
    assert report.findings == ()
    assert {entry.rule for entry in report.unchecked} == {13, 14, 21, 22, 23}


# Files that mean harm


def graph_of(nodes, *, inputs=("x",), outputs=("y",), constants=()):
    ends = [[tensor_info(name, [1]) for name in side] for side in (inputs, outputs)]
    graph = helper.make_graph(list(nodes), "g", *ends, list(constants))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])


def nested(depth):
    """If in If in If, built without recursion."""
    body = helper.make_graph([helper.make_node("Relu", ["x"], ["inner"])], "b", [], [tensor_info("inner", [1])])
    for level in range(depth):
        made = helper.make_node("If", ["q"], [f"o{level}"], name=f"if{level}")
        attribute = AttributeProto(name="then_branch", type=AttributeProto.GRAPH)
        attribute.g.CopyFrom(body)
        made.attribute.append(attribute)
        body = helper.make_graph([], "b", [], [tensor_info(f"o{level}", [1])])
        body.node.append(made)
    top = graph_of([helper.make_node("Relu", ["x"], ["y"])], inputs=("x", "q"))
    top.graph.node.extend(body.node)
    return top


UNUSABLE = {
    "circle": ([("Add", ["x", "b"], ["a"]), ("Relu", ["a"], ["b"]), ("Relu", ["b"], ["y"])], "circle"),
    "itself": ([("Relu", ["y"], ["y"])], "circle"),
    "dangling": ([("Relu", ["nothing"], ["y"])], "'nothing', which nothing produces"),
    "no output": ([("Relu", ["x"], ["z"])], "output 'y' is produced by nothing"),
    "twice": ([("Relu", ["x"], ["y"]), ("Relu", ["x"], ["y"])], "produced twice"),
    "input produced": ([("Relu", ["x"], ["x"]), ("Relu", ["x"], ["y"])], "produced twice"),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_what_is_no_graph_is_one_error(name, tmp_path):
    nodes, message = UNUSABLE[name]
    model = graph_of([helper.make_node(op, inputs, outputs) for op, inputs, outputs in nodes])
    with pytest.raises(ModelError, match=f"the model: .*{message}"):
        verify_deploy_model(model)
    path = saved(model, tmp_path)
    with pytest.raises(ModelError, match=re.escape(str(path))):
        verify_deploy_model(path)


def test_an_initializer_given_twice_is_one_error():
    value = numpy_helper.from_array(np.ones(1, np.float32), "w")
    with pytest.raises(ModelError, match="'w' is given twice"):
        verify_deploy_model(graph_of([helper.make_node("Add", ["x", "w"], ["y"])], constants=[value, value]))


def test_a_circle_through_a_body_is_found():
    body = helper.make_graph([helper.make_node("Relu", ["b"], ["t"])], "b", [], [tensor_info("t", [1])])
    held = helper.make_node("If", ["q"], ["a"], then_branch=body)
    model = graph_of([held, helper.make_node("Relu", ["a"], ["b"]), helper.make_node("Relu", ["b"], ["y"])])
    model.graph.input.append(tensor_info("q", []))
    with pytest.raises(ModelError, match="circle"):
        verify_deploy_model(model)


def test_nodes_out_of_order_are_put_in_order():
    d = network()
    shuffled = list(d.model.graph.node)[::-1]
    del d.model.graph.node[:]
    d.model.graph.node.extend(shuffled)
    assert checked(d).findings == ()


def test_quantized_layers_in_bodies_are_judged_too():
    d = network()
    body = helper.make_graph([], "b", [], [tensor_info("proj.dequant.output", None)])
    body.node.extend(d.model.graph.node)
    body.initializer.extend(d.model.graph.initializer)
    held = helper.make_node("If", ["q"], ["y"], name="if", then_branch=body, else_branch=body)
    model = graph_of([held])
    model.graph.input.append(tensor_info("q", []))
    model.graph.input[0].CopyFrom(d.model.graph.input[0])
    report = verify_deploy_model(model)
    assert report.layers == 10
    assert report.findings == ()
    set_attribute(Model(body), "conv.quant", scale=0.0)
    held.attribute[1].g.CopyFrom(body)
    model.graph.node[0].CopyFrom(held)
    assert fired(verify_deploy_model(model)) == {5}


class Model:
    """A graph where a model is expected."""

    def __init__(self, graph):
        self.graph = graph


@pytest.mark.parametrize("depth", [10, 30])
def test_bodies_may_be_nested(depth, tmp_path):
    model = nested(depth)
    assert verify_deploy_model(model).findings == verify_deploy_model(saved(model, tmp_path)).findings == ()


def timed(model, **beside):
    start = time.monotonic()
    report = verify_deploy_model(model, **beside)
    assert time.monotonic() - start < 20
    return report


def test_a_long_chain_and_wide_joins_take_no_longer_than_their_size():
    nodes, last = [], "x"
    for index in range(3000):
        attributes = {"scale": 10.0 + index, "offset": 0.0}
        nodes.append(helper.make_node("AscendQuant", ["x"], [f"q{index}"], name=f"q{index}", **attributes))
        joined = [f"q{index}", f"c{index - 1}"] if index else ["q0"]
        nodes.append(helper.make_node("Concat", joined, [f"c{index}"], name=f"c{index}", axis=0))
        nodes.append(helper.make_node("AveragePool", [f"c{index}"], [f"a{index}"], name=f"a{index}"))
        last = f"a{index}"
    report = timed(graph_of(nodes, outputs=(last,)))
    assert {18} <= fired(report)
    assert len(report.findings) <= 42 * verify.MOST_FINDINGS


def test_one_tensor_that_many_nodes_name_is_not_read_without_end(monkeypatch):
    monkeypatch.setattr(tensors, "MOST_READ", 1 << 20)
    scale = numpy_helper.from_array(np.full(1 << 16, 0x3C000000, np.uint64), "s")
    nodes = [helper.make_node("AscendDequant", ["x", "s"], [f"d{i}"], name=f"d{i}") for i in range(500)]
    report = timed(graph_of(nodes, outputs=("d0",), constants=[scale]))
    assert {entry.rule for entry in report.unchecked} >= {13, 14}


def test_long_lists_and_long_names_are_cut():
    d = network()
    set_attribute(d.model, "conv", kernel_shape=[1] * 1_000_000)
    set_attribute(d.model, "up", dilations=[1] * 1_000_000)
    node(d.model, "fc.quant").name = "\x1b[31m" + "n" * 1_000_000
    d.model.graph.input[0].type.tensor_type.shape.dim.extend([onnx.TensorShapeProto.Dimension()] * 10_000)
    report = timed(d.model)
    assert fired(report) >= {26, 27, 41, 42}
    assert len(report.to_json()) < 20_000
    assert "\x1b" not in report.to_json()
    assert "\\u001b" not in report.to_json()


def test_absurd_versions_and_types_are_findings():
    d = network()
    d.model.opset_import[0].version = 2**62
    tensor(d.model, "conv.weight").data_type = 2**31 - 1
    assert fired(checked(d, beside=False)) == {1, 19, 38}


def test_names_that_are_no_text_are_shown_escaped(tmp_path):
    content = network().model.SerializeToString().replace(b"conv.quant", b"\xff\xfenv.quant")
    path = tmp_path / "net.onnx"
    path.write_bytes(content)
    report = verify_deploy_model(path)
    assert [finding.rule for finding in report.findings] == [42]
    assert "\\xff\\xfenv.quant" in report.findings[0].node
    json.loads(report.to_json())


@pytest.mark.parametrize("content", [b"", b"\0", b"ATC", b"ir_version: 8", b"\x08" * 100, b"PK\3\4" + bytes(100)])
def test_what_is_no_model_is_one_error(content, tmp_path):
    (tmp_path / "net.onnx").write_bytes(content)
    with pytest.raises(ModelError, match=r"net\.onnx"):
        verify_deploy_model(tmp_path / "net.onnx")


def test_what_is_no_file_is_one_error(tmp_path):
    for path in (tmp_path, tmp_path / "none", "/dev/zero", "a\0b"):
        with pytest.raises(ModelError):
            verify_deploy_model(path)
    with pytest.raises(ModelError, match="the model is a int"):
        verify_deploy_model(3)
    with pytest.raises(RecordError):
        verify_deploy_model(network().model, record=tmp_path / "none")
    with pytest.raises(ModelError):
        verify_deploy_model(network().model, float_model=tmp_path / "none")


def small():
    """A model that is all structure: its weights lie elsewhere."""
    d = network()
    for value in d.model.graph.initializer:
        if len(value.raw_data) > 200:
            external(d.model, value.name, location="w")
    return d.model.SerializeToString()


SEEDS = [small(), old_gemm().SerializeToString(), nested(3).SerializeToString()]


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.sampled_from(range(len(SEEDS))),
    edits=st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), max_size=6),
    length=st.none() | st.integers(0, 2**14),
)
def test_damaged_files_give_a_report_or_one_error(tmp_path, seed, edits, length):
    content = bytearray(SEEDS[seed])
    for place, value in edits:
        content[place % len(content)] = value
    path = tmp_path / "net.onnx"
    path.write_bytes(bytes(content if length is None else content[: length % len(content)]))
    d = network()
    try:
        report = verify_deploy_model(path, record=d.record, float_model=path)
    except ModelError:
        return
    assert isinstance(report, VerifyReport)
    json.loads(report.to_json())


def outcome(d):
    """The report, or the error of ours."""
    try:
        return checked(d)
    except ModelError as error:
        return error


def mistreat(model, rng):
    """Change something at random: operators, inputs, attributes and their types, shapes, element types, data."""
    nodes, constants = model.graph.node, model.graph.initializer
    where, value = nodes[rng.integers(len(nodes))], constants[rng.integers(len(constants))]
    names = ["", "nothing", *(name for other in nodes for name in (*other.input, *other.output))]
    kind = rng.integers(9)
    if kind == 0 and where.attribute:
        where.attribute[rng.integers(len(where.attribute))].type = int(rng.integers(15))
    elif kind == 1 and where.attribute:
        del where.attribute[rng.integers(len(where.attribute))]
    elif kind == 2 and where.input:
        where.input[rng.integers(len(where.input))] = names[rng.integers(len(names))]
    elif kind == 3 and where.input:
        del where.input[rng.integers(len(where.input))]
    elif kind == 4:
        value.dims[:] = rng.choice([-1, 0, 1, 2, 20, 80, 2**40, 2**62], rng.integers(6)).tolist()
    elif kind == 5:
        value.data_type = int(rng.integers(28))
    elif kind == 6:
        value.ClearField("raw_data")
        field = rng.choice(["int32_data", "int64_data", "uint64_data", "float_data", "double_data"])
        getattr(value, field).extend([int(rng.integers(100))] * int(rng.choice([0, 1, 20, 80])))
    elif kind == 7:
        where.op_type = nodes[rng.integers(len(nodes))].op_type
    else:
        name = rng.choice(["group", "perm", "kernel_shape", "dilations", "scale", "offset", "transB", "value", "mode"])
        odd = [0, -1, 2**62, 1.5, float("nan"), "INT4", [1, 0], [2**62] * 3, [1, 1, 1, 1], [0.5]]
        where.attribute.append(helper.make_attribute(str(name), odd[rng.integers(len(odd))]))


@pytest.mark.parametrize("seed", range(20))
def test_mistreated_models_give_a_report_or_one_error(seed):
    rng, outcomes = np.random.default_rng(seed), []
    for _ in range(20):
        case = MUTATIONS[rng.integers(len(MUTATIONS))]
        d = case.base()
        case.edit(d)
        for _ in range(rng.integers(1, 6)):
            mistreat(d.model, rng)
        outcomes.append(outcome(d))
    assert {type(found) for found in outcomes} <= {VerifyReport, ModelError}
    assert any(type(found) is VerifyReport for found in outcomes)


# The report


def test_the_report_as_json_says_everything():
    d = network()
    set_attribute(d.model, "conv.quant", scale=0.0)
    node(d.model, "up.quant").name = "other"
    content = json.loads(checked(d, beside=False).to_json())
    assert (content["model"], content["ok"], content["layers"]) == ("the model", False, 5)
    first, second = content["findings"]
    assert (first["rule"], first["severity"], first["node"], first["found"]) == (5, "error", "conv.quant", "scale 0")
    assert first["sentence"] == RULES[4].sentence
    assert first["source"] == RULES[4].source
    assert (second["rule"], second["severity"]) == (42, "warning")
    assert [entry["rule"] for entry in content["unchecked"]] == sorted(NEED_MORE)


def test_a_float_model_passes_but_has_no_layers():
    report = verify_deploy_model(network().float_model)
    assert (report.ok, report.layers) == (True, 0)
