"""What a calibration counts: fewer batches, more, several sessions, threads, and batches that fail."""

import logging
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from graphs import model
from onnxruntime_extensions import get_library_path
from stepwise_flow import LOOPS, Files

import amct_onnx as amct
from amct_onnx.formats.record import read_record
from amct_onnx.stepwise import observing

pytestmark = pytest.mark.usefixtures("one_thread")

BOTH = pytest.mark.parametrize("loop", LOOPS)

TEXT = """g (float[N, 4, 6, 6] x) => (float[N, 4, 6, 6] y, float[N, 4, 6, 6] z) {
    [conv] a = Conv <pads: ints = [1, 1, 1, 1]> (x, w)
    [relu] r = Relu (a)
    [last] y = Conv <pads: ints = [1, 1, 1, 1]> (r, v)
    [exp] e = Log (x)
    [odd] z = Conv <pads: ints = [1, 1, 1, 1]> (e, u)
}"""


def net():
    rng = np.random.default_rng(0)
    return model(TEXT, {name: (rng.normal(size=(4, 4, 3, 3)) * 0.3).astype(np.float32) for name in "wvu"})


def feeds(count, seed=1):
    """Positive numbers: the logarithm of others is no number."""
    rng = np.random.default_rng(seed)
    return [{"x": rng.uniform(0.5, 2 + seed, size=(2, 4, 6, 6)).astype(np.float32)} for _ in range(count)]


@pytest.fixture
def files(tmp_path):
    """Everything up to quantize_model, for three batches."""
    onnx.save(net(), tmp_path / "net.onnx")
    made = Files(tmp_path / "flow", tmp_path / "net.onnx")
    amct.create_quant_config(made.config, made.model, batch_num=3)
    amct.quantize_model(made.config, made.model, made.modified, made.record)
    return made


def session_of(loop, files):
    if loop == "AMCT_SO":
        return onnxruntime.InferenceSession(files.modified, amct.AMCT_SO, providers=["CPUExecutionProvider"])
    return amct.calibration_session(files.modified)


def expected(files, batches):
    return amct.quantize_onnx(files.model, files.config, calibration=batches).record


def record(files):
    return Path(files.record).read_text()


def first_line(files):
    return record(files).splitlines()[0]


@BOTH
def test_fewer_batches_are_refused_with_their_number(files, loop):
    assert first_line(files) == "# calibration: 0 of 3 batches have passed"
    with pytest.raises(amct.RecordError, match=r"record\.txt: 0 of 3 calibration batches have passed"):
        amct.save_model(files.modified, files.record, files.save_path)
    LOOPS[loop](files.modified, feeds(2))
    assert first_line(files) == "# calibration: 2 of 3 batches have passed"
    with pytest.raises(amct.RecordError, match=r"2 of 3 calibration batches have passed; run the model on 3 in one"):
        amct.save_model(files.modified, files.record, files.save_path)
    assert not Path(files.save_path).parent.exists()


def test_our_session_says_at_its_end_that_there_were_too_few(files, caplog):
    with caplog.at_level(logging.WARNING, "amct_onnx"):
        LOOPS["calibration_session"](files.modified, feeds(2))
    assert "2 of 3 batches have passed: no factors were written" in caplog.text


@BOTH
def test_more_batches_change_nothing(files, loop):
    batches = feeds(5)
    outputs = LOOPS[loop](files.modified, batches)
    assert len(outputs) == 5
    assert record(files) == expected(files, batches[:3])


@BOTH
def test_a_new_session_begins_anew(files, loop):
    LOOPS[loop](files.modified, feeds(2, seed=9))
    second = session_of(loop, files)
    second.run(None, feeds(1)[0])
    assert first_line(files) == "# calibration: 1 of 3 batches have passed"
    for feed in feeds(3)[1:]:
        second.run(None, feed)
    assert record(files) == expected(files, feeds(3))


@BOTH
def test_a_session_after_a_complete_one_replaces_it_only_when_it_is_complete_too(files, loop):
    LOOPS[loop](files.modified, feeds(3))
    complete, later = record(files), session_of(loop, files)
    for feed in feeds(2, seed=9):
        later.run(None, feed)
    assert record(files) == complete
    later.run(None, feeds(3, seed=9)[2])
    assert record(files) == expected(files, feeds(3, seed=9)) != complete


@BOTH
def test_two_sessions_do_not_mix(files, loop):
    one, other = session_of(loop, files), session_of(loop, files)
    for mine, theirs in zip(feeds(3), feeds(3, seed=9), strict=True):
        one.run(None, mine)
        other.run(None, theirs)
    assert record(files) == expected(files, feeds(3, seed=9))  # the last one to be complete


@BOTH
def test_batches_may_come_from_several_threads(files, loop):
    session = session_of(loop, files)
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda feed: session.run(None, feed), feeds(3)))
    assert record(files) == expected(files, feeds(3))


@BOTH
def test_a_batch_that_the_model_refuses_does_not_count(files, loop):
    session = session_of(loop, files)
    for feed in feeds(3)[:2]:
        session.run(None, feed)
    with pytest.raises(Exception, match="x"):
        session.run(None, {"x": np.ones((1, 3, 6, 6), np.float32)})
    session.run(None, feeds(3)[2])
    assert record(files) == expected(files, feeds(3))


