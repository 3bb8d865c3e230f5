"""Large weights stand beside the model: in files of their own where it is too large for one, and in files as read."""

import os

import numpy as np
import onnx
import pytest
from graphs import model, random_feed, run
from onnx import TensorProto

from amct_onnx.errors import ModelError
from amct_onnx.formats.model_file import read_model, staged, write_files, write_model
from amct_onnx.passes import session, weights
from amct_onnx.passes.graph import Graph, constant
from amct_onnx.passes.weights import LightModel, StoredArray, detached

NET = "g (float[2, 3] x) => (float[2, 700] y) { [fc] h = MatMul(x, w) [add] y = Add(h, b) }"
RNG = np.random.default_rng(0)
WEIGHTS = {"w": RNG.normal(size=(3, 700)).astype(np.float32), "b": RNG.normal(size=700).astype(np.float32)}
FEED = {"x": np.ones((2, 3), np.float32)}


@pytest.fixture
def net():
    return model(NET, WEIGHTS)


def saved(net, folder):
    """The model in a file, with its weights in another."""
    copy = onnx.ModelProto()
    copy.CopyFrom(net)  # saving turns the message itself into one without weights
    onnx.save_model(copy, str(folder / "net.onnx"), save_as_external_data=True, location="net.bin", size_threshold=0)
    return folder / "net.onnx"


def test_large_weights_go_into_a_file_of_their_own(net, tmp_path, monkeypatch):
    monkeypatch.setattr("amct_onnx.formats.model_file.LARGEST_MESSAGE", 1000)
    write_model(detached(net), tmp_path / "out.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.onnx", "out.onnx.data"]
    assert (tmp_path / "out.onnx.data").stat().st_mode == (tmp_path / "out.onnx").stat().st_mode
    loaded = onnx.load(tmp_path / "out.onnx")
    onnx.checker.check_model(str(tmp_path / "out.onnx"))
    np.testing.assert_array_equal(run(loaded, FEED)["y"], run(net, FEED)["y"])


def test_weights_in_a_file_of_their_own_begin_at_pages(tmp_path, monkeypatch):
    monkeypatch.setattr("amct_onnx.formats.model_file.LARGEST_MESSAGE", 1000)
    two = {"w": WEIGHTS["w"], "v": RNG.normal(size=(700, 5)).astype(np.float32)}
    net = model("g (float[2, 3] x) => (float[2, 5] y) { h = MatMul(x, w) y = MatMul(h, v) }", two)
    write_model(detached(net), tmp_path / "out.onnx")
    entries = [
        {entry.key: entry.value for entry in tensor.external_data}
        for tensor in onnx.load(tmp_path / "out.onnx", load_external_data=False).graph.initializer
    ]
    assert [entry["offset"] for entry in entries] == ["0", "12288"]
    np.testing.assert_array_equal(run(onnx.load(tmp_path / "out.onnx"), FEED)["y"], run(net, FEED)["y"])


