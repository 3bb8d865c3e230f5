"""Calibration in lanes and sweeps: the same bits whatever cores and memory are, one error, nothing left over."""

import logging
import threading
import time
import weakref
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import initializers, model, nodes_as_text

from amct_onnx import DataError, ModelError, QuantConfig, quantize_onnx
from amct_onnx.config import LayerConfig
from amct_onnx.kernels.hfmg import Hfmg, HfmgObserver
from amct_onnx.kernels.ifmr import Ifmr, IfmrObserver
from amct_onnx.passes import calibration, observation, resources
from amct_onnx.passes.observation import Budget, Watch, exposing, observe_batches, show_batches, sweeps
from amct_onnx.passes.weights import detached

LANES = [1, 2, 4, 8]


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def network():
    """Layers that share their input with others, or have it scaled, transposed or padded by what may be fused."""
    return model(
        """
        g (float[N, 4, 8, 8] x) => (float[N, 4, 8, 8] y, float[N, 4, 8, 8] z) {
          [conv1] a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
          [norm] n = BatchNormalization (a, scale, shift, mean, var)
          [conv2] b = Conv <pads = [1, 1, 1, 1]> (n, w2)
          [side] c = Conv <pads = [1, 1, 1, 1]> (a, w3)
          [join] d = Add (b, c)
          [relu] e = Relu (d)
          [turn] f = Transpose <perm = [0, 1, 3, 2]> (e)
          [matmul] h = MatMul (f, w4)
          [half] i = Mul (h, k)
          [conv3] y = Conv <pads = [1, 1, 1, 1]> (i, w5)
          [conv4] z = Conv <pads = [1, 1, 1, 1]> (e, w6)
        }
        """,
        {
            **{f"w{n}": draw(4, 4, 3, 3, seed=n) for n in (1, 2, 3, 5, 6)},
            "w4": draw(8, 8, seed=4),
            "b1": draw(4, seed=7),
            **{name: draw(4, seed=n) for n, name in enumerate(("scale", "shift", "mean"), 8)},
            "var": np.full(4, 2, np.float32),
            "k": np.float32(0.3),
        },
    )


MIXED = QuantConfig(
    skip_fusion_layers=("conv1",),
    override_layer_configs={name: LayerConfig(activation=Hfmg()) for name in ("conv2", "matmul", "conv4")},
)
BATCHES = [draw(2, 4, 8, 8, seed=n) * (1 + n % 5) for n in range(20)]
TENSOR = 2 * 4 * 8 * 8 * 4


def texts_and_bytes(result):
    return (
        result.record,
        result.config,
        result.deploy_model.SerializeToString(deterministic=True),
        result.fake_quant_model.SerializeToString(deterministic=True),
    )


def numbers(params):
    return params.scale.item(), params.offset.item()


@pytest.fixture(autouse=True)
def no_thread_is_left():
    """Neither lanes nor whatever draws progress; the kernels may still be compiled."""
    before = set(threading.enumerate())
    yield
    left = [t.name for t in threading.enumerate() if t not in before and t.is_alive() and t.name != "amct_onnx-compile"]
    assert left == []


@pytest.fixture
def cores(monkeypatch):
    def say(number):
        monkeypatch.setattr(calibration, "available_cores", lambda: number)

    return say


def passes_over(batches, counts):
    """A function that returns the batches, and counts its calls."""

    def source():
        counts.append(len(batches))
        return iter(batches)

    return source


# The same bits


@pytest.fixture(scope="module")
def plain():
    return texts_and_bytes(quantize_onnx(network(), MIXED, calibration=BATCHES))


@pytest.mark.parametrize("memory", [1, TENSOR, 2 * TENSOR, 3 * TENSOR + 1, 50 * TENSOR, None])
@pytest.mark.parametrize("lanes", LANES)
def test_cores_and_memory_change_no_bit(lanes, memory, plain, cores):
    cores(lanes)
    assert texts_and_bytes(quantize_onnx(network(), MIXED, calibration=BATCHES, memory_limit=memory)) == plain


