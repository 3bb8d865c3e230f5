"""Caffe's files: their older forms, phases, names and ends; and what is said of broken ones."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from caffe_files import caffemodel, dims, field, imported, layer, net, varint, written
from graphs import run
from hypothesis import given, settings
from hypothesis import strategies as st

from amct_onnx.errors import ModelError
from amct_onnx.formats.caffe.importer import read_caffe

RNG = np.random.default_rng(0)
X = RNG.normal(size=(1, 2, 5, 5)).astype(np.float32)
CONV = [RNG.normal(size=(3, 2, 3, 3)).astype(np.float32), RNG.normal(size=3).astype(np.float32)]
FC = [RNG.normal(size=(4, 27)).astype(np.float32), RNG.normal(size=4).astype(np.float32)]
WEIGHTS = {"conv": CONV, "fc": FC}

NEW = """
name: "small"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 2 dim: 5 dim: 5 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
        convolution_param { num_output: 3 kernel_size: 3 weight_filler { type: "xavier" } engine: CAFFE } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "drop" type: "Dropout" bottom: "conv" top: "conv" dropout_param { dropout_ratio: 0.5 } }
layer { name: "fc" type: "InnerProduct" bottom: "conv" top: "fc"  # the end
        param { lr_mult: 1 decay_mult: 0 } inner_product_param { num_output: 4 } }
"""
LAYERS_OF_2013 = """
layers { name: "conv" type: CONVOLUTION bottom: "data" top: "conv" blobs_lr: 1 blobs_lr: 2 weight_decay: 0
         convolution_param { num_output: 3 kernel_size: 3 } }
