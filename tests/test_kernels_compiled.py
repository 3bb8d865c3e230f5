"""The decorator of the kernels."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numba
import numpy as np
import pytest

import amct_onnx.kernels
from amct_onnx.kernels import hfmg, histogram, ifmr
from amct_onnx.kernels.compiled import compiled
from amct_onnx.kernels.hfmg import Hfmg, HfmgObserver
from amct_onnx.kernels.ifmr import Ifmr, IfmrObserver

FILES = sorted(Path(amct_onnx.kernels.__file__).parent.glob("*.py"))
CHAIN = """
import numpy as np
from amct_onnx.kernels.compiled import compiled

@compiled
def square(x: float) -> float:
    return x * x

@compiled
def total(values):
    "Sum of squares."
    result = 0.0
    for i in range(values.size):
        result += square(values[i])
    return result
"""


def run(code: str, **variables: str) -> str:
    """What another interpreter prints that runs `code`."""
    root = str(Path(amct_onnx.__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([root, variables.pop("path", "")])} | variables
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip()


def test_no_kernel_chooses_options_of_its_own() -> None:
    assert [file.name for file in FILES if "njit" in file.read_text(encoding="utf-8")] == ["compiled.py"]


def test_importing_the_kernels_does_not_import_numba() -> None:
    names = ", ".join(f"amct_onnx.kernels.{file.stem}" for file in FILES)
    assert run(f"import sys, {names}; print('numba' in sys.modules)") == "False"


@pytest.mark.parametrize("disabled", ["0", "1"])
def test_a_kernel_calls_another_and_keeps_its_machine_code(tmp_path: Path, disabled: str) -> None:
    (tmp_path / "chain.py").write_text(CHAIN, encoding="utf-8")
    code = "import chain, numpy; print(chain.total(numpy.arange(4.0)), chain.total.__name__, chain.total.__doc__)"
    for _ in range(2):  # the second time from the disk
        printed = run(code, path=str(tmp_path), NUMBA_DISABLE_JIT=disabled, NUMBA_CACHE_DIR=str(tmp_path / "cache"))
        assert printed == "14.0 total Sum of squares."
    assert len(list(tmp_path.rglob("chain.total*.nbc"))) == (0 if disabled == "1" else 1)


def test_compiles_without_a_folder_for_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    def njit(*, cache: bool, **options: object) -> Callable[[object], object]:
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return lambda function: lambda *arguments: (function, options["fastmath"], *arguments)

    monkeypatch.setattr(numba, "njit", njit)
    assert compiled(abs)(3) == (abs, False, 3)


def test_code_without_a_file_is_compiled() -> None:
    scope: dict = {}
    exec("def twice(x):\n    return 2 * x", scope)
    assert compiled(scope["twice"])(21) == 42


def test_threads_that_call_at_once_compile_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def njit(**options: object) -> Callable[[object], object]:
        time.sleep(0.01)
        made.append(options)
        return lambda function: function

    monkeypatch.setattr(numba, "njit", njit)
    kernel = compiled(abs)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(kernel, range(-8, 0))) == list(range(8, 0, -1))
    assert len(made) == 1


def machine_codes() -> dict[str, int]:
    """Of how many types of arguments each kernel has machine code."""
    scope = {
        f"{module.__name__}.{name}": value for module in (hfmg, histogram, ifmr) for name, value in vars(module).items()
    }
    kernels = {name: value for name, value in scope.items() if type(value) is type(compiled(abs))}
    return {name: len(value._jitted.signatures) if value._jitted else 0 for name, value in kernels.items()}


@pytest.mark.skipif(bool(numba.config.DISABLE_JIT), reason="nothing is compiled")
def test_after_the_warm_up_nothing_is_left_to_compile() -> None:
    hfmg.warm_up()
    ifmr.warm_up()
    warm = machine_codes()
    assert set(warm.values()) <= {0, 1}  # 0: called by other kernels only, whose machine code came from the disk
    assert sum(warm.values()) > 0
    fixed = np.linspace(-3, 5, 3000, dtype=np.float32)
    fixed.flags.writeable = False
    arrays = [fixed, np.ones((2, 3)), np.float16([[1, np.nan], [-1e-7, np.inf]]), np.linspace(-9, 9, 2000)[::2]]
    for observer in (
        HfmgObserver(Hfmg(num_of_bins=8192, num_bits=4), asymmetric=False),
        IfmrObserver(Ifmr(num_bits=16), asymmetric=False),
    ):
        for array in arrays:
            observer.update(array)
            observer.params()
    assert machine_codes() == warm
