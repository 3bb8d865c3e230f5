"""Calibration by executors: the same bits whoever computes, however often, and whoever dies while doing it."""

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from graphs import model

from amct_onnx import ConfigError, DataError, ModelError, QuantConfig, quantize_onnx
from amct_onnx.config import LayerConfig
from amct_onnx.kernels.dmq import Dmq
from amct_onnx.kernels.hfmg import Hfmg, HfmgObserver
from amct_onnx.kernels.ifmr import Ifmr, IfmrObserver
from amct_onnx.passes import session, shards
from amct_onnx.passes.observation import Budget, Watch
from amct_onnx.passes.shards import CARRIERS, SHARD, observe_sharded
from amct_onnx.passes.weights import detached

PLENTY = Budget(cores=2, memory=1 << 30)


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def network():
    """Weights large enough to stand beside the message; quantized ones are computed."""
    return model(
        """
        g (float[N, 12, 6, 6] x, float[N, 12, 1, 1] v) => (float[N, 12, 6, 6] y) {
          [conv1] a = Conv <pads = [1, 1, 1, 1]> (x, w1)
          [scaled] b = Mul (a, v)
          [relu] c = Relu (b)
          [conv2] d = Conv <pads = [1, 1, 1, 1]> (c, w2)
          [conv3] y = Conv <pads = [1, 1, 1, 1]> (d, w3)
        }
        """,
        {f"w{n}": draw(12, 12, 3, 3, seed=n) for n in (1, 2, 3)},
    )


BATCHES = [(draw(1, 12, 6, 6, seed=n), draw(1, 12, 1, 1, seed=n) * 1.1**n) for n in range(3 * SHARD + 5)]
IFMR = QuantConfig()
MIXED = QuantConfig(override_layer_configs={name: LayerConfig(activation=Hfmg()) for name in ("conv1", "conv3")})


def texts_and_bytes(result):
    models = (m.SerializeToString(deterministic=True) for m in (result.deploy_model, result.fake_quant_model))
    return (result.record, result.config, *models)


def quantized(config=IFMR, **kwargs):
    return texts_and_bytes(quantize_onnx(network(), config, calibration=BATCHES, **kwargs))


@pytest.fixture(scope="module")
def plain():
    return quantized()


@pytest.fixture(scope="module")
def by_shards():
    """IFMR and HFMG, computed by one worker."""
    with ThreadPoolExecutor(1) as executor:
        return quantized(MIXED, executor=executor)


@pytest.fixture(scope="module")
def processes():
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as executor:
        yield executor


@pytest.fixture(autouse=True)
def no_file_is_left(tmp_path, monkeypatch):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    yield
    assert os.listdir(tmp_path / "temporary") == []


# The same bits


@pytest.mark.parametrize("workers", [1, 2, 8])
@pytest.mark.parametrize("memory", [None, 1, 3000])
def test_threads_give_the_same_bits(workers, memory, plain, by_shards):
    with ThreadPoolExecutor(workers) as executor:
        assert quantized(executor=executor, memory_limit=memory) == plain
        assert quantized(MIXED, executor=executor, memory_limit=memory) == by_shards
    assert shards._opened == {}


@pytest.mark.parametrize("memory", [None, 1])
def test_processes_give_the_same_bits(memory, processes, plain, by_shards):
    assert quantized(executor=processes, memory_limit=memory) == plain
    assert quantized(MIXED, executor=processes, memory_limit=memory) == by_shards


FORK = """
import multiprocessing, sys
import numpy as np, onnx
from concurrent.futures import ProcessPoolExecutor
from amct_onnx import quantize_onnx
batches = [np.random.default_rng(n).normal(size=(1, 4)).astype(np.float32) for n in range(20)]
with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork")) as executor:
    print(quantize_onnx(sys.argv[1], calibration=batches, executor=executor).record)
"""


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="processes cannot be forked")
def test_processes_may_be_forked_off_whatever_threads_do(tmp_path):
    """Up to Python 3.13 that is how ProcessPoolExecutor starts them on Linux."""
    path = tmp_path / "net.onnx"
    text = "g (float[N, 4] x) => (float[N, 4] y) { [one] a = MatMul (x, w1) [two] y = MatMul (a, w2) }"
    path.write_bytes(model(text, {"w1": draw(4, 4), "w2": draw(4, 4)}).SerializeToString())
    run = subprocess.run([sys.executable, "-c", FORK, path], capture_output=True, text=True, timeout=60, check=True)
    batches = [draw(1, 4, seed=n) for n in range(20)]
    assert run.stdout.strip() == quantize_onnx(path, calibration=batches).record.strip()


