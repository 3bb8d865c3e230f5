"""Fixtures that several files of tests share."""

import logging

import onnxruntime
import pytest
from hypothesis import settings

settings.register_profile("untimed", deadline=None)  # the first call of a kernel compiles it
settings.load_profile("untimed")


@pytest.fixture(autouse=True)
def log_as_before():
    """The command line sets up the log of the process; the next test shall not see it."""
    log = logging.getLogger("amct_onnx")
    before = log.handlers[:], log.level, log.propagate
    yield
    log.handlers[:], log.level, log.propagate = before


@pytest.fixture(scope="module")
def one_thread():
    """The models are small: threads would cost more than they give."""
    plain = onnxruntime.SessionOptions

    def options():
        made = plain()
        made.intra_op_num_threads = 1
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnxruntime, "SessionOptions", options)
        yield
