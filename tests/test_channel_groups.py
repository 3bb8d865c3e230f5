"""Channels leave a graph together with all that reads or carries them, and what is left computes the same."""

import numpy as np
import onnx
import pytest
from graphs import model, run

from amct_onnx.passes.channel_groups import channel_map
from amct_onnx.passes.graph import Graph
from amct_onnx.passes.manager import run_passes
from amct_onnx.passes.pipelines import PREPARE
from amct_onnx.passes.state import QuantState

LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def drawn(**shapes):
    return {name: draw(*shape, seed=n) for n, (name, shape) in enumerate(shapes.items())}


def prepared(m):
    state = QuantState(graph=Graph.of_model(m))
    run_passes(PREPARE, state)
    return state.graph


def half_gone(m, feed, *, enabled=None):
    """Take half of every group away, by norm; returns names of the groups, and how many channels each lost."""
    graph = prepared(m)
    names = {node.name for node in graph.nodes if node.op in LAYERS}
    channels = channel_map(graph, names if enabled is None else enabled)
    gone = [channels.lowest(g, channels.norms(g), len(g.classes) // 2) for g in channels.groups]
    removed = {int(atom) for atoms in gone for atom in atoms}
    with channels.zeroed(removed):
        expected = run(graph.to_model(), feed)
    channels.remove(removed)
    found = run(graph.to_model(), feed)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-4, atol=1e-5)
    return {group.names: len(atoms) for group, atoms in zip(channels.groups, gone, strict=True)}, channels, graph


X = {"x": draw(2, 3, 8, 8, seed=99)}
HEAD = "(float[N, 3, 8, 8] x) => (float[N, 4, h, w] y)"
ENDS = {"w_in": (8, 3, 3, 3), "b_in": (8,), "w_out": (4, 8, 1, 1)}
BN = {"s": (8,), "b": (8,), "m": (8,)}


def chain(*lines, **more):
    """Between a first convolution, `a`, that makes `f`, and a last one that reads `g`."""
    text = "\n".join(lines)
    return model(
        f"""g {HEAD} {{
          [a] f = Conv <pads=[1,1,1,1]> (x, w_in, b_in)
          {text}
          [last] y = Conv (g, w_out)
        }}""",
        {**drawn(**ENDS), **{name: v if isinstance(v, np.ndarray) else draw(*v) for name, v in more.items()}},
    )


VARIANCE = np.linspace(0.5, 2, 8, dtype=np.float32)

ALONG = {
    "relu": chain("g = Relu (f)"),
    "sigmoid": chain("g = Sigmoid (f)"),
    "batch norm": chain("g = BatchNormalization (f, s, b, m, v)", **BN, v=VARIANCE),
    "instance norm": chain("g = InstanceNormalization (f, s, b)", s=(8,), b=(8,)),
    "one slope per channel": chain("g = PRelu (f, slope)", slope=(8, 1, 1)),
    "constants of one channel each": chain("p = Mul (f, k)", "g = Add (p, c)", k=(1, 8, 1, 1), c=(8, 1, 1)),
    "a constant for all": chain("g = Add (f, c)", c=np.array(2.5, np.float32)),
    "pooling": chain("g = MaxPool <kernel_shape=[2,2], strides=[2,2]> (f)"),
    "silu": chain("p = Sigmoid (f)", "g = Mul (f, p)"),
    "depthwise": chain("g = Conv <group=8, pads=[1,1,1,1]> (f, w, c)", w=(8, 1, 3, 3), c=(8,)),
    "transposed depthwise": chain("g = ConvTranspose <group=8, strides=[2,2]> (f, w, c)", w=(8, 1, 2, 2), c=(8,)),
    "padding": chain("g = Pad (f, pads)", pads=np.array([0, 0, 1, 1, 0, 0, 1, 1])),
    "there and back": chain("p = Transpose <perm=[0,2,3,1]> (f)", "g = Transpose <perm=[0,3,1,2]> (p)"),
    "resize by scales": chain("g = Resize (f, , scales)", scales=np.array([1, 1, 2, 2], np.float32)),
    "resize to sizes": chain("g = Resize (f, , , sizes)", sizes=np.array([2, 8, 16, 16])),
    "cut in space": chain(
        "g = Slice (f, from, to, axes)", **{"from": np.array([2]), "to": np.array([6]), "axes": np.array([2])}
    ),
    "reduced in space": chain("g = ReduceMean <axes=[2], keepdims=1> (f)"),
    "halves exchanged": chain("p, q = Split <axis=1> (f)", "g = Concat <axis=1> (q, p)"),
    "split by sizes": chain(
        "p, q = Split <axis=1> (f, sizes)", "r = Relu (q)", "g = Concat <axis=-3> (p, r)", sizes=np.array([3, 5])
    ),
    "slices of channels": chain(
        "p = Slice (f, zero, four, one)",
        "q = Slice (f, four, many, one)",
        "g = Concat <axis=1> (q, p)",
        zero=np.array([0]),
        four=np.array([4]),
        many=np.array([2**31]),
        one=np.array([1]),
    ),
    "flat and back": chain(
        "p = Reshape (f, flat)", "g = Unsqueeze (p, three)", flat=np.array([0, 8, 64]), three=np.array([3])
    ),
    "softmax in space": chain("g = Softmax <axis=3> (f)"),
    "another size asked for": chain(
        "p = Shape (f)", "q = Gather (p, n)", "r = Cast <to=1> (q)", "g = Mul (f, r)", n=np.array([0])
    ),
    "number of channels asked for": chain(
        "p = Shape (f)", "q = Gather (p, n)", "r = Cast <to=1> (q)", "g = Mul (f, r)", n=np.array([1])
    ),
}


@pytest.mark.parametrize("m", ALONG.values(), ids=ALONG.keys())
def test_channels_pass_along(m):
    lost, _, graph = half_gone(m, X)
    assert lost == {("a",): 4}
    assert len(graph.nodes[0].inputs[1].shape) == 4
    assert graph.nodes[0].inputs[1].shape[0] == 4


STAYING = {
    "softmax over channels": chain("g = Softmax <axis=1> (f)"),
    "all reduced": chain("p = ReduceMean <axes=[1], keepdims=1> (f)", "g = Mul (f, p)"),
    "added to what stays": chain("p = Concat <axis=1> (x, x, k)", "g = Add (f, p)", k=np.zeros((2, 2, 8, 8), "f")),
    "shuffled": chain(
        "p = Reshape (f, to)", "g = Reshape (p, back)", to=np.array([0, 2, 4, 64]), back=np.array([0, 8, 8, 8])
    ),
    "every other channel": chain(
        "p = Slice (f, zero, many, one, two)",
        "g = Concat <axis=1> (p, p)",
        zero=np.array([0]),
        many=np.array([8]),
        one=np.array([1]),
        two=np.array([2]),
    ),
    "padded channels": chain("g = Pad (f, pads)", pads=np.array([0, 1, 0, 0, 0, -1, 0, 0])),
    "an operator not known": chain("g = LRN <size=3> (f)"),
}


@pytest.mark.parametrize("m", STAYING.values(), ids=STAYING.keys())
def test_channels_stay_where_something_needs_all_of_them(m):
    lost, channels, _ = half_gone(m, X)
    assert lost == {}
    assert "all of its channels" in channels.stays["a"] or "that stay" in channels.stays["a"]


def test_the_last_layer_stays():
    _, channels, _ = half_gone(ALONG["relu"], X)
    assert channels.stays == {"last": "'y' is an output of the model"}


def test_a_residual_joins_its_producers():
    m = chain("[b] p = Conv (f, w)", "q = Relu (p)", "g = Add (f, q)", w=(8, 8, 1, 1))
    lost, _, graph = half_gone(m, X)
    assert lost == {("a", "b"): 4}
    assert tuple(graph.nodes[1].inputs[1].shape) == (4, 4, 1, 1)


def test_channels_that_a_shortcut_pads_on_stay():
    m = chain(
        "[b] p = Conv (f, w)",
        "q = Slice (f, zero, four, one)",
        "r = Pad (q, pads)",
        "g = Add (p, r)",
        w=(8, 8, 1, 1),
        pads=np.array([0, 2, 0, 0, 0, 2, 0, 0]),
        zero=np.array([0]),
        four=np.array([4]),
        one=np.array([1]),
    )
    lost, _, graph = half_gone(m, X)
    assert lost == {("a", "b"): 6}  # of 12: four are of both, four of `a` alone, and four of `b` alone stay
    assert tuple(graph.nodes[1].inputs[1].shape)[:2] == (5, 2)


def test_a_skipped_producer_of_a_sum_keeps_the_other():
    m = chain("[b] p = Conv (f, w)", "g = Add (f, p)", w=(8, 8, 1, 1))
    assert half_gone(m, X, enabled={"a"})[0] == {}


def test_what_lies_beside_in_a_concat_stays_where_it_is():
    m = chain(
        "[b] p = Conv <pads=[1,1,1,1]> (x, w)",
        "q = Concat <axis=1> (p, f, x)",
        "[c] g = Conv (q, wide)",
        w=(6, 3, 3, 3),
        wide=(8, 17, 1, 1),
    )
    lost, _, graph = half_gone(m, X, enabled={"a"})
    assert lost == {("a",): 4}
    assert next(node for node in graph.nodes if node.name == "c").inputs[1].shape[1] == 13


def test_squeeze_and_excitation_follows():
    m = chain(
        "p = GlobalAveragePool (f)",
        "[down] q = Conv (p, w_down)",
        "r = Relu (q)",
        "[up] s = Conv (r, w_up)",
        "t = HardSigmoid (s)",
        "g = Mul (f, t)",
        w_down=(4, 8, 1, 1),
        w_up=(8, 4, 1, 1),
    )
    assert half_gone(m, X)[0] == {("a", "up"): 4, ("down",): 2}


def test_a_flattened_map_takes_as_many_inputs_along_as_it_has_places():
    m = model(
        """g (float[N, 3, 8, 8] x) => (float[N, 5] y) {
          [a] f = Conv <strides=[2,2], pads=[1,1,1,1]> (x, w_in, b_in)
          p = Flatten (f)
          [fc1] q = Gemm <transB=1> (p, w1, b1)
          r = Relu (q)
          [fc2] y = Gemm (r, w2, b2)
        }""",
        drawn(w_in=(8, 3, 3, 3), b_in=(8,), w1=(10, 128), b1=(10,), w2=(10, 5), b2=(5,)),
    )
    lost, _, graph = half_gone(m, X)
    assert lost == {("a",): 4, ("fc1",): 5}
    assert tuple(next(node for node in graph.nodes if node.name == "fc1").inputs[1].shape) == (64, 5)


@pytest.mark.parametrize("target", [[-1, 128], [0, -1], [2, 128]])
def test_a_reshape_into_a_row(target):
    m = model(
        """g (float[2, 3, 8, 8] x) => (float[2, 5] y) {
          [a] f = Conv <strides=[2,2], pads=[1,1,1,1]> (x, w_in)
          p = Reshape (f, target)
          [fc] y = MatMul (p, w)
        }""",
        {**drawn(w_in=(8, 3, 3, 3), w=(128, 5)), "target": np.array(target)},
    )
    assert half_gone(m, X)[0] == {("a",): 4}


def test_a_reshape_drops_axes_of_one_before_the_channels():
    m = model(
        """g (float[N, 3, 8, 8] x) => (float[N, 5] y) {
          [a] f = Conv (x, w_in)
          p = ReduceMean <axes=[2, 3], keepdims=1> (f)
          q = Transpose <perm=[0,2,3,1]> (p)
          r = Reshape (q, target)
          [fc] y = MatMul (r, w)
        }""",
        {**drawn(w_in=(8, 3, 3, 3), w=(8, 5)), "target": np.array([-1, 8])},
    )
    assert half_gone(m, X)[0] == {("a",): 4}


@pytest.mark.parametrize("columns", [-1, 128])
def test_a_reshape_into_a_row_of_a_batch_of_any_size(columns):
    m = model(
        """g (float[N, 3, 8, 8] x) => (float[N, 5] y) {
          [a] f = Conv <strides=[2,2], pads=[1,1,1,1]> (x, w_in)
          s = Shape (f)
          t = Cast <to=6> (s)
          u = Slice (t, zero, one, zero)
          v = Cast <to=7> (u)
          target = Concat <axis=0> (v, columns)
          p = Reshape (f, target)
          [fc] y = MatMul (p, w)
        }""",
        {
            **drawn(w_in=(8, 3, 3, 3), w=(128, 5)),
            "zero": np.array([0]),
            "one": np.array([1]),
            "columns": np.array([columns]),
        },
    )
    assert half_gone(m, X)[0] == {("a",): 4}


def test_sizes_that_the_exporter_noted_are_forgotten():
    noted = onnx.shape_inference.infer_shapes(ALONG["relu"])
    assert len(noted.graph.value_info) == 2
    assert half_gone(noted, X)[0] == {("a",): 4}


def test_a_feed_forward_block_of_a_transformer():
    m = model(
        """g (float[N, 7, 6] x) => (float[N, 7, 6] y) {
          [up] p = MatMul (x, w_up)
          q = Add (p, b_up)
          e = Erf (q)
          r = Mul (q, e)
          [down] s = MatMul (r, w_down)
          y = Add (s, x)
        }""",
        drawn(w_up=(6, 16), b_up=(16,), w_down=(16, 6)),
    )
    assert half_gone(m, {"x": draw(2, 7, 6)})[0] == {("up",): 8}


def test_a_transposed_convolution_loses_outputs_and_inputs():
    m = chain("[up] g = ConvTranspose <strides=[2,2]> (f, w, c)", w=(8, 8, 2, 2), c=(8,))
    lost, _, graph = half_gone(m, X)
    assert lost == {("a",): 4, ("up",): 4}
    assert tuple(graph.nodes[1].inputs[1].shape) == (4, 4, 2, 2)


def test_groups_of_a_convolution_lose_as_many_each():
    m = chain("[b] p = Conv <group=2, pads=[1,1,1,1]> (f, w, c)", "g = Relu (p)", w=(8, 4, 3, 3), c=(8,))
    lost, channels, graph = half_gone(m, X)
    assert lost == {("a",): 4, ("b",): 4}
    assert [group.blocks for group in channels.groups] == [2, 2]
    assert tuple(graph.nodes[1].inputs[1].shape) == (4, 2, 3, 3)


def test_groups_across_a_concat_stay():
    m = chain("p = Concat <axis=1> (f, f)", "[b] g = Conv <group=2> (p, w)", w=(8, 8, 1, 1))
    lost, channels, _ = half_gone(m, X)
    assert lost == {("b",): 4}
    assert "in groups" in channels.stays["a"]


def test_a_layer_read_twice_and_an_initializer_used_twice():
    m = chain("p = Mul (f, k)", "q = Relu (p)", "r = Mul (q, k)", "g = Add (r, f)", k=(8, 1, 1))
    assert half_gone(m, X)[0] == {("a",): 4}


def test_no_part_of_a_split_loses_its_last_channel():
    m = chain(
        "p, q = Split <axis=1> (f, sizes)",
        "[c] r = Conv (q, w_q)",
        "[d] t = Conv (p, w_p)",
        "g = Add (r, t)",
        sizes=np.array([7, 1]),
        w_q=(8, 1, 1, 1),
        w_p=(8, 7, 1, 1),
    )
    channels = channel_map(prepared(m), {"a"})
    (group,) = channels.groups
    gone = channels.lowest(group, np.arange(8.0)[::-1], 7)  # the lone channel is the least
    assert gone.tolist() == group.classes[1:7].tolist()


def test_the_mean_of_all_producers_decides():
    w = np.ones((8, 8, 1, 1), np.float32) * np.arange(8, 0, -1, dtype=np.float32)[:, None, None, None]
    m = chain("[b] p = Conv (f, w)", "g = Add (f, p)", w=w)
    channels = channel_map(prepared(m), {"a", "b"})
    (group,) = channels.groups
    norms = np.linalg.norm(draw(8, 3, 3, 3, seed=0).reshape(8, -1), axis=1)
    first = (norms - norms.min()) / (norms.max() - norms.min())
    np.testing.assert_allclose(channels.norms(group), (first + np.linspace(1, 0, 8)) / 2, rtol=1e-5)