@pytest.mark.parametrize("memory", [None, 1])
def test_balancing_by_workers_gives_the_same_bits(memory):
    config = QuantConfig(common_config=LayerConfig(balancer=Dmq()))
    with ThreadPoolExecutor(2) as executor:
        assert quantized(config, executor=executor, memory_limit=memory) == quantized(config)


def test_large_weights_are_mapped_by_all_workers(plain, monkeypatch):
    monkeypatch.setattr(session, "_LARGE", 5000)
    with ThreadPoolExecutor(2) as executor:
        assert quantized(executor=executor) == plain


# Shards


class Seen:
    """An observer that keeps the numbers of the batches, and what it took in at a time."""

    def __init__(self):
        self.batches, self.parts = [], []

    def update(self, array):
        self.batches.append(int(array[0]))

    def merge(self, other):
        self.parts.append(other.batches)

    @property
    def all(self):
        return [batch for part in self.parts for batch in part]


def reversing():
    return detached(model("g (float[N] x) => (float[N] y) { y = Neg (x) }"))


def numbered(number):
    return [{"x": np.array([n], np.float32)} for n in range(number)]


@pytest.mark.parametrize("number", [1, SHARD - 1, SHARD, SHARD + 1, 3 * SHARD, 3 * SHARD + 7])
@pytest.mark.parametrize("memory", [1, 1 << 30])
def test_shards_are_merged_in_the_order_of_the_data(number, memory):
    watches = [Watch(tensor="y", observer=Seen(), in_order=True), Watch(tensor="x", observer=Seen())]
    with ThreadPoolExecutor(3) as executor:
        observe_sharded(reversing(), watches, iter(numbered(number)), Budget(cores=1, memory=memory), executor)
    expected = [list(range(start, min(start + SHARD, number))) for start in range(0, number, SHARD)]
    assert watches[1].observer.parts == expected
    assert watches[0].observer.parts == [[-n for n in part] for part in expected]
    assert [watch.observer.batches for watch in watches] == [[], []]


def test_a_source_may_reuse_its_arrays():
    def overwritten():
        buffer = np.empty(1, np.float32)
        for n in range(40):
            buffer[:] = n
            yield {"x": buffer}
            buffer[:] = -1

    watch = Watch(tensor="x", observer=Seen())
    with ThreadPoolExecutor(2) as executor:
        observe_sharded(reversing(), [watch], overwritten(), PLENTY, executor)
    assert watch.observer.all == list(range(40))


class Inline(Executor):
    """Computes while one waits."""

    def submit(self, function, /, *args):
        future = Future()
        try:
            future.set_result(function(*args))
        except Exception as error:
            future.set_exception(error)
        return future


def test_what_has_come_back_is_merged_at_once():
    """So a long run holds no more than a short one."""
    watch = Watch(tensor="x", observer=Seen())

    def feeds():
        for n, feed in enumerate(numbered(5 * SHARD)):
            assert len(watch.observer.parts) == n // SHARD
            yield feed

    observe_sharded(reversing(), [watch], feeds(), PLENTY, Inline())
    assert len(watch.observer.parts) == 5


@pytest.mark.parametrize(("memory", "most"), [(1, 2), (10 * SHARD * 4, 10), (1 << 30, 30)])
def test_memory_bounds_the_shards_that_are_on_their_way(memory, most):
    class Counting(Executor):
        """Computes when the result is waited for; says then how many are waiting."""

        def __init__(self):
            self.waiting, self.most = [], 0

        def submit(self, function, /, *args):
            self.waiting.append((Future(), function, args))
            self.most = max(self.most, len(self.waiting))
            threading.Timer(0.02, self.compute).start()
            return self.waiting[-1][0]

        def compute(self):
            future, function, args = self.waiting.pop(0)
            future.set_result(function(*args))

    executor = Counting()
    observers = len(pickle.dumps((Watch(tensor="x", observer=Seen()),), protocol=5))
    budget = Budget(cores=1, memory=memory if memory == 1 else memory + 10 * observers)
    observe_sharded(reversing(), [Watch(tensor="x", observer=Seen())], numbered(30 * SHARD), budget, executor)
    assert executor.most <= most + 1


