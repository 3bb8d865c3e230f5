"""Runs a whole flow again and again in forks, kills each at another moment, and looks at what is left.

    python killed_flow.py FOLDER MODEL TRIALS

Prints how many of them were killed before their end. A fork needs no imports of its own, so a trial is short.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np
from stepwise_flow import Files, in_own_process, loop_with_our_session, run_all

import amct_onnx.quantize
import amct_onnx.stepwise.create_config
import amct_onnx.stepwise.modified_model
import amct_onnx.stepwise.save
import amct_onnx.stepwise.session  # noqa: F401 - loaded before the forks
from amct_onnx.formats.record import read_record
from amct_onnx.kernels import ifmr

BATCHES = 3


def feeds():
    rng = np.random.default_rng(1)
    return [{"x": rng.normal(size=(2, 8)).astype(np.float32)} for _ in range(BATCHES)]


def start(files):
    return in_own_process(lambda: run_all(files, feeds(), loop_with_our_session, batch_num=BATCHES))


def require_whole(files, finished):
    """Every file that is there is whole: the same as at the end of a run, or a record that lacks batches."""
    for name, content in files.outputs().items():
        if name == "record.txt":
            read_record(files.folder / name, calibrated=False)
        else:
            assert content == finished[name], name


def main(folder, model, trials):
    draw = random.Random(0)
    files = Files(folder, model)
    ifmr.warm_up()
    for _ in range(2):  # the first one may compile
        begun = time.perf_counter()
        assert os.waitpid(start(files), 0)[1] == 0
        took = time.perf_counter() - begun
    finished = files.outputs()
    killed = 0
    for trial in range(trials):
        child = start(files)
        time.sleep(draw.uniform(0, took))
        os.kill(child, signal.SIGKILL)
        killed += os.WIFSIGNALED(os.waitpid(child, 0)[1])
        require_whole(files, finished)
        assert set(files.outputs()) == set(finished), "a file that was there is gone"
        if trial % 5 == 4 or trial == trials - 1:
            assert os.waitpid(start(files), 0)[1] == 0
            assert files.outputs() == finished
            assert not list(files.folder.rglob(".amct*/new/*")), "what killed runs left is still there"
        if trial % 10 == 9:  # now and then from nothing
            for path in files.folder.rglob("*"):
                if path.is_file():
                    path.unlink()
            child = start(files)
            time.sleep(draw.uniform(0, took))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            require_whole(files, finished)
            assert os.waitpid(start(files), 0)[1] == 0
            assert files.outputs() == finished
    print(killed)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