@pytest.mark.parametrize(
    ("memory", "number"), [(1, 6), (TENSOR, 6), (2 * TENSOR, 3), (3 * TENSOR, 2), (6 * TENSOR - 1, 2), (6 * TENSOR, 1)]
)
def test_short_memory_takes_several_sweeps(memory, number):
    """Six tensors are watched besides the input: a, n, e, f, i, and e a second time for its other algorithm."""
    config = QuantConfig(
        skip_fusion_layers=("conv1",), override_layer_configs={"conv4": LayerConfig(activation=Hfmg())}
    )
    m = network()
    m.graph.node.add(op_type="Conv", name="conv5", input=["e", "w2"], output=["unused"]).attribute.append(
        onnx.helper.make_attribute("pads", [1, 1, 1, 1])
    )
    m.graph.output.append(onnx.helper.make_tensor_value_info("unused", 1, ["N", 4, 8, 8]))
    counts = []
    quantize_onnx(m, config, calibration=passes_over(BATCHES[:2], counts), memory_limit=memory)
    assert len(counts) == number


def test_batches_of_different_sizes_change_no_bit(cores):
    batches = [draw(1 + n % 3, 4, 8, 8, seed=n) for n in range(10)]
    found = []
    for lanes, memory in ((1, None), (8, None), (3, TENSOR), (2, 1)):
        cores(lanes)
        found.append(texts_and_bytes(quantize_onnx(network(), MIXED, calibration=batches, memory_limit=memory)))
    assert found[1:] == found[:1] * 3


def test_a_tensor_of_unknown_shape_changes_no_bit(cores):
    """How many rows pass depends on the values; the tensor counts as much as the largest one."""
    m = model(
        """
        g (float[N, 8] x) => (float[M, 8] y) {
          [one] a = MatMul (x, w1)
          row = ReduceSum <keepdims = 0> (a, axes)
          some = Greater (row, zero)
          [some_rows] b = Compress <axis = 0> (a, some)
          [two] c = MatMul (b, w2)
          [three] y = MatMul (c, w3)
        }
        """,
        {
            **{f"w{n}": draw(8, 8, seed=n) for n in (1, 2, 3)},
            "axes": np.array([1], np.int64),
            "zero": np.float32(0),
        },
    )
    batches = [draw(16, 8, seed=n) for n in range(12)]
    found, counts = [], []
    for lanes, memory in ((1, None), (8, None), (4, 1), (2, 600)):
        cores(lanes)
        source = passes_over(batches, counts)
        config = QuantConfig(override_layer_configs={"two": LayerConfig(activation=Hfmg())})
        found.append(texts_and_bytes(quantize_onnx(m, config, calibration=source, memory_limit=memory)))
    assert found[1:] == found[:1] * 3
    assert len(counts) == 1 + 1 + 2 + 2


@pytest.mark.parametrize("lanes", LANES)
def test_a_source_may_reuse_its_arrays(lanes, plain, cores):
    def overwritten():
        buffer = np.empty_like(BATCHES[0])
        for batch in BATCHES:
            buffer[:] = batch
            yield {"x": buffer}
            buffer[:] = np.nan

    cores(lanes)
    assert texts_and_bytes(quantize_onnx(network(), MIXED, calibration=overwritten())) == plain


@pytest.mark.parametrize("lanes", LANES)
def test_infinity_in_one_batch_leaves_its_layers_float(lanes, cores, caplog):
    m = model(
        """
        g (float[N, 4] x) => (float[N, 4] y) {
          [one] a = MatMul (x, w1)
          [inverse] b = Reciprocal (x)
          [two] c = MatMul (b, w2)
          [three] d = MatMul (b, w3)
          [sum] y = Sum (a, c, d)
        }
        """,
        {f"w{n}": draw(4, 4, seed=n) for n in (1, 2, 3)},
    )
    batches = [np.abs(draw(5, 4, seed=n)) + 1 for n in range(12)]
    batches[7][3, 2] = 0
    cores(lanes)
    with caplog.at_level(logging.WARNING, "amct_onnx"):
        result = quantize_onnx(m, calibration=batches, override_layer_configs={"three": LayerConfig(activation=Hfmg())})
    assert list(result.params) == ["one"]
    assert [line for line in caplog.messages if "holds NaN or inf" in line] == [
        f"layer {name!r} stays float: its input 'b' holds NaN or inf on the calibration data"
        for name in ("two", "three")
    ]
    expected = IfmrObserver(Ifmr(), asymmetric=True)
    for batch in batches:
        expected.update(batch)
    assert numbers(result.params["one"].activation) == numbers(expected.params())


# Inputs


