"""Inputs for the networks: photographs, rendered text, speech, the bytes of files."""

from __future__ import annotations

import json
import sysconfig
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from real.networks import Array, data_file, in_data_folder

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
        with image.open(path) as file:
            picture = file.convert("RGB")
        scale = shorter / min(picture.size)
        width, height = (round(side * scale) for side in picture.size)
        left, top = (width - size) // 2, (height - size) // 2
        scaled = picture.resize((width, height), image.Resampling.BICUBIC)
        found.append(np.asarray(scaled.crop((left, top, left + size, top + size))))
    return np.stack(found)


@lru_cache(maxsize=8)
def pictures(part: Part, height: int, width: int, count: int) -> Array:
    """RGB uint8 [count, height, width, 3]: whole photographs, spread over the classes, stretched to one size.

    Without photographs at hand: windows of the two that scikit-learn brings along.
    """
    image = pytest.importorskip("PIL.Image", reason="needs pillow to read photographs")
    if in_data_folder("imagenet") is None:
        windows = [image.fromarray(window) for window in _windows(part, count)]
        return np.stack([np.asarray(window.resize((width, height))) for window in windows])
    paths = [path for path, _ in photographs(part)]
    return np.stack([_read(paths[i * len(paths) // count], (width, height)) for i in range(count)])


def _read(path: Path, size: tuple[int, int]) -> Array:
    from PIL import Image

    with Image.open(path) as file:
        return np.asarray(file.convert("RGB").resize(size))


def _windows(part: Part, count: int) -> list[Array]:
    """Windows of various sizes, every other one mirrored; those to calibrate with from the upper half."""
    datasets = pytest.importorskip("sklearn.datasets", reason="needs photographs, or scikit-learn, which holds two")
    rng = np.random.default_rng(0 if part == "calib" else 1)
    found = []
    for i in range(count):
        whole = datasets.load_sample_images().images[i % 2]
        half = np.array_split(whole, 2)[0 if part == "calib" else 1]
        size = int(rng.integers(len(half) // 2, len(half)))
        top, left = (int(rng.integers(side - size)) for side in half.shape[:2])
        window = half[top : top + size, left : left + size]
        found.append(window[:, ::-1] if i % 4 > 1 else window)
    return found


def channels_first(pictures: Array) -> Array:
    """[N, H, W, C] -> float32 [N, C, H, W]."""
    return np.ascontiguousarray(pictures.astype(np.float32).transpose(0, 3, 1, 2))


def batches(array: Array, size: int) -> list[Array]:
    return [array[start : start + size] for start in range(0, len(array), size)]


def text_line(words: str, *, height: int, seed: int) -> Array:
    """One line of dark text on light ground, RGB uint8 [height, width, 3]; size and colours vary with the seed."""
    image = pytest.importorskip("PIL.Image", reason="needs pillow to render text")
    from PIL import ImageDraw, ImageFont

    rng = np.random.default_rng(seed)
    font = ImageFont.load_default(size=int(rng.integers(height * 5 // 10, height * 7 // 10)))
    ground, ink = rng.integers(170, 256, 3), rng.integers(0, 90, 3)
    left, top, right, bottom = font.getbbox(words)
    picture = image.new("RGB", (int(right - left) + height // 2, height), tuple(int(v) for v in ground))
    at = (height // 4 - left, (height - (bottom - top)) / 2 - top)
    ImageDraw.Draw(picture).text(at, words, tuple(int(v) for v in ink), font=font)
    noise = rng.normal(0, 4, (height, picture.width, 3))
    return np.clip(np.asarray(picture) + noise, 0, 255).astype(np.uint8)


def some_words(seed: int, count: int) -> str:
    """Words of random letters, some of them capitals and digits."""
    rng = np.random.default_rng(seed)
    letters = list("abcdefghijklmnopqrstuvwxyzABCDEFGHKLMNPRSTUVWXYZ23456789")
    return " ".join("".join(rng.choice(letters, int(rng.integers(2, 8)))) for _ in range(count))


def text_page(seed: int, *, height: int, width: int) -> tuple[Array, list[tuple[int, int, int, int]]]:
    """A page with lines of text and where they are: RGB uint8 [H, W, 3], boxes (top, left, bottom, right)."""
    rng = np.random.default_rng(seed)
    page = np.full((height, width, 3), rng.integers(170, 256, 3), np.uint8)
    boxes, top = [], int(rng.integers(20, 50))
    while top + 40 < height:
        line = text_line(some_words(seed * 100 + top, 3), height=36, seed=seed * 100 + top)[:, : width - 60]
        left = int(rng.integers(10, width - line.shape[1] - 10))
        page[top : top + 36, left : left + line.shape[1]] = line
        boxes.append((top, left, top + 36, left + line.shape[1]))
        top += int(rng.integers(50, 110))
    return page, boxes


def speech() -> tuple[Array, Array]:
    """Float32 samples in [-1, 1] at 16 kHz, and for each frame of 512 samples whether somebody speaks."""
    with np.load(data_file("speech16k.npz")) as file:
        return file["x"].astype(np.float32) / 32768, file["label"].astype(bool)


def files_by_suffix(suffixes: Sequence[str], each: int) -> list[Path]:
    """Files of the running Python and its packages, up to `each` per suffix."""
    folders = [Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib")]
    found: dict[str, list[Path]] = {suffix: [] for suffix in suffixes}
    for path in sorted({path for folder in folders for path in folder.rglob("*.*")}):
        if path.suffix in found and path.is_file() and path.stat().st_size >= 256:
            found[path.suffix].append(path)
    return [
        paths[i * len(paths) // count]
        for paths in found.values()
        for count in [min(each, len(paths))]
        for i in range(count)
    ]
