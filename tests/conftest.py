"""Fixtures that several files of tests share."""

import logging
import os

import onnxruntime
import pytest
from hypothesis import settings

# the first call of a kernel compiles it; without compilation a few examples show that the code says the same
EXAMPLES = 10 if os.environ.get("NUMBA_DISABLE_JIT") == "1" else 100
settings.register_profile("untimed", deadline=None, max_examples=EXAMPLES)
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