@pytest.mark.parametrize("lanes", LANES)
def test_inputs_alone_take_one_sweep_and_no_memory(lanes, cores):
    m = model(
        """
        g (float[N, 3, 8, 8] x, float[N, 4] v) => (float[N, 3, 8, 8] y, float[N, 4] z) {
          [conv] y = Conv <pads = [1, 1, 1, 1]> (x, w1)
          [matmul] z = MatMul (v, w2)
        }
        """,
        {"w1": draw(3, 3, 3, 3), "w2": draw(4, 4)},
    )
    batches = [(draw(2, 3, 8, 8, seed=n), draw(2, 4, seed=n)) for n in range(9)]
    cores(lanes)
    result = quantize_onnx(m, calibration=iter(batches), memory_limit=1)
    for name, position in (("conv", 0), ("matmul", 1)):
        expected = IfmrObserver(Ifmr(), asymmetric=True)
        for batch in batches:
            expected.update(batch[position])
        assert numbers(result.params[name].activation) == numbers(expected.params())


def test_an_input_takes_no_sweep_of_its_own():
    """One tensor besides the input: it may be larger than the memory, and the data are read once nonetheless."""
    m = model(
        "g (float[N, 4] x) => (float[N, 4] y) { [one] a = MatMul (x, w1) [two] y = MatMul (a, w2) }",
        {"w1": draw(4, 4), "w2": draw(4, 4)},
    )
    quantize_onnx(m, calibration=iter([draw(8, 4)]), memory_limit=1)


def test_data_that_can_be_read_once_need_memory_for_one_sweep():
    with pytest.raises(DataError, match=r"can be read only once, .* give a list, .* memory_limit$"):
        quantize_onnx(network(), MIXED, calibration=iter(BATCHES), memory_limit=TENSOR)
    quantize_onnx(network(), MIXED, calibration=iter(BATCHES), memory_limit=10 * TENSOR)


# Sweeps


def groups(sizes, memory):
    watches = [Watch(tensor=str(n), observer=None, size=size) for n, size in enumerate(sizes)]
    return [[watch.size for watch in group] for group in sweeps(watches, Budget(cores=1, memory=memory))]


@pytest.mark.parametrize(
    ("sizes", "memory", "expected"),
    [
        ([], 10, []),
        ([3], 10, [[3]]),
        ([30], 10, [[30]]),
        ([5, 5], 10, [[5, 5]]),
        ([5, 5, 1], 10, [[5, 5], [1]]),
        ([5, 6], 10, [[5], [6]]),
        ([30, 5, 5], 10, [[30], [5, 5]]),
        ([5, 30, 5], 10, [[5], [30], [5]]),
        ([0, 30], 10, [[0, 30]]),
        ([30, 0, 0], 10, [[30, 0, 0]]),
        ([5, 5, 0, 5], 10, [[5, 5, 0], [5]]),
        ([0, 0], 0, [[0, 0]]),
        ([1, 1], 0, [[1], [1]]),
    ],
)
def test_watches_are_grouped_as_memory_allows(sizes, memory, expected):
    assert groups(sizes, memory) == expected


class Weighed:
    """A session that notes how many bytes of its outputs are alive at a time, and how many runs."""

    def __init__(self, inner):
        self.inner, self.lock = inner, threading.RLock()
        self.alive = self.most = self.running = self.most_running = 0

    def run(self, feed, what):
        with self.lock:
            self.running += 1
            self.most_running = max(self.most_running, self.running)
        values = self.inner.run(feed, what)
        for value in values.values():
            with self.lock:
                self.alive += value.nbytes
                self.most = max(self.most, self.alive)
            weakref.finalize(value, self.release, value.nbytes)
        with self.lock:
            self.running -= 1
        return values

    def release(self, nbytes):
        with self.lock:
            self.alive -= nbytes


@pytest.mark.parametrize("limit", [1, 2, 3, 5, 6, 12, 13, 1000])
def test_exposed_tensors_stay_inside_the_memory(limit, cores, monkeypatch):
    """One tensor is taken where even that is too much; the cores are used where memory allows."""
    sessions = []

    def weighed(*args, **kwargs):
        sessions.append(Weighed(open_session(*args, **kwargs)))
        return sessions[-1]

    open_session = observation.open_session
    monkeypatch.setattr(observation, "open_session", weighed)
    cores(4)
    quantize_onnx(network(), MIXED, calibration=BATCHES, memory_limit=limit * TENSOR - 1)
    assert max(session.most for session in sessions) <= max(limit - 1, 1) * TENSOR
    if limit < 3:
        assert max(session.most_running for session in sessions) == 1