@BOTH
def test_a_layer_that_sees_nan_stays_float_and_the_others_do_not(files, loop, caplog):
    batches = feeds(3)
    batches[1]["x"][0, 0, 0, 0] = -1
    with caplog.at_level(logging.WARNING, "amct_onnx"):
        LOOPS[loop](files.modified, batches)
        amct.save_model(files.modified, files.record, files.save_path)
    assert "layer 'odd' stays float: its input 'e' holds NaN or inf on the calibration data" in caplog.text
    assert set(read_record(files.record)) == {"conv", "last"}
    deploy = onnx.load(f"{files.save_path}_deploy_model.onnx")
    assert {node.name for node in deploy.graph.node if node.op_type == "AscendQuant"} == {"conv.quant", "last.quant"}


@BOTH
def test_quantizing_again_begins_anew(files, loop):
    LOOPS[loop](files.modified, feeds(3))
    amct.quantize_model(files.config, files.model, files.modified, files.record)
    assert first_line(files) == "# calibration: 0 of 3 batches have passed"
    LOOPS[loop](files.modified, feeds(3, seed=9))
    assert record(files) == expected(files, feeds(3, seed=9))


def test_an_error_inside_an_operator_does_not_end_the_process(files, monkeypatch):
    session = session_of("AMCT_SO", files)
    session.run(None, feeds(1)[0])
    with monkeypatch.context() as patch:
        patch.setattr(observing.Observing, "_see", raising(ValueError("no room")))
        session.run(None, feeds(1)[0])
    for feed in feeds(5):
        session.run(None, feed)
    assert first_line(files) == "# calibration failed: ValueError: no room"
    with pytest.raises(amct.RecordError, match=r"calibration failed: ValueError: no room"):
        amct.save_model(files.modified, files.record, files.save_path)
    LOOPS["AMCT_SO"](files.modified, feeds(3))
    assert record(files) == expected(files, feeds(3))


def test_an_interruption_inside_an_operator_is_raised_in_the_loop(files, monkeypatch):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background of a shell it is ignored
    try:
        _interrupt(session_of("AMCT_SO", files), monkeypatch)
    finally:
        signal.signal(signal.SIGINT, before)


def _interrupt(session, monkeypatch):
    monkeypatch.setattr(observing.Observing, "_see", raising(KeyboardInterrupt()))
    session.run(None, feeds(1)[0])
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012 - it comes while the user's loop does something
        for _ in range(1000):
            time.sleep(0.01)


def test_after_an_error_our_session_takes_no_more(files, monkeypatch):
    session = session_of("calibration_session", files)
    with monkeypatch.context() as patch:
        patch.setattr(observing.Observing, "_see", raising(ValueError("no room")))
        with pytest.raises(ValueError, match="no room"):
            session.run(None, feeds(1)[0])
    with pytest.raises(amct.DataError, match=r"an earlier batch failed \(ValueError no room\); open a new session"):
        session.run(None, feeds(1)[0])


def raising(error):
    def see(*arguments):
        raise error

    return see


def test_a_record_that_is_gone_does_not_end_the_process(files):
    Path(files.record).unlink()
    LOOPS["AMCT_SO"](files.modified, feeds(3))
    assert not Path(files.record).exists()
    with pytest.raises(amct.RecordError, match="which is not there"):
        LOOPS["calibration_session"](files.modified, feeds(3))


def test_a_session_in_other_threads_is_refused(files):
    assert amct.AMCT_SO is amct.AMCT_SO  # its operators are registered
    options = onnxruntime.SessionOptions()
    options.execution_mode = onnxruntime.ExecutionMode.ORT_PARALLEL
    options.register_custom_ops_library(get_library_path())
    session = onnxruntime.InferenceSession(files.modified, options, providers=["CPUExecutionProvider"])
    for feed in feeds(3):
        session.run(None, feed)
    assert "use run(), and ORT_SEQUENTIAL as execution mode" in first_line(files)


def test_our_session_returns_what_is_asked_for(files):
    with amct.calibration_session(files.modified) as session:
        y, z = session.run(None, feeds(1)[0])
        for names, wanted in ((["z"], [z]), (["z", "y"], [z, y])):
            for found, value in zip(session.run(names, feeds(1)[0]), wanted, strict=True):
                np.testing.assert_array_equal(found, value)
        with pytest.raises(amct.DataError, match="the model has no output 'w'"):
            session.run(["w"], feeds(1)[0])


def test_without_the_extra_amct_so_names_it_and_all_else_works(files):
    script = (
        "import sys; sys.modules['onnxruntime_extensions'] = None\n"
        "from amct_onnx import *\n"
        "import amct_onnx\n"
        "calibration_session(sys.argv[1])\n"
        "try: amct_onnx.AMCT_SO\n"
        "except NotAvailableError as error: print(error)\n"
        "from amct_onnx import AMCT_SO\n"
    )
    done = subprocess.run([sys.executable, "-c", script, files.modified], capture_output=True, text=True)
    assert "pip install 'amct_onnx[stepwise]'" in done.stdout
    assert "NotAvailableError: AMCT_SO needs onnxruntime-extensions" in done.stderr