# Workers elsewhere


class Elsewhere(Executor):
    """Workers on machines of their own, any of which takes a task: each keeps its session, and none sees the path."""

    def __init__(self, number, monkeypatch):
        self.homes, self.monkeypatch = [{} for _ in range(number)], monkeypatch
        self.rng, self.lock = np.random.default_rng(number), threading.Lock()
        self.threads = ThreadPoolExecutor(number)
        self.models = self.tasks = 0

    def submit(self, function, /, task):
        return self.threads.submit(self.compute, function, pickle.dumps(task))

    def compute(self, function, sent):
        with self.lock:
            task = pickle.loads(sent)
            self.tasks += 1
            self.models += task.model is not None
            self.monkeypatch.setattr(shards, "_opened", self.homes[self.rng.integers(len(self.homes))])
            try:
                return pickle.loads(pickle.dumps(function(replace(task, path="/no/such/path"))))
            finally:
                self.monkeypatch.setattr(shards, "_opened", {})

    def shutdown(self, wait=True, *, cancel_futures=False):
        self.threads.shutdown(wait, cancel_futures=cancel_futures)


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("memory", [1, 1 << 30])
def test_the_model_is_sent_to_workers_that_do_not_find_it(workers, memory, monkeypatch):
    watch = Watch(tensor="x", observer=Seen())
    with Elsewhere(workers, monkeypatch) as executor:
        observe_sharded(reversing(), [watch], numbered(40 * SHARD), Budget(cores=1, memory=memory), executor)
    assert watch.observer.all == list(range(40 * SHARD))
    assert 1 <= executor.models <= workers + 2 * CARRIERS


def test_workers_elsewhere_give_the_same_bits(plain, by_shards, monkeypatch):
    with Elsewhere(2, monkeypatch) as executor:
        assert quantized(executor=executor) == plain
        assert quantized(MIXED, executor=executor) == by_shards


def test_a_path_that_holds_something_else_is_not_believed(plain, tmp_path):
    (tmp_path / "other").write_bytes(b"of another run")

    class Misled(Inline):
        def submit(self, function, /, task):
            return super().submit(function, replace(task, path=str(tmp_path / "other")))

    assert quantized(executor=Misled()) == plain


# Workers that die


class Breaking(Inline):
    """Loses its processes at some submission, as ProcessPoolExecutor does."""

    def __init__(self, at, then_refuses=True):
        self.at, self.then_refuses, self.number = at, then_refuses, 0

    def submit(self, function, /, *args):
        self.number += 1
        if self.number == self.at:
            future = Future()
            future.set_exception(BrokenProcessPool("a process died"))
            return future
        if self.number > self.at and self.then_refuses:
            raise BrokenProcessPool("there is no process")
        return super().submit(function, *args)


@pytest.mark.parametrize("at", [1, 3])
def test_shards_that_an_executor_loses_are_computed_here(at, caplog):
    watch = Watch(tensor="y", observer=Seen(), in_order=True)
    observe_sharded(reversing(), [watch], numbered(2 * SHARD + 2), PLENTY, Breaking(at))
    assert watch.observer.all == [-n for n in range(2 * SHARD + 2)]
    lost = f"calibration batches {SHARD * (at - 1)} to {min(SHARD * at, 2 * SHARD + 2) - 1} are computed again"
    assert sum(line.startswith(lost) for line in caplog.messages) == 1
    assert sum("takes no more work" in line for line in caplog.messages) == (at < 3)


def test_a_shard_that_an_executor_loses_once_is_all_that_is_computed_here(by_shards, caplog):
    assert quantized(MIXED, executor=Breaking(2, then_refuses=False)) == by_shards
    assert len(caplog.messages) == 1