@pytest.mark.parametrize("lanes", LANES)
def test_as_many_lanes_are_used_as_there_are_cores(lanes, cores, monkeypatch):
    used = []

    def note(*args, lanes, **kwargs):
        used.append(lanes)
        show(*args, lanes=lanes, **kwargs)

    show = observation.show_batches
    monkeypatch.setattr(observation, "show_batches", note)
    cores(lanes)
    quantize_onnx(network(), MIXED, calibration=BATCHES[:2])
    assert used == [lanes]


def test_threads_and_lanes_share_the_cores(monkeypatch):
    opened = []

    def note(light, what, *, threads):
        opened.append(threads)
        return open_session(light, what, threads=threads)

    open_session = observation.open_session
    monkeypatch.setattr(observation, "open_session", note)
    for memory in (1000, 400, 200, 100, 1):
        watch = Watch(tensor="a", observer=Seen(), size=100)
        feeds = [{"x": draw(2, 4)}]
        observe_batches(detached(chain_of("a")), [watch], feeds, Budget(cores=8, memory=memory))
    assert opened == [1, 2, 4, 8, 8]


# What is computed


class Seen:
    """An observer that keeps what it is shown."""

    def __init__(self):
        self.arrays = []

    def update(self, array):
        self.arrays.append(array)


def chain_of(*names):
    """x through one Neg after the other; the outputs are named."""
    text = "".join(f"{name} = Neg ({before})" for before, name in zip(("x", *names), names, strict=False))
    return model(f"g (float[N, 4] x) => (float[N, 4] {names[-1]}) {{ {text} }}")


def left_of(m, *tensors):
    return exposing(detached(m), [Watch(tensor=name, observer=None) for name in tensors])


def test_what_leads_to_no_watched_tensor_is_not_computed():
    light = left_of(network(), "e", "n")
    assert [node.name for node in light.proto.graph.node] == ["conv1", "norm", "conv2", "side", "join", "relu"]
    assert [value.name for value in light.proto.graph.output] == ["e", "n"]
    assert set(initializers(light.whole())) == {"w1", "b1", "w2", "w3", "scale", "shift", "mean", "var"}


def test_readers_of_what_is_not_watched_stay_so_that_nothing_else_is_fused():
    """Alone with the Mul, the first convolution would be fused with it, and compute other bits."""
    m = model(
        """
        g (float[N, 4, 8, 8] x) => (float[N, 4, 8, 8] y, float[N, 4, 8, 8] z) {
          a = Conv <pads = [1, 1, 1, 1]> (x, w1)
          b = Mul (a, k)
          y = Conv <pads = [1, 1, 1, 1]> (b, w2)
          c = Neg (a)
          d = Exp (c)
          z = Conv <pads = [1, 1, 1, 1]> (d, w3)
        }
        """,
        {**{f"w{n}": draw(4, 4, 3, 3, seed=n) for n in (1, 2, 3)}, "k": draw(1, 4, 1, 1)},
    )
    assert [n.output[0] for n in left_of(m, "b").proto.graph.node] == ["a", "b", "c", "d", "z"]
    assert [n.output[0] for n in left_of(m, "a", "b").proto.graph.node] == ["a", "b"]
    seen = []
    for names in (("a", "b", "d"), ("b",), ("b", "d")):
        watches = [Watch(tensor=name, observer=Seen()) for name in names]
        observe_batches(detached(m), watches, [{"x": draw(2, 4, 8, 8)}], Budget(cores=1, memory=1 << 30))
        seen += [watch.observer.arrays[0] for watch in watches if watch.tensor == "b"]
    assert all(np.array_equal(array, seen[0]) for array in seen)


def test_what_a_body_reads_is_computed():
    m = model(
        """
        g (float[4] x) => (float[4] y, float[4] z) {
          a = Neg (x)
          b = Exp (x)
          c = Abs (x)
          sum = ReduceSum <keepdims = 0> (x)
          is = Greater (sum, zero)
          d = If <
            then_branch = t () => (float[4] r) { r = Add (a, large) },
            else_branch = e () => (float[4] s) { s = Identity (b) }
          > (is)
          y = Neg (d)
          z = Neg (c)
        }
        """,
        {"zero": np.float32(0), "large": draw(4)},
    )
    light = left_of(m, "d")
    assert [node.output[0] for node in light.proto.graph.node] == ["a", "b", "sum", "is", "d"]
    watch = Watch(tensor="d", observer=Seen())
    observe_batches(detached(m), [watch], [{"x": np.ones(4, np.float32)}], Budget(cores=1, memory=1 << 30))
    np.testing.assert_array_equal(watch.observer.arrays[0], draw(4) - 1)