def test_small_models_are_one_file_of_the_usual_bytes(net, tmp_path):
    write_model(detached(net), tmp_path / "out.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["out.onnx"]
    assert onnx.load(tmp_path / "out.onnx") == net


def test_external_weights_are_read_when_they_are_asked_for(net, tmp_path):
    light = read_model(saved(net, tmp_path))
    stored = light.weights["w"]
    assert isinstance(stored, StoredArray)
    assert stored.nbytes == WEIGHTS["w"].nbytes
    np.testing.assert_array_equal(stored.load(), WEIGHTS["w"])
    assert set(light.weights) == {"w"}  # the bias is small and stands in the message
    assert light.whole() == net


def test_a_graph_of_external_weights_does_not_keep_them(net, tmp_path):
    graph = Graph.of_model(read_model(saved(net, tmp_path)))
    weight = graph.nodes[0].inputs[1]
    np.testing.assert_array_equal(constant(weight), WEIGHTS["w"])
    assert constant(weight) is not constant(weight)
    light = graph.copy().to_light()
    assert isinstance(light.weights["w"], StoredArray)
    np.testing.assert_array_equal(run(light.whole(), FEED)["y"], run(net, FEED)["y"])


def test_sessions_run_over_weights_in_files_in_memory_and_in_the_message(net, tmp_path):
    before = net.SerializeToString(deterministic=True)
    for source in (net, detached(net), read_model(saved(net, tmp_path))):
        found = session.open_session(source, "the model").run(FEED, "batch 0")
        np.testing.assert_array_equal(found["y"], run(net, FEED)["y"])
    assert net.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("bound", [1 << 29, 1000])
@pytest.mark.parametrize("is_input", [False, True])
def test_weights_that_nothing_reads_do_no_harm(bound, is_input, tmp_path, monkeypatch):
    monkeypatch.setattr(session, "_LARGE", bound)
    net = model(NET, WEIGHTS | {"left over": np.zeros(4000, np.float32)}, ir=3 if is_input else 8)
    if is_input:
        for tensor in net.graph.initializer:
            net.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, TensorProto.FLOAT, tensor.dims))
    for source in (net, read_model(saved(net, tmp_path))):
        found = session.open_session(source, "the model").run(FEED, "batch 0")
        np.testing.assert_allclose(found["y"], run(net, FEED)["y"], rtol=1e-6)


def test_weights_above_the_bound_are_read_by_onnxruntime_from_a_file(net, tmp_path, monkeypatch):
    monkeypatch.setattr(session, "_LARGE", 1000)
    for source in (net, read_model(saved(net, tmp_path))):
        found = session.open_session(source, "the model").run(FEED, "batch 0")
        np.testing.assert_allclose(found["y"], run(net, FEED)["y"], rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64, np.int8, np.uint8])
def test_every_type_of_weight_stands_beside_the_message(dtype):
    values = np.arange(8192).reshape(2, 4096).astype(dtype)
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    text = f"g ({TensorProto.DataType.Name(kind).lower()}[2, 4096] x) => (y) {{ y = Identity(w) }}"
    net = model(text, {"w": values})
    light = detached(net)
    np.testing.assert_array_equal(light.weights["w"], values)
    assert light.whole() == net


def test_values_in_typed_fields_stand_beside_the_message_too():
    net = model(NET, {"b": WEIGHTS["b"]})
    net.graph.initializer.append(onnx.helper.make_tensor("w", TensorProto.FLOAT, (3, 700), WEIGHTS["w"].ravel()))
    np.testing.assert_array_equal(detached(net).weights["w"], WEIGHTS["w"])


def test_what_a_light_model_is_made_of_stays_untouched(net):
    before = net.SerializeToString(deterministic=True)
    light = detached(net)
    light.proto.graph.node[0].name = "other"
    light.proto.producer_name = "other"
    assert net.SerializeToString(deterministic=True) == before
    assert light.proto.ByteSize() < 4096 + 700 * 4
    assert detached(light) is light
    assert light.nbytes >= WEIGHTS["w"].nbytes


def test_shapes_too_large_to_be_true_are_left_to_onnxruntime():
    net = model(NET, {"b": WEIGHTS["b"]})
    net.graph.initializer.append(TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1 << 40, 1 << 40]))
    with pytest.raises(ModelError):
        session.open_session(detached(net), "the model")


def damaged(net, folder, **entries):
    """The saved model with other entries about the data of `w`."""
    path = saved(net, folder)
    proto = onnx.load(path, load_external_data=False)
    (tensor,) = (t for t in proto.graph.initializer if t.name == "w")
    kept = {entry.key: entry.value for entry in tensor.external_data} | entries
    del tensor.external_data[:]
    for key, value in kept.items():
        tensor.external_data.add(key=key, value=value)
    path.write_bytes(proto.SerializeToString())
    return path


