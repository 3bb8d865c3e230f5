"""The decorator of the kernels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import amct_onnx.kernels
from amct_onnx.kernels import compiled


def test_compiles_without_a_folder_for_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    def njit(*, cache: bool, **options: object) -> Callable[[object], object]:
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return lambda function: ("compiled", function, options["fastmath"])

    monkeypatch.setattr(compiled, "njit", njit)
    assert compiled.compiled(len) == ("compiled", len, False)


def test_no_kernel_chooses_options_of_its_own() -> None:
    files = Path(amct_onnx.kernels.__file__).parent.glob("*.py")
    assert [file.name for file in files if "njit" in file.read_text(encoding="utf-8")] == ["compiled.py"]
