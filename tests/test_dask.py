"""Calibration on a Dask cluster of processes: the same bits, also where a worker is killed."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from graphs import model

from amct_onnx import ConfigError, DataError, ModelError, QuantConfig, quantize_onnx
from amct_onnx.config import LayerConfig
from amct_onnx.kernels.hfmg import Hfmg
from amct_onnx.kernels.ifmr import Ifmr, IfmrObserver
from amct_onnx.passes.observation import Budget, Watch
from amct_onnx.passes.shards import SHARD, observe_sharded
from amct_onnx.passes.weights import detached

dask = pytest.importorskip("dask")
distributed = pytest.importorskip("distributed")


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


BATCHES = [draw(2, 4, seed=n) for n in range(3 * SHARD + 2)]


def network():
    """The middle layer's weight is large enough to stand beside the message."""
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
            "w2": draw(8, 512, seed=1),
            "w3": draw(512, 8, seed=2),
            "shape": np.array([-1, 8], np.int64),
        },
    )


MIXED = QuantConfig(override_layer_configs={"two": LayerConfig(activation=Hfmg())})


def texts_and_bytes(result):
    models = (m.SerializeToString(deterministic=True) for m in (result.deploy_model, result.fake_quant_model))
    return (result.record, result.config, *models)


@pytest.fixture(scope="module")
def client():
    """Two workers; a task that loses a second worker is given up."""
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 1, "distributed.comm.timeouts.connect": "10s"}),
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0", silence_logs="CRITICAL"
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


@pytest.fixture
def executor(client):
    client.wait_for_workers(2, timeout=20)
    return client.get_executor()


def test_a_cluster_gives_the_same_bits(executor):
    found = quantize_onnx(network(), calibration=BATCHES, executor=executor)
    assert texts_and_bytes(found) == texts_and_bytes(quantize_onnx(network(), calibration=BATCHES))
    with ThreadPoolExecutor(1) as one:
        expected = texts_and_bytes(quantize_onnx(network(), MIXED, calibration=BATCHES, executor=one))
    for memory in (None, 1):
        found = quantize_onnx(network(), MIXED, calibration=BATCHES, executor=executor, memory_limit=memory)
        assert texts_and_bytes(found) == expected


def test_workers_that_do_not_find_the_model_are_sent_it(executor, monkeypatch):
    """As on other machines."""

    def send(_, function, task):
        return executor.submit(function, replace(task, path="/no/such/path"))

    elsewhere = type("Elsewhere", (), {"submit": send})()
    found = quantize_onnx(network(), calibration=BATCHES, executor=elsewhere)
    assert texts_and_bytes(found) == texts_and_bytes(quantize_onnx(network(), calibration=BATCHES))


def test_the_batch_that_onnxruntime_refuses_is_named(executor):
    batches = list(BATCHES)
    for n in (SHARD + 4, SHARD + 6, 3 * SHARD):
        batches[n] = draw(3, 4)
    with pytest.raises(ModelError, match=rf"fails to run the model on calibration batch {SHARD + 4}: .*Reshape"):
        quantize_onnx(network(), calibration=batches, executor=executor)


def test_a_client_is_no_executor(client):
    with pytest.raises(ConfigError, match=r"give client\.get_executor\(\)$"):
        quantize_onnx(network(), calibration=BATCHES, executor=client)


def test_a_worker_that_is_killed_changes_nothing(client, executor):
    def feeds():
        for n, batch in enumerate(BATCHES):
            if n == 2 * SHARD:
                os.kill(next(iter(client.run(os.getpid).values())), signal.SIGKILL)
            yield batch

    found = quantize_onnx(network(), calibration=feeds(), executor=executor)
    assert texts_and_bytes(found) == texts_and_bytes(quantize_onnx(network(), calibration=BATCHES))


class Deadly(np.ndarray):
    """An array that kills whoever unpickles it, but for the process where it was made."""

    def __reduce_ex__(self, protocol):
        return kill_others, (os.getpid(), np.asarray(self))


def kill_others(pid, array):
    if os.getpid() != pid:
        os.kill(os.getpid(), signal.SIGKILL)
    return array.view(Deadly)


def test_a_batch_that_kills_every_worker_is_named(executor, caplog):
    feeds = [{"x": batch} for batch in BATCHES]
    feeds[SHARD] = {"x": BATCHES[0].view(Deadly)}
    watch = Watch(tensor="x", observer=IfmrObserver(Ifmr(), asymmetric=True))
    with pytest.raises(
        DataError, match=rf"^calibration batch {SHARD}: the process that computes it dies: exit status -9$"
    ):
        observe_sharded(detached(network()), [watch], feeds, Budget(cores=2, memory=1 << 30), executor)
    assert any("their worker failed (KilledWorker" in line for line in caplog.messages)
