"""Inputs for the networks: photographs, rendered text, speech, the bytes of files."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from real.networks import Array, data_file

Part = Literal["calib", "eval"]

IMAGENET_MEAN = np.array((0.485, 0.456, 0.406), np.float32)
IMAGENET_STD = np.array((0.229, 0.224, 0.225), np.float32)


def photographs(part: Part) -> list[tuple[Path, int]]:
    """Photographs with the index of their class, of 1000."""
    folder = data_file("imagenet")
    entries = json.loads((folder / "labels.json").read_text())
    return [(folder / part / entry["file"], entry["index"]) for entry in entries if entry["part"] == part]


def classes(part: Part) -> Array:
    return np.array([index for _, index in photographs(part)])


@lru_cache(maxsize=4)
def crops(part: Part, shorter: int, size: int) -> Array:
    """RGB uint8 [count, size, size, 3]: the shorter side scaled (bicubic), the middle cut out."""
    image = pytest.importorskip("PIL.Image", reason="needs pillow to read photographs")
    found = []
    for path, _ in photographs(part):
        picture = image.open(path).convert("RGB")
        scale = shorter / min(picture.size)
        width, height = (round(side * scale) for side in picture.size)
        left, top = (width - size) // 2, (height - size) // 2
        scaled = picture.resize((width, height), image.Resampling.BICUBIC)
        found.append(np.asarray(scaled.crop((left, top, left + size, top + size))))
    return np.stack(found)


@lru_cache(maxsize=8)
def resized(part: Part, height: int, width: int, count: int) -> Array:
    """RGB uint8 [count, height, width, 3]: whole photographs, spread over the classes, stretched to one size."""
    image = pytest.importorskip("PIL.Image", reason="needs pillow to read photographs")
    paths = [path for path, _ in photographs(part)]
    chosen = [paths[i * len(paths) // count] for i in range(count)]
    return np.stack([np.asarray(image.open(p).convert("RGB").resize((width, height))) for p in chosen])


def channels_first(pictures: Array) -> Array:
    """[N, H, W, C] -> float32 [N, C, H, W]."""
    return np.ascontiguousarray(pictures.astype(np.float32).transpose(0, 3, 1, 2))


def batches(array: Array, size: int) -> list[Array]:
    return [array[start : start + size] for start in range(0, len(array), size)]