@pytest.mark.parametrize("error", [OSError("the wire is cut"), SystemExit(3), KeyboardInterrupt()])
def test_whatever_befalls_a_worker_its_shard_is_computed_here(error):
    class Failing(Inline):
        def submit(self, function, /, task):
            future = super().submit(function, task)
            if task.first == SHARD:
                future = Future()
                future.set_exception(error)
            return future

    watch = Watch(tensor="x", observer=Seen())
    observe_sharded(reversing(), [watch], numbered(3 * SHARD), PLENTY, Failing())
    assert watch.observer.all == list(range(3 * SHARD))


def test_an_executor_that_was_shut_down_is_done_without():
    executor = ThreadPoolExecutor(1)
    executor.shutdown()
    watch = Watch(tensor="x", observer=Seen())
    observe_sharded(reversing(), [watch], numbered(SHARD + 1), PLENTY, executor)
    assert watch.observer.all == list(range(SHARD + 1))


class Odd(np.ndarray):
    """An array that does something when it is unpickled."""

    @classmethod
    def of(cls, array, do, *args):
        made = array.view(cls)
        made.done = do, args
        return made

    def __array_finalize__(self, other):
        self.done = getattr(other, "done", None)

    def __reduce_ex__(self, protocol):
        do, args = self.done
        return do, (*args, np.asarray(self))


def exit_with(status, array):
    os._exit(status)


def print_it(array):
    os.write(1, b"noise")
    return array


def kill_once(path, array):
    try:
        Path(path).touch(exist_ok=False)
    except FileExistsError:
        return array
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def mortal():
    """All processes are there: an executor that starts one while another dies may wait for it forever."""
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as executor:
        for future in [executor.submit(time.sleep, 0.1) for _ in range(2)]:
            future.result()
        yield executor


def test_a_worker_that_is_killed_changes_nothing(mortal, tmp_path, caplog):
    feeds = numbered(SHARD + 5)
    feeds[SHARD + 3] = {"x": Odd.of(feeds[SHARD + 3]["x"], kill_once, str(tmp_path / "killed"))}
    watch = Watch(tensor="y", observer=Seen(), in_order=True)
    observe_sharded(reversing(), [watch], feeds, PLENTY, mortal)
    assert (tmp_path / "killed").exists()
    assert watch.observer.all == [-n for n in range(SHARD + 5)]
    assert any("their worker failed (BrokenProcessPool" in line for line in caplog.messages)


def test_workers_that_are_killed_while_they_compute_change_nothing(mortal):
    def feeds():
        for n, feed in enumerate(numbered(2 * SHARD)):
            if n == SHARD:
                for pid in list(mortal._processes):
                    os.kill(pid, signal.SIGKILL)
            yield feed

    watch = Watch(tensor="y", observer=Seen(), in_order=True)
    observe_sharded(reversing(), [watch], feeds(), PLENTY, mortal)
    assert watch.observer.all == [-n for n in range(2 * SHARD)]


def test_a_batch_that_kills_every_process_is_named(mortal):
    feeds = numbered(SHARD)
    feeds[1] = {"x": Odd.of(feeds[1]["x"], exit_with, 3)}
    with pytest.raises(DataError, match=r"^calibration batch 1: the process that computes it dies: exit status 3$"):
        observe_sharded(reversing(), [Watch(tensor="x", observer=Seen())], feeds, PLENTY, mortal)


def test_what_is_printed_while_a_shard_is_computed_here_does_no_harm():
    feeds = [{"x": Odd.of(feed["x"], print_it)} for feed in numbered(3)]
    watch = Watch(tensor="x", observer=Seen())
    observe_sharded(reversing(), [watch], feeds, PLENTY, Breaking(0))
    assert watch.observer.parts == [[0, 1, 2]]


# Errors


def narrow():
    """Rows two by two: a batch of an odd number of them is refused by onnxruntime."""
    return model(
        """
        g (float[N, 4] x) => (float[M, 8] y) {
          [one] a = MatMul (x, w1)
          [pairs] b = Reshape (a, shape)
          [two] y = MatMul (b, w2)
        }
        """,
        {"w1": draw(4, 4), "w2": draw(8, 8, seed=1), "shape": np.array([-1, 8], np.int64)},
    )


def rows(number, *odd):
    return [draw(3 if n in odd else 2, 4, seed=n) for n in range(number)]


