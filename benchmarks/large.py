"""Memory of quantizing a model of several gigabytes: a transformer of random weights, in external data.

    python benchmarks/large.py                    # 3 GB
    python benchmarks/large.py --gigabytes 0.5 --folder /tmp/large

The model is written layer by layer, so building it takes no memory; the quantization runs in a process of its own,
whose peak memory is printed beside the size of the model. The files are opened in onnxruntime at the end.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))

from calibration import peak

HIDDEN, INNER, HEADS, TOKENS = 2048, 8192, 16, 64
BYTES_PER_LAYER = 4 * (4 * HIDDEN * HIDDEN + 2 * HIDDEN * INNER)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=3.0)
    parser.add_argument("--folder", help="where the files go; a temporary one without it")
    parser.add_argument("--batches", type=int, default=4)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(quantize(Path(options.folder), options.batches)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options.folder or temporary)
        size = build(folder, max(1, round(options.gigabytes * 1e9 / BYTES_PER_LAYER)))
        command = [sys.executable, __file__, "--one", "--folder", str(folder), "--batches", str(options.batches)]
        found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
        print(f"model {size / 1e6:.0f} MB, peak {found['peak MB'] * 1.048576:.0f} MB", end=" ")
        print(f"= {found['peak MB'] * 1.048576e6 / size:.2f} times its size, {found['wall']:.0f} s")


def build(folder: Path, layers: int) -> int:
    """Write the model; return its size in bytes."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    nodes: list[onnx.NodeProto] = []
    initializers: list[onnx.TensorProto] = []
    data = (folder / "large.onnx.data").open("wb")

    def op(kind: str, *inputs: str, **attributes: object) -> str:
        name = f"{kind.lower()}{len(nodes)}"
        nodes.append(helper.make_node(kind, list(inputs), [f"{name}_out"], name=name, **attributes))
        return f"{name}_out"

    def small(values: object, dtype: object = np.float32) -> str:
        name = f"c{len(initializers)}"
        initializers.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def weight(rows: int, columns: int) -> str:
        values = rng.standard_normal((rows, columns), np.float32) / np.float32(np.sqrt(rows))
        tensor = TensorProto(name=f"w{len(initializers)}", data_type=TensorProto.FLOAT, dims=values.shape)
        tensor.data_location = TensorProto.EXTERNAL
        for key, entry in (("location", "large.onnx.data"), ("offset", data.tell()), ("length", values.nbytes)):
            tensor.external_data.add(key=key, value=str(entry))
        data.write(values.data)
        initializers.append(tensor)
        return tensor.name

    def linear(x: str, rows: int, columns: int) -> str:
        return op("Add", op("MatMul", x, weight(rows, columns)), small(rng.normal(size=columns) * 0.01))

    def norm(x: str) -> str:
        return op("LayerNormalization", x, small(np.ones(HIDDEN)), small(np.zeros(HIDDEN)), axis=-1)

    split, merged = small([0, TOKENS, HEADS, HIDDEN // HEADS], np.int64), small([0, TOKENS, HIDDEN], np.int64)
    x = "tokens"
    for _ in range(layers):
        y = norm(x)
        query, key, value = (op("Reshape", linear(y, HIDDEN, HIDDEN), split) for _ in range(3))
        query, value = op("Transpose", query, perm=[0, 2, 1, 3]), op("Transpose", value, perm=[0, 2, 1, 3])
        scores = op("MatMul", query, op("Transpose", key, perm=[0, 2, 3, 1]))
        weights = op("Softmax", op("Mul", scores, small((HIDDEN // HEADS) ** -0.5)), axis=-1)
        y = op("Reshape", op("Transpose", op("MatMul", weights, value), perm=[0, 2, 1, 3]), merged)
        x = op("Add", x, linear(y, HIDDEN, HIDDEN))
        x = op("Add", x, linear(op("Relu", linear(norm(x), HIDDEN, INNER)), INNER, HIDDEN))
    op("Identity", x)
    data.close()
    shape = ["N", TOKENS, HIDDEN]
    graph = helper.make_graph(
        nodes,
        "transformer",
        [helper.make_tensor_value_info("tokens", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, shape)],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (folder / "large.onnx").write_bytes(model.SerializeToString())
    return sum((folder / name).stat().st_size for name in ("large.onnx", "large.onnx.data"))


def quantize(folder: Path, batches: int) -> dict[str, float]:
    """Quantize in this process, and open what was written."""
    import onnxruntime

    from amct_onnx import quantize_onnx

    rng = np.random.default_rng(1)
    feeds = [rng.standard_normal((1, TOKENS, HIDDEN), np.float32) for _ in range(batches)]
    started = time.perf_counter()
    result = quantize_onnx(folder / "large.onnx", calibration=feeds, save_path=folder / "out" / "large", progress=False)
    wall = time.perf_counter() - started
    found = {"wall": wall, "peak MB": peak()}
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_prepacking", "1")
    onnxruntime.InferenceSession(str(result.fake_quant_model), options, providers=["CPUExecutionProvider"])
    return found


if __name__ == "__main__":
    main()
