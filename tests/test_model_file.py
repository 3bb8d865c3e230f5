"""Models too large for one file are written with their weights beside them."""

import numpy as np
import onnx
from graphs import model, run

from amct_onnx.formats import model_file
from amct_onnx.passes import session
from amct_onnx.passes.graph import weight_bytes

NET = "g (float[2, 3] x) => (float[2, 700] y) { [fc] y = MatMul(x, w) }"
WEIGHTS = {"w": np.random.default_rng(0).normal(size=(3, 700)).astype(np.float32)}


def test_large_weights_go_into_a_file_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(model_file, "LARGEST_MESSAGE", 1000)
    net = model(NET, WEIGHTS)
    model_file.write_model(net, tmp_path / "net.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.onnx", "net.onnx.data"]
    assert (tmp_path / "net.onnx.data").stat().st_mode == (tmp_path / "net.onnx").stat().st_mode
    feed = {"x": np.ones((2, 3), np.float32)}
    again = model_file.read_model(tmp_path / "net.onnx")
    np.testing.assert_array_equal(run(again, feed)["y"], run(model(NET, WEIGHTS), feed)["y"])


def test_large_models_open_in_a_session_and_stay_as_they_are(monkeypatch):
    monkeypatch.setattr(session, "LARGEST_MESSAGE", 1000)
    net = model(NET, WEIGHTS)
    before = net.SerializeToString(deterministic=True)
    opened = session.open_session(net, "the model")
    feed = {"x": np.ones((2, 3), np.float32)}
    (found,) = session.run_session(opened, feed, "batch 0")
    np.testing.assert_array_equal(found, run(net, feed)["y"])
    assert net.SerializeToString(deterministic=True) == before


def test_the_size_of_the_weights_is_counted_in_bodies_and_constant_nodes_too():
    inner = "then_branch = t () => (float[2] a) { a = Constant<value: tensor = float[2] {1, 2}>() }, "
    inner += "else_branch = e () => (float[2] b) { b = Constant<value: tensor = float[2] {3, 4}>() }"
    net = model(f"g (bool q) => (float[2] y) {{ y = If (q) <{inner}> }}", {"w": np.zeros(100, np.float32)})
    assert isinstance(net, onnx.ModelProto)
    assert weight_bytes(net) >= 400 + 2 * 8