def test_a_model_keeps_its_nodes_where_only_inputs_are_watched():
    m = chain_of("a", "b")
    assert nodes_as_text(left_of(m, "x").proto) == nodes_as_text(m)


# Order and errors


class Fake:
    """A session that waits, fails, or gives the numbers of the batches."""

    def __init__(self, waits=None, fails=()):
        self.waits, self.fails = waits or {}, fails

    def run(self, feed, what):
        batch = int(feed["x"][0])
        self.waits.get(batch, lambda: None)()
        if batch in self.fails:
            raise ModelError(f"fails on {what}")
        return {"a": feed["x"] + 0}


def numbered(count):
    return [{"x": np.array([n])} for n in range(count)]


@pytest.mark.parametrize("lanes", LANES)
def test_observers_that_want_it_see_the_batches_in_order(lanes):
    rng = np.random.default_rng(0)
    waits = {n: lambda: time.sleep(rng.integers(0, 3) / 1000) for n in range(40)}
    ordered = Watch(tensor="a", observer=Seen(), in_order=True)
    mixed = Watch(tensor="x", observer=Seen())
    show_batches(Fake(waits), [mixed, ordered], numbered(40), lanes=lanes)
    assert [int(array[0]) for array in ordered.observer.arrays] == list(range(40))
    assert sorted(int(array[0]) for array in mixed.observer.arrays) == list(range(40))


@pytest.mark.parametrize("lanes", LANES)
@pytest.mark.parametrize("in_order", [True, False])
def test_the_first_batch_that_fails_is_named(lanes, in_order):
    """Batch 5 fails late, long after batches 6 to 9 have."""
    session = Fake({5: lambda: time.sleep(0.05)}, fails=(5, 6, 7, 9))
    watch = Watch(tensor="a", observer=Seen(), in_order=in_order)
    with pytest.raises(ModelError, match=r"^fails on calibration batch 5$"):
        show_batches(session, [watch], numbered(30), lanes=lanes)
    if in_order:
        assert [int(array[0]) for array in watch.observer.arrays] == list(range(5))


def test_batches_are_counted_from_the_first():
    with pytest.raises(ModelError, match=r"^fails on calibration batch 37$"):
        show_batches(Fake(fails=(5,)), [Watch(tensor="a", observer=Seen())], numbered(8), lanes=2, first=32)


def narrow():
    """Rows two by two: a batch of an odd number of them is refused by onnxruntime."""
    return model(
        """
        g (float[N, 4] x) => (float[M, 8] y) {
          [one] a = MatMul (x, w1)
          [pairs] b = Reshape (a, shape)
          [two] c = MatMul (b, w2)
          [three] y = MatMul (c, w3)
        }
        """,
        {
            "w1": draw(4, 4),
            "w2": draw(8, 8, seed=1),
            "w3": draw(8, 8, seed=2),
            "shape": np.array([-1, 8], np.int64),
        },
    )


def rows(*numbers):
    return [draw(number, 4, seed=n) for n, number in enumerate(numbers)]


@pytest.mark.parametrize("lanes", LANES)
@pytest.mark.parametrize("memory", [None, 1])
@pytest.mark.parametrize("algorithm", [Ifmr(), Hfmg()])
def test_the_first_batch_that_onnxruntime_refuses_is_named(lanes, memory, algorithm, cores):
    cores(lanes)
    config = QuantConfig(common_config=LayerConfig(activation=algorithm))
    with pytest.raises(ModelError, match=r"fails to run the model on calibration batch 4: .*Reshape"):
        quantize_onnx(narrow(), config, calibration=rows(2, 4, 2, 6, 3, 2, 5, 1, 2), memory_limit=memory)


