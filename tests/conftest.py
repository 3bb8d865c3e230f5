"""Fixtures that several files of tests share."""

import onnxruntime
import pytest


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