@pytest.mark.parametrize(
    ("entries", "found"),
    [
        ({"location": "../net.bin"}, "not inside the model's directory"),
        ({"location": "/etc/passwd"}, "not inside the model's directory"),
        ({"location": ""}, "not inside the model's directory"),
        ({"location": "gone.bin"}, "are missing"),
        ({"length": "12"}, "are 12 bytes from"),
        ({"length": "x"}, "whole numbers"),
        ({"offset": "-4"}, "from -4"),
        ({"offset": "8000000"}, "ends before byte"),
    ],
)
def test_external_data_that_are_not_there_are_named(net, tmp_path, entries, found):
    with pytest.raises(ModelError, match="'w'.*" + found):
        read_model(damaged(net, tmp_path, **entries))


def test_links_out_of_the_directory_are_not_followed(net, tmp_path):
    inside = tmp_path / "model"
    inside.mkdir()
    path = saved(net, inside)
    os.replace(inside / "net.bin", tmp_path / "net.bin")
    (inside / "net.bin").symlink_to(tmp_path / "net.bin")
    with pytest.raises(ModelError, match="not inside"):
        read_model(path)


def test_data_of_constant_nodes_and_of_odd_types_are_read_at_once(tmp_path):
    tensor = TensorProto(name="t", data_type=TensorProto.BFLOAT16, dims=[3000], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="t.bin")
    (tmp_path / "t.bin").write_bytes(b"\x80\x3f" * 3000)
    net = model("g (float x) => (bfloat16[3000] y) { y = Identity(t) }")
    net.graph.initializer.append(tensor)
    (tmp_path / "net.onnx").write_bytes(net.SerializeToString())
    (read,) = read_model(tmp_path / "net.onnx").proto.graph.initializer
    assert read.raw_data == b"\x80\x3f" * 3000
    assert read.data_location == TensorProto.DEFAULT


def test_a_light_model_keeps_the_order_and_the_fields_of_the_message(net):
    net.producer_name, net.graph.doc_string = "maker", "text"
    net.metadata_props.add(key="k", value="v")
    light = detached(net)
    assert [t.name for t in light.proto.graph.initializer] == [t.name for t in net.graph.initializer]
    assert isinstance(light, LightModel)
    assert light.whole() == net
    assert weights.is_stub(light.proto.graph.initializer[0])
    assert random_feed(light.proto).keys() == {"x"}


def moves(monkeypatch):
    """What is moved where, in order."""
    done, replace = [], os.replace

    def noted(source, target):
        done.append(os.path.basename(target))
        replace(source, target)

    monkeypatch.setattr(os, "replace", noted)
    return done


def test_files_appear_in_the_order_in_which_they_are_given(net, tmp_path, monkeypatch):
    done = moves(monkeypatch)
    write_files({tmp_path / "b" / "z.txt": "z", tmp_path / "a" / "net.onnx": detached(net), tmp_path / "b" / "a": "a"})
    assert done == ["z.txt", "a", "net.onnx"]
    assert onnx.load(tmp_path / "a" / "net.onnx") == net


def test_what_stands_beside_a_file_is_there_before_it(tmp_path, monkeypatch):
    done = moves(monkeypatch)
    with staged(tmp_path, ["net.onnx"]) as folder:
        for name in ("net.onnx", "net.onnx.data"):
            (folder / name).write_text(name)
    assert done == ["net.onnx.data", "net.onnx"]


@pytest.mark.parametrize("has_links", [True, False])
def test_a_file_is_never_away_while_it_is_replaced(tmp_path, monkeypatch, has_links):
    path, seen, replace = tmp_path / "a.txt", [], os.replace
    path.write_text("old")

    def watched(source, target):
        seen.append(path.exists())
        replace(source, target)

    def unable(source, target):
        raise OSError("this file system has no second names")

    monkeypatch.setattr(os, "replace", watched)
    if not has_links:
        monkeypatch.setattr(os, "link", unable)
    write_files({path: "new"})
    assert (path.read_text(), seen) == ("new", [True] if has_links else [True, False])
