"""AMCT_SO: onnxruntime's own session runs the nodes that observe, as operators in Python.

    session = onnxruntime.InferenceSession(modified_model, amct_onnx.AMCT_SO)

The operators come through onnxruntime-extensions. It hands over a tensor, but does not say for which session; that is
found on the stack, since a session runs its nodes in the thread that called it.
"""

from __future__ import annotations

import _thread
import logging
import sys
from threading import Lock, Timer
from types import FrameType
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from amct_onnx.errors import ModelError, NotAvailableError
from amct_onnx.kernels.dmq import Dmq
from amct_onnx.stepwise.keeping import KEEPERS, Keeping, keeper_of, note_loss
from amct_onnx.stepwise.observing import Observing
from amct_onnx.stepwise.observing_nodes import ALGORITHMS, ATTRIBUTE, DOMAIN, HALF_DOMAIN, observation_of
from amct_onnx.stepwise.record_state import BALANCING, CALIBRATION, note_failure

_log = logging.getLogger("amct_onnx")

_opened: WeakKeyDictionary[object, Observing] = WeakKeyDictionary()
_kept: WeakKeyDictionary[object, Keeping] = WeakKeyDictionary()
_lock = Lock()

_LATER = 0.1
"""Seconds until an interruption from the keyboard is raised again."""


def _see(array: NDArray[Any], settings: str) -> NDArray[np.float32]:
    """What the operators do. An exception would end the process, for it would be thrown through C++."""
    try:
        session = _running()
        with _lock:
            observing = _opened.setdefault(session, Observing())
        observing.see(observation_of(settings), array)
    except KeyboardInterrupt as error:
        _note(settings, error)
        Timer(_LATER, _thread.interrupt_main).start()  # back in the user's loop it does no harm
    except BaseException as error:
        _note(settings, error)
    return np.ones((), np.float32)


def _see_widened(array: NDArray[Any], settings: str) -> NDArray[np.float32]:
    """The same for a tensor that got one more axis in front."""
    return _see(array[0], settings)


def _keep(array: NDArray[Any], settings: str) -> NDArray[np.float32]:
    """What the operators do that keep what a model is fed."""
    try:
        session = _running()
        with _lock:
            keeping = _kept.setdefault(session, Keeping())
        keeping.see(keeper_of(settings), array)
    except KeyboardInterrupt as error:
        _note_loss(settings, error)
        Timer(_LATER, _thread.interrupt_main).start()
    except BaseException as error:
        _note_loss(settings, error)
    return np.ones((), np.float32)


def _running() -> onnxruntime.InferenceSession:
    """The session that runs."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        session = frame.f_locals.get("self")
        if isinstance(session, onnxruntime.InferenceSession) and not _is_parallel(session):
            return session
        frame = frame.f_back
    raise ModelError("the session runs its nodes in other threads; use run(), and ORT_SEQUENTIAL as execution mode")


def _is_parallel(session: onnxruntime.InferenceSession) -> bool:
    """Whether it runs some nodes in other threads."""
    return bool(session.get_session_options().execution_mode == onnxruntime.ExecutionMode.ORT_PARALLEL)


def _note(settings: str, error: BaseException) -> None:
    """Leave the error where `save_model` finds it; what cannot be written down is at least logged."""
    try:
        _log.error("calibration failed: %s", error)
        observation = observation_of(settings)
        phase = BALANCING if isinstance(observation.algorithm, Dmq) else CALIBRATION
        note_failure(observation.record_file, phase, f"{type(error).__name__}: {error}")
    except BaseException as second:
        _log.error("this cannot be written down either: %s", second)


def _note_loss(settings: str, error: BaseException) -> None:
    """Leave the error where `kept_batches` finds it; what cannot be written down is at least logged."""
    try:
        _log.error("a batch could not be kept: %s", error)
        note_loss(keeper_of(settings), f"{type(error).__name__}: {error}")
    except BaseException as second:
        _log.error("this cannot be written down either: %s", second)


def _options() -> onnxruntime.SessionOptions:
    try:
        from onnxruntime_extensions import PyCustomOpDef, get_library_path, onnx_op
    except ImportError as error:
        raise NotAvailableError(
            "AMCT_SO needs onnxruntime-extensions: pip install 'amct_onnx[stepwise]'; or use calibration_session, "
            "which needs nothing more"
        ) from error
    for domain, see in ((DOMAIN, _see), (HALF_DOMAIN, _see_widened)):
        for name in ALGORITHMS:
            onnx_op(
                op_type=f"{domain}::{name}",
                inputs=[PyCustomOpDef.dt_float],
                outputs=[PyCustomOpDef.dt_float],
                attrs={ATTRIBUTE: PyCustomOpDef.dt_string},
            )(see)
    for name, elem_type in KEEPERS.items():
        onnx_op(
            op_type=f"{DOMAIN}::{name}",
            inputs=[elem_type],
            outputs=[PyCustomOpDef.dt_float],
            attrs={ATTRIBUTE: PyCustomOpDef.dt_string},
        )(_keep)
    options = onnxruntime.SessionOptions()
    options.use_deterministic_compute = True
    # Idle threads would take the processor from the observers, which work while the session waits.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.register_custom_ops_library(get_library_path())
    return options


AMCT_SO = _options()
"""Options for onnxruntime's InferenceSession that let it run what `quantize_model` and `quantize_preprocess` write."""
