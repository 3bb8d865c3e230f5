"""Models that keep what they are fed."""

import threading

import numpy as np
import onnx
import onnxruntime
import pytest

import amct_onnx as amct
from amct_onnx.data import input_specs
from amct_onnx.errors import DataError
from amct_onnx.formats.model_file import read_model, write_model
from amct_onnx.stepwise.keeping import Keeper, Keeping, kept_batches, note_loss, with_keepers

pytest.importorskip("onnxruntime_extensions", reason="AMCT_SO needs the extra [stepwise]")

MODEL = onnx.parser.parse_model(
    """<ir_version: 8, opset_import: ["" : 17]>
    g (float[N,3] x, int64[N] i, double[2] d, float16[N] h, bool[N] b, uint8[] u, int32[N] unused) => (float[N,3] y) {
        y = Relu(x)
        ignored = Identity(i)
    }"""
)
SPECS = input_specs(MODEL)


def feed(k):
    """Batch number `k`, every value of which says so."""
    return {
        "x": np.full((k + 1, 3), k, np.float32),
        "i": np.full(k + 1, 2**60 + k, np.int64),
        "d": np.array([k, 0.1]),
        "h": np.full(k + 1, k / 3, np.float16),
        "b": np.array([k % 2 == 1] * (k + 1)),
        "u": np.array(k, np.uint8),
        "unused": np.full(k + 1, -k, np.int32),
    }


def same(a, b):
    return all(a[name].dtype == b[name].dtype and np.array_equal(a[name], b[name]) for name in b)


@pytest.fixture
def keeping(tmp_path):
    """The path of a model that keeps three batches, and the folder where."""
    folder = tmp_path / "kept"
    folder.mkdir()
    path = tmp_path / "model.onnx"
    write_model(with_keepers(read_model(MODEL), SPECS, folder, 3), path)
    return path, folder


OPENERS = {
    "AMCT_SO": lambda path: onnxruntime.InferenceSession(str(path), amct.AMCT_SO, providers=["CPUExecutionProvider"]),
    "calibration_session": amct.calibration_session,
}


@pytest.fixture(params=list(OPENERS))
def opened(request):
    return OPENERS[request.param]


def test_inputs_of_any_type_are_kept_bit_by_bit(keeping, opened):
    path, folder = keeping
    session = opened(path)
    for k in range(5):
        (y,) = session.run(None, feed(k))
        assert np.array_equal(y, feed(k)["x"])
    kept = list(kept_batches(folder, SPECS, 3, "the loop")())
    assert len(kept) == 3
    assert all(same(batch, feed(k)) for k, batch in enumerate(kept))


def test_batches_of_several_threads_are_not_mixed_up(keeping, opened):
    path, folder = keeping
    session = opened(path)
    threads = [threading.Thread(target=session.run, args=(None, feed(k))) for k in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for batch in kept_batches(folder, SPECS, 3, "the loop")():
        assert same(batch, feed(int(batch["u"])))


def test_the_last_session_that_got_as_far_counts(keeping, opened):
    path, folder = keeping
    for numbers in ([0, 1, 2], [3, 4, 5], [6, 7]):
        session = opened(path)
        for k in numbers:
            session.run(None, feed(k))
    assert [int(batch["u"]) for batch in kept_batches(folder, SPECS, 3, "the loop")()] == [3, 4, 5]


def test_too_few_batches_are_counted(keeping, opened):
    path, folder = keeping
    opened(path)
    with pytest.raises(DataError, match=r"^the loop has not run the model; open it with .*AMCT_SO.* run 3 batches$"):
        kept_batches(folder, SPECS, 3, "the loop")
    for _ in range(2):  # two sessions do not add up
        session = opened(path)
        session.run(None, feed(0))
        session.run(None, feed(1))
    with pytest.raises(DataError, match=r"^the loop has run 2 of 3 batches in one session"):
        kept_batches(folder, SPECS, 3, "the loop")


def test_a_batch_that_cannot_be_written_is_told_afterwards(keeping, caplog):
    path, folder = keeping
    session = OPENERS["AMCT_SO"](path)
    folder.rmdir()
    folder.write_text("a file where the folder should be")
    session.run(None, feed(0))
    assert "a batch could not be kept" in caplog.text
    folder.unlink()
    folder.mkdir()
    note_loss(Keeper(folder=str(folder), index=0, total=1, batch_num=1), "no space left")
    with pytest.raises(DataError, match=r"^the loop: no space left$"):
        kept_batches(folder, SPECS, 3, "the loop")


def test_texts_cannot_be_kept(tmp_path):
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (string[N] s) => (string[N] t) { t = Identity(s) }'
    )
    with pytest.raises(DataError, match=r"input 's' of the model is object; its values cannot be kept"):
        with_keepers(read_model(model), input_specs(model), tmp_path, 1)


def test_a_batch_is_there_whole_or_not_at_all(tmp_path):
    keeping = Keeping()
    keeping.see(Keeper(folder=str(tmp_path), index=0, total=2, batch_num=1), np.zeros(3))
    assert list(tmp_path.iterdir()) == []