REFUSED = r"fails to run the model on calibration batch 20: .*Reshape"


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("memory", [None, 1])
def test_the_first_batch_that_onnxruntime_refuses_is_named(workers, memory):
    with ThreadPoolExecutor(workers) as executor, pytest.raises(ModelError, match=REFUSED):
        quantize_onnx(narrow(), calibration=rows(50, 20, 22, 33), executor=executor, memory_limit=memory)


def test_the_batch_that_onnxruntime_refuses_in_another_process_is_named(processes):
    with pytest.raises(ModelError, match=REFUSED):
        quantize_onnx(narrow(), calibration=rows(50, 20, 22, 33), executor=processes)


def test_the_batch_that_onnxruntime_refuses_after_the_executor_broke_is_named():
    with pytest.raises(ModelError, match=REFUSED):
        quantize_onnx(narrow(), calibration=rows(21, 20), executor=Breaking(2))


def test_a_batch_that_fails_comes_before_a_later_one_that_cannot_be_read():
    batches = rows(40, 20)
    batches[24] = batches[24] * np.float32(np.nan)
    with ThreadPoolExecutor(2) as executor:
        with pytest.raises(ModelError, match=REFUSED):
            quantize_onnx(narrow(), calibration=batches, executor=executor)
        batches[18] = batches[24]
        with pytest.raises(DataError, match=r"^batch 18, input 'x': holds NaN"):
            quantize_onnx(narrow(), calibration=batches, executor=executor)


@pytest.mark.parametrize("error", [ModelError, KeyboardInterrupt])
def test_after_an_error_the_executor_is_not_kept_busy(error):
    """Of twenty shards only the first is computed, and the second begun."""

    class Gated(Executor):
        def __init__(self):
            self.futures, self.threads = [], ThreadPoolExecutor(1)
            self.gate, self.all_sent = threading.Event(), threading.Event()

        def submit(self, function, /, task):
            self.futures.append(self.threads.submit(self.compute, function, task))
            if len(self.futures) == 20:
                self.all_sent.set()
            return self.futures[-1]

        def compute(self, function, task):
            (self.all_sent if task.first == 0 and error is ModelError else self.gate).wait()
            return function(task)

    def feeds():
        yield from ({"x": draw(3 if n == 4 else 2, 4)} for n in range(20 * SHARD))
        if error is KeyboardInterrupt:
            raise error

    executor = Gated()
    with executor.threads:
        with pytest.raises(error):
            quantize_onnx(narrow(), calibration=feeds(), executor=executor)
        executor.gate.set()
    assert [future.cancelled() for future in executor.futures[2:]] == [True] * 18


def test_workers_leave_float_what_is_not_finite(caplog):
    m = model(
        """
        g (float[N, 4] x) => (float[N, 4] y) {
          [one] a = MatMul (x, w1)
          [inverse] b = Reciprocal (x)
          [two] c = MatMul (b, w2)
          [sum] y = Sum (a, c)
        }
        """,
        {"w1": draw(4, 4), "w2": draw(4, 4, seed=1)},
    )
    batches = [np.abs(draw(3, 4, seed=n)) + 1 for n in range(40)]
    batches[20][1, 1] = 0
    with ThreadPoolExecutor(2) as executor:
        found = quantize_onnx(m, calibration=batches, executor=executor)
    assert found.record == quantize_onnx(m, calibration=batches).record
    assert list(found.params) == ["one"]


@pytest.mark.parametrize(
    ("executor", "found"),
    [
        (object(), "<object object"),
        ("threads", "'threads'"),
        (4, "4"),
        (False, "False"),
        ([], r"\[\]"),
        (ProcessPoolExecutor, "the class ProcessPoolExecutor"),
    ],
)
def test_what_is_no_executor_is_refused(executor, found):
    with pytest.raises(ConfigError, match=rf"^executor must be an Executor of concurrent\.futures, .* found {found}"):
        quantize_onnx("no such model", executor=executor)


def test_futures_must_be_those_of_concurrent_futures():
    """As Dask's own client has them."""

    class Client:
        def submit(self, function, *args):
            return object()

    with pytest.raises(ConfigError, match=r"submit\(\) returns a builtins.object.* give client.get_executor\(\)$"):
        quantize_onnx(narrow(), calibration=rows(2), executor=Client())