@pytest.mark.parametrize("lanes", LANES)
def test_a_batch_that_fails_comes_before_a_later_one_that_cannot_be_read(lanes, cores):
    cores(lanes)
    batches = [*rows(2, 2, 3, 2), np.full((2, 4), np.nan, np.float32)]
    with pytest.raises(ModelError, match="on calibration batch 2:"):
        quantize_onnx(narrow(), calibration=batches)
    with pytest.raises(DataError, match=r"^batch 2, input 'x': holds NaN"):
        quantize_onnx(narrow(), calibration=[batches[0], batches[1], batches[4], batches[2]])


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("lanes", LANES)
def test_an_interruption_while_data_are_read_stops_everything(lanes, error, cores):
    def interrupted():
        yield from BATCHES[:9]
        raise error

    cores(lanes)
    with pytest.raises(error):
        quantize_onnx(network(), MIXED, calibration=interrupted())


@pytest.mark.parametrize("in_order", [True, False])
def test_an_observer_that_fails_stops_everything(in_order):
    class Broken(Seen):
        def update(self, array):
            if len(self.arrays) == 3:
                raise OSError("no space")
            super().update(array)

    watch = Watch(tensor="a", observer=Broken(), in_order=in_order)
    with pytest.raises(OSError, match="no space"):
        show_batches(Fake(), [watch], numbered(30), lanes=4)


def test_the_bar_is_gone_when_an_error_is_raised(capsys):
    """It is redrawn by a thread of its own, for as long as somebody is iterating."""
    with pytest.raises(ModelError) as caught:
        quantize_onnx(narrow(), calibration=rows(2, 4, 3, 2, 2), progress=True)
    assert caught.value.args
    assert not any(type(thread).__module__.startswith("rich") for thread in threading.enumerate())


# What the machine says


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"/proc/meminfo": "MemTotal: 900 kB\nMemAvailable: 600 kB\n"}, 600 * 1024),
        ({}, 4 << 30),
        ({"memory.max": "5000\n", "memory.current": "2000\n"}, 3000),
        ({"memory.max": "5000\n", "memory.current": "4900\n", "memory.stat": "file 9\ninactive_file 4000\n"}, 4100),
        ({"memory.max": "5000\n", "memory.current": "6000\n"}, 0),
        ({"memory.max": "max\n", "memory.current": "2000\n"}, 4 << 30),
        (
            {
                "memory/memory.limit_in_bytes": "5000\n",
                "memory/memory.usage_in_bytes": "4900\n",
                "memory/memory.stat": "inactive_file 1\ntotal_inactive_file 3000\n",
            },
            3100,
        ),
        ({"memory/memory.limit_in_bytes": f"{2**63 - 4096}\n", "memory/memory.usage_in_bytes": "4900\n"}, 4 << 30),
    ],
)
def test_free_memory_is_what_the_machine_or_the_container_says(files, expected, monkeypatch):
    found = {Path("/sys/fs/cgroup") / name: text for name, text in files.items()}
    monkeypatch.setattr(resources, "_text_of", lambda path: found.get(path, ""))
    assert resources.available_memory() == expected


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 64),
        ({"cpu.max": "max 100000\n"}, 64),
        ({"cpu.max": "250000 100000\n"}, 3),
        ({"cpu.max": "9900000 100000\n"}, 64),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 64),
        ({"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2),
        ({"cpu/cpu.cfs_quota_us": "20000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1),
    ],
)
def test_cores_are_those_that_the_container_is_given(files, expected, monkeypatch):
    found = {Path("/sys/fs/cgroup") / name: text for name, text in files.items()}
    monkeypatch.setattr(resources, "_text_of", lambda path: found.get(path, ""))
    monkeypatch.setattr(resources.os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    assert resources.available_cores() == expected


def test_observers_in_lanes_see_what_one_after_the_other_sees():
    """Against observers that were fed by hand, with values that widen HFMG's range again and again."""
    batches = [draw(500, seed=n) * 1.3**n for n in range(30)]
    by_hand = [IfmrObserver(Ifmr(), asymmetric=True), HfmgObserver(Hfmg(), asymmetric=False)]
    for batch in batches:
        for observer in by_hand:
            observer.update(-batch)
    for lanes in LANES:
        watches = [
            Watch(tensor="a", observer=IfmrObserver(Ifmr(), asymmetric=True)),
            Watch(tensor="a", observer=HfmgObserver(Hfmg(), asymmetric=False), in_order=True),
        ]
        feeds = [{"x": batch.reshape(-1, 4)} for batch in batches]
        observe_batches(detached(chain_of("a")), watches, feeds, Budget(cores=lanes, memory=1 << 30))
        found = [numbers(watch.observer.params()) for watch in watches]
        assert found == [numbers(observer.params()) for observer in by_hand]
