"""ONNX models as torch modules: names, training, and the way back."""

import copy
import io

import numpy as np
import onnx
import pytest
from graphs import initializers, model, run
from onnx import helper, numpy_helper

torch = pytest.importorskip("torch")

from amct_onnx import DataError, ModelError, NotAvailableError, to_onnx, to_torch  # noqa: E402

torch.set_num_threads(1)  # the tensors are small
RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def network():
    weights = {"conv.weight": normal(4, 3, 3, 3), "bn.weight": normal(4), "bn.bias": normal(4)}
    weights |= {"bn.running_mean": normal(4), "bn.running_var": np.abs(normal(4)) + 0.5, "fc": normal(4, 2)}
    bn = ["a", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var"]
    nodes = [
        helper.make_node("Conv", ["x", "conv.weight"], ["a"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", bn, ["b"], name="bn"),
        helper.make_node("Relu", ["b"], ["c"], name="relu"),
        helper.make_node("GlobalAveragePool", ["c"], ["d"], name="pool"),
        helper.make_node("Flatten", ["d"], ["e"], name="flat"),
        helper.make_node("MatMul", ["e", "fc"], ["y"], name="fc"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", 1, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info("y", 1, ["N", 2])],
        [numpy_helper.from_array(values, name) for name, values in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def trained(module, steps=3):
    module.train()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        module(torch.from_numpy(normal(5, 3, 8, 8))).square().sum().backward()
        optimizer.step()
    return module.eval()


def test_parameters_have_the_names_of_the_initializers():
    module = to_torch(network())
    assert sorted(dict(module.named_parameters())) == ["bn.bias", "bn.weight", "conv.weight", "fc"]
    assert sorted(set(module.state_dict()) - set(dict(module.named_parameters()))) == [
        "bn.running_mean",
        "bn.running_var",
    ]


def test_an_untrained_module_gives_the_same_bytes_back():
    source = network()
    assert to_onnx(to_torch(source)).SerializeToString() == source.SerializeToString()


def test_a_trained_module_gives_the_same_graph_back_which_computes_what_it_does():
    source = network()
    before = source.SerializeToString()
    module = trained(to_torch(source))
    back = to_onnx(module)
    assert source.SerializeToString() == before
    assert back.graph.node == source.graph.node
    assert [(t.name, t.dims) for t in back.graph.initializer] == [(t.name, t.dims) for t in source.graph.initializer]
    changed = [n for n, values in initializers(back).items() if not np.array_equal(values, initializers(source)[n])]
    assert sorted(changed) == sorted(initializers(source))
    x = normal(2, 3, 8, 8)
    with torch.no_grad():
        np.testing.assert_allclose(module(torch.from_numpy(x)), run(back, {"x": x})["y"], rtol=1e-4, atol=1e-5)


def test_batch_normalization_trains_as_that_of_torch():
    module, reference = to_torch(network()).train(), torch.nn.BatchNorm2d(4)
    parameters = module.state_dict()
    reference.load_state_dict(
        {name.removeprefix("bn."): value for name, value in parameters.items() if name.startswith("bn.")}
        | {"num_batches_tracked": torch.tensor(0)}
    )
    x = torch.from_numpy(normal(5, 3, 8, 8))
    front = torch.nn.functional.conv2d(x, module.get_parameter("conv.weight"), padding=1)
    expected = reference(front).relu().mean((2, 3)) @ module.get_parameter("fc")
    torch.testing.assert_close(module(x), expected)
    torch.testing.assert_close(module.state_dict()["bn.running_var"], reference.running_var)
    torch.testing.assert_close(module.state_dict()["bn.running_mean"], reference.running_mean)


def test_a_module_can_be_copied_stored_and_loaded():
    module = trained(to_torch(network()))
    other = to_torch(network())
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    copied = copy.deepcopy(module)
    trained(module)
    assert to_onnx(other.eval()).SerializeToString() == to_onnx(copied).SerializeToString()
    assert to_onnx(copied).SerializeToString() != to_onnx(module).SerializeToString()


@pytest.mark.parametrize("names", [("a", "a.b"), ("a.b", "a"), ("forward", "x..y"), ("training.weight", "._.")])
def test_names_that_torch_cannot_have_are_written_otherwise(names):
    nodes = [helper.make_node("MatMul", ["x", names[0]], ["h"]), helper.make_node("MatMul", ["h", names[1]], ["y"])]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", 1, [1, 2])],
        [helper.make_tensor_value_info("y", 1, [1, 2])],
        [numpy_helper.from_array(normal(2, 2), name) for name in names],
    )
    source = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    module = to_torch(source)
    assert list(module.names) == list(names)
    assert set(module.names.values()) == set(module.state_dict()) == set(dict(module.named_parameters()))
    assert len(module.state_dict()) == 2
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 1
    back = to_onnx(module)
    for name in names:
        np.testing.assert_allclose(initializers(back)[name], initializers(source)[name] + 1)


def branches():
    """An If whose bodies use a weight of their own of the same name, and one from outside."""
    return model(
        """
        g (bool c, float[2, 2] x) => (float[2, 2] y) <float[2, 2] w = {1, 2, 3, 4}> {
          [choice] y = If (c) <
            then_branch = t () => (float[2, 2] o) { k = Constant <value = float[2, 2] {1, 0, 0, 1}> ()
              [m] h = MatMul (x, k)  [n] o = MatMul (h, w) },
            else_branch = e () => (float[2, 2] o) { k = Constant <value = float[2, 2] {2, 0, 0, 2}> ()
              [m] o = MatMul (x, k) }
          >
        }
        """
    )


@pytest.mark.parametrize("condition", [True, False])
def test_if_carries_out_the_body_that_its_condition_says(condition):
    x = normal(2, 2)
    module = to_torch(branches())
    assert len(list(module.parameters())) == 3
    found = module(torch.tensor(condition), torch.from_numpy(x))
    expected = run(branches(), {"c": np.array(condition), "x": x})["y"]
    np.testing.assert_allclose(found.detach(), expected, rtol=1e-6)


def test_weights_of_bodies_find_their_way_back():
    module = to_torch(branches())
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 1
    back, x = to_onnx(module), normal(2, 2)
    for condition in (True, False):
        found = module(torch.tensor(condition), torch.from_numpy(x)).detach()
        np.testing.assert_allclose(found, run(back, {"c": np.array(condition), "x": x})["y"], rtol=1e-5)


def test_what_moves_a_weight_around_leaves_it_one():
    source = model(
        "g (float[1, 3] x) => (float[1, 2] y) "
        "{ t = Transpose (w)  h = MatMul (x, t)  s = Sub (h, mean)  y = Add (s, b) }",
        {"w": normal(2, 3), "mean": normal(2), "b": normal(2)},
    )
    assert sorted(dict(to_torch(source).named_parameters())) == ["b", "w"]


def test_inputs_go_by_place_or_by_name():
    module = to_torch(model("g (float[1] a, float[1] b) => (float[1] y) { y = Sub (a, b) }"))
    a, b = torch.tensor([5.0]), torch.tensor([3.0])
    assert module(a, b) == module(b=b, a=a) == module(a, b=b) == 2
    with pytest.raises(DataError, match=r"inputs \['b'\] are missing"):
        module(a)
    with pytest.raises(DataError, match=r"has the inputs \['a', 'b'\]; 3 were given"):
        module(a, b, b)
    with pytest.raises(DataError, match="no input 'c'"):
        module(a, c=b)


def test_several_outputs_are_a_tuple():
    module = to_torch(model("g (float[4] x) => (float[2] y, float[2] z) { y, z = Split (x) }"))
    assert [part.tolist() for part in module(torch.arange(4.0))] == [[0, 1], [2, 3]]


def test_a_node_that_fails_is_named():
    module = to_torch(network())
    with pytest.raises(ModelError, match=r"node 'conv' \(Conv\) fails: "):
        module(torch.zeros(1, 2, 8, 8))


def test_only_modules_of_ours_can_be_turned_back():
    with pytest.raises(ModelError, match="the module is a Linear"):
        to_onnx(torch.nn.Linear(1, 1))


def test_a_model_that_is_too_old_is_refused():
    old = network()
    old.opset_import[0].version = 6
    with pytest.raises(NotAvailableError, match="opset 6"):
        to_torch(old)


def test_dropout_drops_in_train_mode_alone():
    module = to_torch(model("g (float[1000] x) => (float[1000] y) { y = Dropout (x) }"))
    x = torch.ones(1000)
    assert torch.equal(module.eval()(x), x)
    dropped = module.train()(x)
    assert set(dropped.tolist()) == {0.0, 2.0}
    assert isinstance(to_onnx(module), onnx.ModelProto)