layers { name: "relu" type: RELU bottom: "conv" top: "conv" }
layers { name: "drop" type: DROPOUT bottom: "conv" top: "conv" }
layers { name: "fc" type: INNER_PRODUCT bottom: "conv" top: "fc" inner_product_param { num_output: 4 } }
"""
SHAPES = {
    "input_dim": f'input: "data" {" ".join(f"input_dim: {d}" for d in X.shape)}',
    "input_shape": f'input: "data" input_shape {{ {dims(X.shape)} }}',
}


def nodes(model: onnx.ModelProto) -> list[tuple[str, str, list[str]]]:
    return [(node.op_type, node.name, list(node.output)) for node in model.graph.node]


def answers(text: str, weights: object = WEIGHTS, **options: object) -> np.ndarray:
    return run(imported(text, weights, **options), {"data": X})["fc"]


def test_nodes_have_the_names_of_layers_and_the_last_one_that_writes_a_blob_its_name():
    model = imported(NEW, WEIGHTS)
    assert nodes(model) == [
        ("Conv", "conv", ["conv.out"]),
        ("Relu", "relu", ["conv"]),
        ("Flatten", "fc.flatten", ["fc.flatten"]),
        ("Gemm", "fc", ["fc"]),
    ]
    assert model.graph.name == "small"
    assert [value.name for value in (*model.graph.input, *model.graph.output)] == ["data", "fc"]
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 13)]


def test_comments_may_be_in_any_encoding(tmp_path):
    pair = written(tmp_path, NEW, WEIGHTS)
    text = NEW.replace('"fc"', '"fc#1"').replace("# the end", '# 卷积 "层').encode("gbk")
    pair[0].write_bytes(text)
    pair[1].write_bytes(caffemodel({"conv": CONV, "fc#1": FC}))
    assert [name for _, name, _ in nodes(read_caffe(*pair))][-1] == "fc#1"
    pair[0].write_bytes(text.replace(b"small", "卷积".encode("gbk")))
    with pytest.raises(ModelError, match=r"net.prototxt: not UTF-8 text"):
        read_caffe(*pair)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("form", ["new", "old", "unpacked", "double"])
@pytest.mark.parametrize("old_layers", [False, True])
def test_older_forms_say_the_same(shape, form, old_layers):
    found = answers(SHAPES[shape] + LAYERS_OF_2013, form=form, old_layers=old_layers)
    np.testing.assert_array_equal(found, answers(NEW))


def test_layers_of_training_are_left_out():
    text = net(
        {"data": X.shape},
        'layer { name: "d" type: "Data" top: "data" top: "z" include { phase: TRAIN } data_param { batch_size: 8 } }',
        layer("Python", "exclude { phase: TEST }", "data", "never", "python"),
        layer("Python", 'include { stage: "extra" }', "data", "never", "staged"),
        layer("Python", "include { min_level: 1 }", "data", "never", "levelled"),
        layer("Python", "include { phase: TRAIN } include { max_level: -1 }", "data", "never", "two rules"),
        layer("ReLU", 'exclude { stage: "extra" } exclude { not_stage: "deploy" phase: TRAIN }', "data", "a", "a"),
        layer("ReLU", 'include { phase: TEST not_stage: "extra" min_level: 0 max_level: 0 }', "a", "b", "b"),
    )
    assert [name for _, name, _ in nodes(imported(text))] == ["a", "b"]


def test_the_state_that_a_network_names_decides_on_its_stages():
    text = 'state { stage: "deploy" level: 2 }' + net(
        {"data": X.shape},
        layer("ReLU", 'include { stage: "deploy" min_level: 2 }', "data", "a", "a"),
        layer("TanH", 'exclude { stage: "deploy" }', "a", "b", "b"),
    )
    assert [name for _, name, _ in nodes(imported(text))] == ["a"]


def test_everything_may_work_in_place_even_on_the_input(caplog):
    text = net({"data": X.shape}, layer("AbsVal", "", "data", "data", "abs"), layer("TanH", "", "data", "data", "tanh"))
    model = imported(text)
    assert nodes(model) == [("Abs", "abs", ["abs.out"]), ("Tanh", "tanh", ["tanh.out"])]
    (found,) = run(model, {"data": X}).values()
    np.testing.assert_allclose(found, np.tanh(np.abs(X)), rtol=1e-6)
    assert "output for blob 'data' is called 'tanh.out'" in caplog.text


def test_a_branch_reads_a_blob_as_it_is_at_its_place():
    text = net(
        {"data": X.shape},
        layer("Power", "power_param { scale: 2 }", "data", "a", "twice"),
        layer("TanH", "", "a", "early", "early"),
        layer("AbsVal", "", "a", "a", "abs"),
        layer("TanH", "", "a", "late", "late"),
    )
    found = run(imported(text), {"data": X})
    np.testing.assert_allclose(found["early"], np.tanh(2 * X), rtol=1e-6)
    np.testing.assert_allclose(found["late"], np.tanh(np.abs(2 * X)), rtol=1e-6)


def test_outputs_are_the_blobs_that_nobody_reads_under_their_names():
    text = net(
        {"data": X.shape, "unused": (1, 1)},
        layer("ReLU", "", "data", "a", "relu"),
        layer("Split", "", "a", "b c", "split"),
        layer("Dropout", "", "b", "d", "drop"),
        layer("Silence", "", "unused", "", "silence"),
    )
    model = imported(text)
    assert [value.name for value in model.graph.input] == ["data"]
    found = run(model, {"data": X})
    assert sorted(found) == ["c", "d"]
    for values in found.values():
        np.testing.assert_array_equal(values, np.maximum(X, 0))


def test_losses_and_accuracies_leave_what_they_read_as_outputs(caplog):
    text = net(
        {"data": X.shape, "label": (1,)},
        layer("Flatten", "", "data", "flat", "flat"),
        layer("SoftmaxWithLoss", "", "flat label", "loss", "loss"),
        layer("Accuracy", "", "flat label", "accuracy", "accuracy"),
        layer("HingeLoss", "", "flat label", "hinge", "hinge"),
    )
    model = imported(text)
    assert [value.name for value in (*model.graph.input, *model.graph.output)] == ["data", "flat"]
    assert "layer 'loss' (SoftmaxWithLoss) is left out; outputs of the ONNX model in its place: 'flat'" in caplog.text


def test_what_is_left_out_may_read_what_is_passed_on_or_changed_in_place_later(caplog):
    text = net(
        {"data": X.shape, "label": (1,)},
        layer("TanH", "", "data", "a", "tanh"),
        layer("Dropout", "", "a", "dropped", "drop"),
        layer("Split", "", "label", "label_a", "split"),
        layer("EuclideanLoss", "", "dropped label_a", "loss", "loss"),
        layer("Mystery", "", "loss", "more", "of no type that is known"),
        layer("HingeLoss", "", "a label", "hinge", "hinge"),
        layer("AbsVal", "", "a", "a", "abs"),
    )
    found = run(imported(text), {"data": X})
    assert sorted(found) == ["a", "dropped", "tanh.out"]
    np.testing.assert_allclose(found["dropped"], np.tanh(X), rtol=1e-6)
    np.testing.assert_allclose(found["a"], np.abs(np.tanh(X)), rtol=1e-6)
    assert "output for blob 'a' is called 'tanh.out'" in caplog.text


def test_the_end_of_a_detector_is_left_to_the_caller(caplog):
    prior = "prior_box_param { min_size: 30 max_size: 60 aspect_ratio: 2 flip: true variance: 0.1 }"
    text = net(
        {"data": (1, 2, 8, 8)},
        layer("Pooling", "pooling_param { kernel_size: 2 stride: 2 }", "data", "small", "small"),
        layer("Flatten", "", "small", "loc", "loc"),
        layer("Sigmoid", "", "small", "conf", "conf"),
        layer("PriorBox", prior, "data data", "prior_a", "prior_a"),
        layer("PriorBox", prior, "small data", "prior_b", "prior_b"),
        layer("Concat", "concat_param { axis: 2 }", "prior_a prior_b", "priors", "priors"),
        layer("DetectionOutput", "detection_output_param { num_classes: 2 }", "loc conf priors", "boxes", "boxes"),
    )
    model = imported(text)
    assert [value.name for value in model.graph.output] == ["loc", "conf"]
    assert [name for _, name, _ in nodes(model)] == ["small", "loc", "conf"]
    assert (
        "layer 'boxes' (DetectionOutput) is left out; outputs of the ONNX model in its place: 'loc', 'conf'"
        in caplog.text
    )
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 4


def test_a_blob_that_nothing_but_priors_read_is_an_output():
    text = net({"data": X.shape}, layer("ReLU", "", "data", "a", "a"), layer("PriorBox", "", "a data", "p", "p"))
    assert [value.name for value in imported(text).graph.output] == ["a"]


def test_batch_norm_and_scale_keep_both_names():
    vector = np.arange(1, 3, dtype=np.float32)
    text = net(
        {"data": X.shape},
        layer("BatchNorm", "", "data", "a", "bn"),
        layer("Scale", "scale_param { bias_term: true }", "a", "a", "scale"),
        layer("Scale", "scale_param { bias_term: true }", "a", "b", "alone"),
    )
    one = np.ones(1, np.float32)
    weights = {"bn": [vector, vector, one], "scale": [vector, vector], "alone": [vector, vector]}
    found = [(kind, name) for kind, name, _ in nodes(imported(text, weights))]
    assert found[0] == ("BatchNormalization", "bn")
    assert found[1:3] == [("Mul", "scale.mul"), ("Add", "scale")]
    assert found[3] == ("BatchNormalization", "alone")


def test_layers_of_one_name_get_a_number(caplog):
    text = net({"data": X.shape}, layer("ReLU", "", "data", "a", "same"), layer("TanH", "", "a", "b", "same"))
    assert [name for _, name, _ in nodes(imported(text))] == ["same", "same_1"]
    assert "layer 'same' (TanH) is called as one before it" in caplog.text


def test_names_of_ours_give_way_to_those_of_the_network():
    text = net(
        {"data": X.shape},
        layer("ReLU", "", "data", "fc.flatten", "fc.weight"),
        layer("InnerProduct", "inner_product_param { num_output: 4 }", "fc.flatten", "fc.bias", "fc"),
        layer("ReLU", "", "fc.bias", "y", "fc.flatten"),
    )
    model = imported(text, {"fc": [np.ones((4, 50), np.float32), np.ones(4, np.float32)]})
    assert [name for _, name, _ in nodes(model)] == ["fc.weight", "fc.flatten_1", "fc", "fc.flatten"]
    np.testing.assert_allclose(run(model, {"data": X})["y"], np.full((1, 4), np.maximum(X, 0).sum() + 1), rtol=1e-5)


@pytest.mark.parametrize("unknown", ["future_field: 3", 'future_block { a: "}" b { c: MAX } }', "engine: FUTURE"])
def test_unknown_fields_are_passed_over_with_a_note(unknown, caplog):
    text = NEW.replace("num_output: 4", f"num_output: 4 {unknown}  {unknown}")
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(answers(text), answers(NEW))
    name = re.match(r"\w+", unknown)[0]
    assert f"not used: {name} in InnerProductParameter (line 9 and 1 more)" in caplog.text


def test_nothing_is_said_of_fields_that_matter_in_training_only(caplog):
    imported(NEW, WEIGHTS)
    imported(SHAPES["input_dim"] + LAYERS_OF_2013, WEIGHTS)
    assert not caplog.records


def test_unknown_fields_of_the_weights_are_passed_over(tmp_path):
    pair = written(tmp_path, NEW, WEIGHTS)
    extra = b"\xa2\x0c\x03abc"  # field 196, three bytes
    pair[1].write_bytes(extra + pair[1].read_bytes() + extra)
    assert len(read_caffe(*pair).graph.node) == 4


def error_of(text: str, weights: object = WEIGHTS, **options: object) -> str:
    with pytest.raises(ModelError) as caught:
        imported(text, weights, **options)
    return str(caught.value)


def changed(old: str, new: str) -> str:
    assert old in NEW
    return NEW.replace(old, new)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (
            changed('"InnerProduct"', '"MVN"'),
            r"layers 'fc' \(MVN\); supported types are AbsVal, BatchNorm, .* Upsample",
        ),
        (changed("num_output: 4", ""), r"layer 'fc' \(InnerProduct\): num_output must be at least 1"),
        (changed("kernel_size: 3", ""), r"layer 'conv' \(Convolution\): kernel_size must be .*; found \[\]"),
        (changed("kernel_size: 3", "kernel_size: 0"), "kernel_size must be"),
        (changed("kernel_size: 3", "kernel_size: 3 stride: 0"), "stride must be"),
        (
            changed("kernel_size: 3", "kernel_size: 3 kernel_h: 3"),
            "give either kernel_size, or both kernel_h and kernel_w",
        ),
        (changed("kernel_size: 3", "kernel_h: 3"), "give either kernel_size, or both kernel_h and kernel_w"),
        (
            changed("kernel_size: 3", "kernel_size: 3 group: 2"),
            "group is 2; it must divide the 2 input and the 3 output",
        ),
        (changed("kernel_size: 3", "kernel_size: 3 group: 0"), "group is 0"),
        (changed("kernel_size: 3", "kernel_size: 3 axis: 2"), "axis is 2; only channels along axis 1"),
        (changed("kernel_size: 3", "kernel_size: 3 axis: 9"), r"axis is 9, but its input has 4 axes: \[1, 2, 5, 5\]"),
        (changed("kernel_size: 3", "kernel_size: 3 dilation: 9"), "reaches over 19 pixels"),
        (changed("kernel_size: 3", "kernel_size: -3"), r"line 5, .*kernel_size must be a whole number"),
        (changed('bottom: "conv" top: "fc"', 'bottom: "convv" top: "fc"'), "'convv' is the top of no layer .*'conv'"),
        (changed('bottom: "conv" top: "fc"', 'top: "fc"'), r"layer 'fc' .*must have 1 bottom, found 0"),
        (changed('top: "fc"', 'top: "fc" top: "fd"'), r"layer 'fc' .*must have 1 top, found 2"),
        (changed('top: "fc"', 'top: "data"'), "its top 'data' is that of another layer too"),
        (changed('type: "ReLU"', ""), "layer 'relu' has no type"),
        (changed("dim: 1 dim: 2", "dim: 0 dim: 2"), r"layer 'data' \(Input\): the shape must be of positive numbers"),
        (changed("dim: 1 dim: 2", "dim: 1000000000 dim: 1000000000"), "2147483647 values at most"),
        (changed("shape { dim: 1 dim: 2 dim: 5 dim: 5 }", ""), "must give one shape, or one for each of its 1 tops"),
        (
            changed('type: "Input"', 'type: "Data"'),
            r"layer 'data' \(Data\): it reads data by itself; give the network as",
        ),
        (changed('type: "ReLU"', 'type: "ReLU" include { } exclude { }'), "layer 'relu' has both include and exclude"),
        (changed('top: "data"', 'top: ""'), r"layer 'data' \(Input\): its top '': every input must have a name"),
        (SHAPES["input_dim"] + NEW, r"layer 'data' \(Input\): its top 'data': every input must have a name of its own"),
        ((SHAPES["input_dim"] + " ") * 2 + LAYERS_OF_2013, "input 'data': every input must have a name of its own"),
        (changed('top: "fc"', 'top: ""'), r"layer 'fc' \(InnerProduct\): a bottom or top of it has no name"),
        (changed("dropout_ratio: 0.5", "dropout_ratio: 0.3 scale_train: false"), "layer 'drop' .* as Power, scale 0.7"),
        (NEW + LAYERS_OF_2013, "both `layer` and `layers`"),
        ('input: "data"' + LAYERS_OF_2013, "1 input need as many input_shape, or four input_dim each"),
        (
            'input: "data" input_dim: 1 input_dim: 2' + LAYERS_OF_2013.replace("kernel_size", "pad"),
            "kernel_size|spatial",
        ),
        ("layers { layer { name: 'a' type: 'conv' } }", "nested as they were before 2013"),
        ("layers { name: 'a' type: NONE }", "layer 'a' has no type"),
        ("layers { name: 'a' type: 'Convolution' }", "type must be one of NONE, ACCURACY"),
        ('name: "empty"', "no layers: not the description of a Caffe network"),
        ("layer {", r"not closed|line 1"),
        ("\x08\x01", "line 1"),
        ("layer { " * 5000, "nested too deeply|not closed"),
        (net({"data": X.shape}), "no output: no layer computes anything"),
    ],
)
def test_what_is_wrong_with_a_network_is_said_with_its_place(text, complaint):
    message = error_of(text)
    assert "net.prototxt: " in message
    assert re.search(complaint, message), message


BAD_LAYERS = [
    ("Pooling", "pooling_param { pool: STOCHASTIC kernel_size: 2 }", "STOCHASTIC is not supported"),
    ("Pooling", "pooling_param { kernel_size: 9 }", "kernel of 9 is larger than its input of 5"),
    ("Pooling", "pooling_param { kernel_size: 2 pad: 2 }", "pad must be smaller than the kernel"),
    ("BatchNorm", "batch_norm_param { use_global_stats: false }", "use_global_stats is false"),
    ("Clip", "clip_param { min: 0 }", "clip_param must give min and max"),
    ("LRN", "lrn_param { local_size: 4 }", "local_size must be odd"),
    ("Slice", "slice_param { slice_point: 5 }", "cannot be cut into 1 tops"),
    ("Flatten", "flatten_param { axis: 2 end_axis: 1 }", "axis 2 is behind end_axis 1"),
    ("Flatten", "flatten_param { axis: 4 }", "axis is 4, but its input has 4 axes"),
    ("Reshape", "reshape_param { shape { dim: -1 dim: -1 } }", "cannot take the shape"),
    ("Reshape", "reshape_param { shape { dim: 0 } num_axes: 9 }", "num_axes is 9"),
    ("Reshape", "reshape_param { shape { dim: 1 dim: 1 dim: 1 dim: 1 dim: 0 } }", "dimension 4 shall be kept"),
    ("Permute", "permute_param { order: 1 order: 1 }", "each once"),
    ("Permute", "permute_param { order: 7 }", "axes below 4"),
    ("Interp", "interp_param { }", "must give height and width, shrink_factor or zoom_factor"),
    ("Interp", "interp_param { zoom_factor: 0 }", "must be at least 1"),
    ("Interp", "interp_param { zoom_factor: 2 pad_end: -1 }", "pad_beg and pad_end"),
    ("Upsample", "upsample_param { scale: 1.5 }", "a whole factor"),
    ("Upsample", "upsample_param { scale: 2 stride: 2 }", "scale beside stride must be 1"),
    ("Upsample", "upsample_param { scale: 2000000000 }", "its output would have the shape"),
    (
        "Deconvolution",
        "convolution_param { num_output: 1 kernel_size: 1 pad: 4 bias_term: false }",
        "would have the shape",
    ),
    ("Scale", "scale_param { num_axes: 9 }", "num_axes is 9"),
    ("Softmax", "softmax_param { axis: -9 }", "axis is -9"),
]


@pytest.mark.parametrize(("kind", "params", "complaint"), BAD_LAYERS)
def test_parameters_that_do_not_fit_name_the_layer(kind, params, complaint):
    message = error_of(net({"x": X.shape}, layer(kind, params)), {"l": [np.zeros((2, 1, 1, 1))]})
    assert f"layer 'l' ({kind}): " in message
    assert complaint in message


@pytest.mark.parametrize(
    ("kind", "shapes", "complaint"),
    [
        ("Eltwise", [(1, 2), (2, 1)], r"must have one shape, found \[1, 2\] and \[2, 1\]"),
        ("Concat", [(1, 2, 3), (1, 2, 4)], "must agree but for axis 1"),
        ("Concat", [(1, 2, 3), (1, 2)], "must agree but for axis 1"),
        ("Crop", [(1, 2, 3, 3), (1, 2, 4, 4)], "axis 2 has 3 values, not 4 from 0 on"),
        ("Crop", [(1, 2, 3), (1, 2, 4, 4)], "as many axes"),
        ("Scale", [(1, 2, 3), (3,)], r"second input has shape \[3\], which is no part of \[1, 2, 3\] from axis 1"),
        ("Interp", [(1, 2, 3, 3), (1, 2)], "second input must have 4 axes"),
    ],
)
def test_inputs_that_do_not_fit_each_other_name_the_layer(kind, shapes, complaint):
    inputs = {f"x{i}": shape for i, shape in enumerate(shapes)}
    message = error_of(net(inputs, layer(kind, "", " ".join(inputs))))
    assert f"layer 'l' ({kind}): " in message
    assert re.search(complaint, message), message


def test_coefficients_go_with_sums_and_are_as_many_as_the_inputs():
    for params in ("coeff: 1", "operation: PROD coeff: 1 coeff: 1"):
        text = net({"a": (1, 2), "b": (1, 2)}, layer("Eltwise", f"eltwise_param {{ {params} }}", "a b"))
        assert "layer 'l' (Eltwise): coeff goes with SUM" in error_of(text)


@pytest.mark.parametrize(
    ("weights", "complaint"),
    [
        ({"conv": CONV}, r"layer 'fc' \(InnerProduct\): \S+net.caffemodel has no weights for it"),
        ({"conv": CONV, "fc_": FC}, r"layer 'fc' .*did you mean 'fc_'"),
        ({"conv": CONV, "fc": FC[:1]}, r"must have weight \[4, 27\], bias \[4\] for it, found 1 arrays: \[4, 27\]"),
        ({"conv": CONV, "fc": [FC[0].T, FC[1]]}, r"its weight must have the shape \[4, 27\], found \[27, 4\] in"),
        ({"conv": [CONV[0][:2], CONV[1]], "fc": FC}, r"layer 'conv' .*\[3, 2, 3, 3\], found \[2, 2, 3, 3\]"),
        ({"conv": [CONV[0], CONV[1][:2]], "fc": FC}, r"layer 'conv' .*bias must have the shape \[3\], found \[2\]"),
    ],
)
def test_weights_of_another_network_are_told_by_their_layer(weights, complaint):
    message = error_of(NEW, weights)
    assert re.search(complaint, message), message


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "no layer in it has weights"),
        (NEW.encode(), "not a caffemodel, or a truncated or damaged one|no layer in it"),
        (b"\x89HDF\r\n\x1a\n", "HDF5 is not read"),
        (caffemodel({"conv": [np.zeros((0,))]}), "weight must have|must have weight"),
        (b"\xa2\x06\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01", "not a caffemodel"),
    ],
)
def test_files_that_are_no_weights(tmp_path, content, complaint):
    pair = written(tmp_path, NEW, WEIGHTS)
    pair[1].write_bytes(content)
    with pytest.raises(ModelError, match=complaint) as caught:
        read_caffe(*pair)
    assert "net.caffemodel" in str(caught.value)


def test_shapes_that_do_not_fit_the_values_are_damage(tmp_path):
    pair = written(tmp_path, NEW, WEIGHTS)
    whole = pair[1].read_bytes()
    shape = b"\x3a\x04\x0a\x02\x04\x1b"  # [4, 27]
    for other in (b"\x3a\x04\x0a\x02\x04\x1c", b"\x3a\x04\x0a\x02\x00\x1b", b"\x3a\x04\x0a\x02\x1b\x04"):
        pair[1].write_bytes(whole.replace(shape, other))
        with pytest.raises(ModelError, match=r"'fc'"):
            read_caffe(*pair)


@pytest.mark.parametrize("end", ["prototxt", "caffemodel"])
def test_files_that_are_not_there(tmp_path, end):
    pair = written(tmp_path, NEW, WEIGHTS)
    missing = next(path for path in pair if path.suffix == f".{end}")
    missing.unlink()
    with pytest.raises(ModelError, match=rf"net.{end}: cannot read the file"):
        read_caffe(*pair)
    missing.mkdir()
    with pytest.raises(ModelError, match=rf"net.{end}: cannot read the file"):
        read_caffe(*pair)
    with pytest.raises(ModelError, match=f"the {end} is a NoneType"):
        read_caffe(*(None if path is missing else path for path in pair))


@pytest.mark.parametrize("old_layers", [False, True])
def test_every_truncation_of_the_weights_is_an_error_that_names_a_layer(tmp_path, old_layers):
    pair = written(tmp_path, NEW, WEIGHTS, old_layers=old_layers)
    whole = pair[1].read_bytes()
    first = whole.index(b"conv") + 4
    for length in range(0, len(whole), 5):
        pair[1].write_bytes(whole[:length])
        wanted = r"net\.caffemodel.*" + ("layer '(conv|fc)'" if length > first else "")
        with pytest.raises(ModelError, match=wanted + r"|layer '(conv|fc)'.*net\.caffemodel"):
            read_caffe(*pair)


def test_damage_inside_a_layer_names_it(tmp_path):
    pair = written(tmp_path, NEW, WEIGHTS)
    whole = pair[1].read_bytes()
    inside = whole.index(b"fc") + 2 + len(b"\x12\x04Type")
    pair[1].write_bytes(whole[:inside] + b"\x1b" + whole[inside + 1 :])
    with pytest.raises(ModelError, match=r"damaged one: layer 'fc' in it is damaged"):
        read_caffe(*pair)
    pair[1].write_bytes(whole + b"\x0b")
    with pytest.raises(ModelError, match=r"it makes no sense behind layer 'fc'"):
        read_caffe(*pair)


def test_files_in_the_wrong_order_are_told():
    with pytest.raises(ModelError, match=r"the \.prototxt comes first"):
        read_caffe("net.caffemodel", "net.prototxt")


@pytest.mark.parametrize(
    ("shape", "complaint"),
    [
        ([1] * 40 + [4, 27], "larger than Caffe has any"),
        ([0, 2**62, 2**62], "larger than Caffe has any"),
        ([-4, -27], r"its shape is \[-4, -27\], but it has 108 values"),
        ([4, 26], r"its shape is \[4, 26\], but it has 108 values"),
    ],
)
def test_shapes_that_no_array_of_caffe_has_are_told_by_the_layer(tmp_path, shape, complaint):
    pair = written(tmp_path, NEW, {})
    values = FC[0].tobytes() if shape[0] else b""
    blob = field(7, field(1, b"".join(map(varint, shape)))) + field(5, values)
    pair[1].write_bytes(field(100, field(1, b"fc") + field(7, blob)))
    with pytest.raises(ModelError, match=rf"net.caffemodel: layer 'fc', array 0: .*{complaint}"):
        read_caffe(*pair)


@settings(max_examples=150)
@given(st.integers(0, 2**32 - 1))
def test_damaged_weights_are_read_or_refused(tmp_path_factory, seed):
    rng = np.random.default_rng(seed)
    data = bytearray(caffemodel(WEIGHTS))
    for place in rng.integers(len(data), size=rng.integers(1, 6)):
        data[int(place)] = int(rng.integers(256))
    refused_or_read(tmp_path_factory, NEW, bytes(data))


@settings(max_examples=150)
@given(st.integers(0, 2**32 - 1))
def test_damaged_networks_are_read_or_refused(tmp_path_factory, seed):
    rng = np.random.default_rng(seed)
    words = re.findall(r"\S+|\s+", NEW)
    for _ in range(rng.integers(1, 4)):
        one, other = rng.integers(len(words), size=2)
        words[one] = ["", words[other], "-1", "0", '"', "}", "4294967295"][rng.integers(7)]
    refused_or_read(tmp_path_factory, "".join(words), caffemodel(WEIGHTS))


def refused_or_read(tmp_path_factory: pytest.TempPathFactory, text: str, weights: bytes) -> None:
    folder: Path = tmp_path_factory.getbasetemp()
    pair = folder / "damaged.prototxt", folder / "damaged.caffemodel"
    pair[0].write_text(text)
    pair[1].write_bytes(weights)
    try:
        model = read_caffe(*pair)
    except ModelError:
        return
    onnx.checker.check_model(model, full_check=True)