@pytest.mark.parametrize("limit", [0, -1, True, 1.5, 1e9, "1000", np.float64(3)])
def test_the_memory_limit_is_a_positive_integer(limit):
    with pytest.raises(ConfigError, match=r"^memory_limit must be (an integer|at least 1), found "):
        quantize_onnx("no such model", memory_limit=limit)


# HFMG


def merged(batches, make):
    """What shards find, by hand."""
    total = make()
    for start in range(0, len(batches), SHARD):
        part = make()
        for batch in batches[start : start + SHARD]:
            part.update(batch)
        total.merge(part)
    return total


def one_by_one(batches, make):
    total = make()
    for batch in batches:
        total.update(batch)
    return total


SHAPES = {
    "normal": lambda rng, n: rng.normal(size=2000),
    "uniform": lambda rng, n: rng.uniform(-1, 2, size=2000),
    "laplace": lambda rng, n: rng.laplace(size=2000),
    "lognormal": lambda rng, n: rng.lognormal(size=2000),
    "rectified": lambda rng, n: np.maximum(rng.normal(size=2000), 0),
    "heavy tails": lambda rng, n: rng.standard_t(2, size=2000),
    "growing": lambda rng, n: rng.normal(size=2000) * 1.05**n,
    "wandering": lambda rng, n: rng.normal(size=2000) + n / 10,
    "two heaps": lambda rng, n: rng.normal(size=2000) / 10 + rng.choice([-3, 5], size=2000),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("bins", "asymmetric"), [(1024, False), (4096, True)])
def test_hfmg_by_shards_has_the_same_range_and_all_but_the_same_histogram(shape, bins, asymmetric):
    """Pouring bins into wider ones moves a value by less than one of these, and evenly to both sides of an edge.

    So the histograms of two orders of pouring hold the same values over the same range, and differ by less than a bin
    for each value on the average. The range that the search finds in them may differ by more, where two are all but
    equally good; but then it is all but equally good.
    """
    rng = np.random.default_rng(0)
    batches = [SHAPES[shape](rng, n).astype(np.float32) for n in range(128)]

    def make():
        return HfmgObserver(Hfmg(num_of_bins=bins), asymmetric=asymmetric)

    found, plain = merged(batches, make), one_by_one(batches, make)
    ours, other = found._histogram, plain._histogram
    assert (found.count, ours.low, ours.high) == (plain.count, other.low, other.high)
    moved = np.abs(np.cumsum(ours.counts) - np.cumsum(other.counts)).sum() / found.count
    assert moved < 1
    values = np.concatenate(batches).astype(np.float64)
    errors = [squared_error(values, observer.params()) for observer in (found, plain)]
    assert errors[0] == pytest.approx(errors[1], rel=0.05)


def squared_error(values, params):
    scale, offset = float(params.scale), float(params.offset)
    return np.mean((np.clip(np.rint(values / scale) + offset, -128, 127) - offset - values / scale) ** 2) * scale**2


def test_an_executor_finds_what_its_shards_find_by_hand():
    batches = [draw(300, 1, seed=n) * 1.02**n for n in range(2 * SHARD + 3)]
    makes = [
        lambda: IfmrObserver(Ifmr(), asymmetric=True),
        lambda: HfmgObserver(Hfmg(), asymmetric=True),
        lambda: HfmgObserver(Hfmg(num_of_bins=1024), asymmetric=False),
    ]
    watches = [Watch(tensor="y", observer=make(), in_order=True) for make in makes]
    light = detached(model("g (float[N, 1] x) => (float[N, 1] y) { y = Neg (x) }"))
    with ThreadPoolExecutor(2) as executor:
        observe_sharded(light, watches, [{"x": -batch} for batch in batches], PLENTY, executor)
    for watch, make in zip(watches, makes, strict=True):
        expected, found = merged(batches, make).params(), watch.observer.params()
        assert (found.scale.item(), found.offset.item()) == (expected.scale.item(), expected.offset.item())


def test_a_worker_keeps_the_session_of_the_last_model(monkeypatch):
    opened = []

    def note(*args, **kwargs):
        opened.append(args)
        return session.open_session(*args, **kwargs)

    monkeypatch.setattr(shards, "open_session", note)
    watch = Watch(tensor="x", observer=Seen())
    observe_sharded(reversing(), [watch], numbered(5 * SHARD), PLENTY, Inline())
    assert len(opened) == 1
