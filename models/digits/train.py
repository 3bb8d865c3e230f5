"""Train the digits network and write digits.onnx, calibration.npz and test.npz beside this file.

Needs torch, scikit-learn and onnx (`pip install torch scikit-learn onnx`); nothing else of the project does.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

HERE = Path(__file__).resolve().parent
SEED = 2024
TEST_SIZE, CALIBRATION_SIZE = 500, 64
EPOCHS, BATCH, PEAK_RATE = 40, 32, 0.01
OPSET = 13


class ConvBlock(nn.Sequential):
    """Convolution, BatchNormalization and, if asked for, ReLU."""

    def __init__(self, c_in: int, c_out: int, kernel: int, *, groups: int = 1, stride: int = 1, relu: bool = True):
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(c_out)
        if relu:
            self.relu = nn.ReLU()


class Digits(nn.Module):
    """A stem, one residual block with a depthwise and a pointwise convolution, a strided convolution, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvBlock(1, 16, 3)
        self.depthwise = ConvBlock(16, 16, 3, groups=16)
        self.pointwise = ConvBlock(16, 16, 1, relu=False)
        self.relu = nn.ReLU()
        self.down = ConvBlock(16, 32, 3, stride=2)
        self.pool = nn.AvgPool2d(2)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(32 * 2 * 2, 10)

    def forward(self, image: Tensor) -> Tensor:
        stem = self.stem(image)
        block = self.relu(self.pointwise(self.depthwise(stem)) + stem)
        return self.classifier(self.flatten(self.pool(self.down(block))))


def load() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Training images, test images, training labels, test labels; images are float32 [n, 1, 8, 8] from 0 to 1."""
    digits = load_digits()
    images = (digits.images[:, np.newaxis] / 16).astype(np.float32)
    labels = digits.target.astype(np.int64)
    return tuple(train_test_split(images, labels, test_size=TEST_SIZE, stratify=labels, random_state=SEED))


def shifted(images: Tensor) -> Tensor:
    """The batch moved by at most one pixel, as a whole, in a random direction."""
    down, right = torch.randint(0, 3, (2,)).tolist()
    return nn.functional.pad(images, (1, 1, 1, 1))[:, :, down : down + 8, right : right + 8]


def train(images: np.ndarray, labels: np.ndarray) -> Digits:
    """The trained network in inference mode; the same for the same seed, torch and machine."""
    torch.manual_seed(SEED)
    torch.use_deterministic_algorithms(True)
    net = Digits()
    data = torch.utils.data.TensorDataset(torch.from_numpy(images), torch.from_numpy(labels))
    batches = torch.utils.data.DataLoader(data, BATCH, shuffle=True, drop_last=True)
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, EPOCHS * len(batches))
    for _ in range(EPOCHS):
        for image, label in batches:
            loss = nn.functional.cross_entropy(net(shifted(image)), label, label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return net.eval()


def accuracy(net: Digits, images: np.ndarray, labels: np.ndarray) -> float:
    """The share of images that get their label."""
    with torch.no_grad():
        return float((net(torch.from_numpy(images)).argmax(1).numpy() == labels).mean())


def export(net: Digits, path: Path) -> None:
    """Write the network with its BatchNormalization nodes, a free batch size and the module names as node names."""
    torch.onnx.export(
        net,
        (torch.zeros(2, 1, 8, 8),),
        path,
        input_names=["image"],
        output_names=["logits"],
        opset_version=OPSET,
        dynamic_axes={"image": {0: "N"}, "logits": {0: "N"}},
        dynamo=False,  # the other exporter writes a zero bias, computed by five nodes, for each convolution
        do_constant_folding=False,
        training=torch.onnx.TrainingMode.PRESERVE,  # EVAL would fold BatchNormalization into the convolutions
    )
    model = onnx.load(path)
    rename(model.graph)
    onnx.checker.check_model(model, full_check=True)
    if not any(node.op_type == "BatchNormalization" for node in model.graph.node):
        raise RuntimeError("the exporter folded BatchNormalization; the file is meant to keep it")
    onnx.save(model, path)


def rename(graph: onnx.GraphProto) -> None:
    """Name nodes after their modules, `/stem/conv/Conv` -> `stem.conv`, tensors after the nodes that make them."""
    outputs = {output.name for output in graph.output}
    tensors: dict[str, str] = {}
    for node in graph.node:
        *modules, operator = node.name.strip("/").split("/")
        node.name = ".".join(modules) or operator.lower()
        tensors.update({name: f"{node.name}.out" for name in node.output if name not in outputs})
    for node in graph.node:
        node.input[:] = [tensors.get(name, name) for name in node.input]
        node.output[:] = [tensors.get(name, name) for name in node.output]


def write_data(images: np.ndarray, labels: np.ndarray, test_images: np.ndarray, test_labels: np.ndarray) -> None:
    """Write 64 of the training images, all digits alike, for calibration, and the test images with their labels."""
    _, calibration = train_test_split(images, test_size=CALIBRATION_SIZE, stratify=labels, random_state=SEED)
    np.savez_compressed(HERE / "calibration.npz", image=calibration)
    np.savez_compressed(HERE / "test.npz", image=test_images, label=test_labels)


def main() -> None:
    images, test_images, labels, test_labels = load()
    net = train(images, labels)
    export(net, HERE / "digits.onnx")
    write_data(images, labels, test_images, test_labels)
    print(f"{sum(weights.numel() for weights in net.parameters())} parameters")
    print(f"test accuracy {accuracy(net, test_images, test_labels):.2%} of {len(test_labels)} images")


if __name__ == "__main__":
    main()
