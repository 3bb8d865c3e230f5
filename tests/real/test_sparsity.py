"""A real network, sparse by every form of .cfg that AMCT's manual shows: what training gives back of its accuracy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch")

from amct_onnx import (  # noqa: E402
    create_compressed_retrain_model,
    create_quant_retrain_model,
    restore_compressed_retrain_model,
    save_compressed_retrain_model,
    save_quant_retrain_model,
    to_torch,
)
from real.inputs import IMAGENET_MEAN, IMAGENET_STD  # noqa: E402
from real.networks import Array, network  # noqa: E402
from real.test_classifiers import cifar10  # noqa: E402

pytestmark = pytest.mark.network

FILTER = "filter_pruner {{ balanced_l2_norm_filter_prune {{ prune_ratio: {} ascend_optimized: {} }} }}"
SINGLE = "n_out_of_m_pruner {{ l1_selective_prune {{ n_out_of_m_type: M4N2 update_freq: {} }} }}"

COMBINED = """
prune_config {{ {} }}
skip_layers: "{}"
skip_layer_types: "ConvTranspose2d"
quant_skip_types: "Conv1d"
retrain_weight_quant_config: {{ arq_retrain: {{ channel_wise: true dst_type: INT8 }} }}
override_layer_types: {{
    layer_type: "Linear"
    retrain_weight_quant_config: {{ arq_retrain: {{ channel_wise: false dst_type: INT8 }} }}
    retrain_data_quant_config: {{ ulq_quantize: {{ clip_max_min: {{ clip_max: 6.0 clip_min: -6.0 }} }} }}
    prune_config {{ {} }}
}}
"""

FLOAT = 91.5
"""Percentage of right answers of the network as it is, on the pictures that judge."""


def forms(first: str, second: str, ascend: str = "False") -> dict[str, str]:
    """The first layer keeps its channels in all of them: it makes those of the whole first stage, through its sums."""
    channels, half, single = FILTER.format(0.3, ascend), FILTER.format(0.5, ascend), SINGLE.format(0)
    return {
        "channels": f"""
            prune_config {{ {channels} }}
            regular_prune_skip_layers: "{first}"
            override_layer_configs: {{
                layer_name: "{second}" prune_config: {{ {half} }}
            }}""",
        "two in four": f"""
            prune_config {{ {single} }}
            regular_prune_skip_layers: "{first}"
            override_layer_configs: {{ layer_name: "{second}" prune_config: {{ {SINGLE.format(1)} }} }}""",
        "channels and INT8": COMBINED.format(channels, first, half),
        "two in four and INT8": COMBINED.format(single, first, SINGLE.format(1)),
        "INT4, one scale a layer": "retrain_weight_quant_config { arq_retrain { dst_type: INT4 channel_wise: false } }",
    }


MEASURED = {
    "channels": (65.0, 84.3),
    "two in four": (73.1, 86.8),
    "channels and INT8": (65.8, 84.4),
    "two in four and INT8": (72.9, 85.9),
    "INT4, one scale a layer": (85.2, 87.8),
}
"""Percentage of right answers without training and with it."""


@pytest.mark.parametrize("form", MEASURED)
def test_training_gives_back_accuracy(form: str, tmp_path: Path) -> None:
    """One half of the pictures at hand trains, the other one judges."""
    path, (_, images, labels) = network("resnet20-cifar10"), cifar10()
    x = ((images / np.float32(255) - IMAGENET_MEAN) / IMAGENET_STD).transpose(0, 3, 1, 2).astype(np.float32)
    names = [node.name for node in onnx.load(path).graph.node if node.op_type == "Conv"]
    cfg = tmp_path / "form.cfg"
    cfg.write_text(forms(names[0], names[1])[form])
    module = create_compressed_retrain_model(path, cfg, tmp_path / "record.txt")
    held = slice(0, 1000)
    module.eval()(torch.from_numpy(x[1000:1064]))  # finds the limits
    before = _right(module, x[held], labels[held])
    _train(module, x[1000:], labels[1000:])
    after = _right(module, x[held], labels[held])
    result = save_compressed_retrain_model(module, tmp_path / "net", data=x[:64])
    print(f"{form}: {FLOAT} % as it is, {before:.1f} % without training, {after:.1f} % with")
    assert _right(to_torch(path), x[held], labels[held]) == pytest.approx(FLOAT, abs=0.2)
    assert before == pytest.approx(MEASURED[form][0], abs=2)
    assert after > MEASURED[form][1] - 2
    assert onnx.load(result.fake_quant_model).graph.node


@pytest.mark.parametrize("form", list(forms("", ""))[:4])
def test_the_examples_of_sparsity(form: str, tmp_path: Path) -> None:
    """As the manual has them: what remains is a multiple of 16."""
    path, (_, images, _) = network("resnet20-cifar10"), cifar10()
    x = ((images[:16] / np.float32(255) - IMAGENET_MEAN) / IMAGENET_STD).transpose(0, 3, 1, 2).astype(np.float32)
    names = [node.name for node in onnx.load(path).graph.node if node.op_type == "Conv"]
    (tmp_path / "form.cfg").write_text(forms(names[0], names[1], "True")[form])
    module = create_compressed_retrain_model(path, tmp_path / "form.cfg", tmp_path / "record.txt")
    assert all((row.channels - row.removed) % 16 == 0 for row in module.pruning.rows)
    module(torch.from_numpy(x)).sum().backward()
    result = save_compressed_retrain_model(module, tmp_path / "net", data=x)
    assert onnx.load(result.deploy_model).graph.node
    module.eval()
    restored = restore(path, tmp_path, module)
    with torch.no_grad():
        assert torch.equal(restored.eval()(torch.from_numpy(x)), module(torch.from_numpy(x)))


def restore(path: Path, folder: Path, module: torch.nn.Module) -> torch.nn.Module:
    torch.save(module.state_dict(), folder / "net.pth")
    return restore_compressed_retrain_model(path, folder / "form.cfg", folder / "record.txt", folder / "net.pth")


QUANT = """
retrain_data_quant_config: {
    ulq_quantize: { clip_max_min: { clip_max: 6.0 clip_min: -6.0 } fixed_min: true dst_type: INT8 }
}
retrain_weight_quant_config: { arq_retrain: { channel_wise: true dst_type: INT8 } }
skip_layers: "/conv1/Conv"
skip_layer_types: "ConvTranspose2d"
override_layer_types : {
    layer_type: "Linear"
    retrain_weight_quant_config: { arq_retrain: { channel_wise: false dst_type: INT8 } }
}
override_layer_configs : {
    layer_name: "/layer1/layer1.0/conv1/Conv"
    retrain_data_quant_config: { ulq_quantize: { clip_max_min: { clip_max: 3.0 clip_min: -3.0 } dst_type: INT8 } }
}
"""


def test_the_example_of_quantization(tmp_path: Path) -> None:
    path, (_, images, _) = network("resnet20-cifar10"), cifar10()
    x = ((images[:64] / np.float32(255) - IMAGENET_MEAN) / IMAGENET_STD).transpose(0, 3, 1, 2).astype(np.float32)
    (tmp_path / "quant.cfg").write_text(QUANT)
    module = create_quant_retrain_model(tmp_path / "quant.cfg", path)
    assert len(module.plan.layers) == 19
    module(torch.from_numpy(x)).sum().backward()
    result = save_quant_retrain_model(module, tmp_path / "net", data=x)
    assert all(error.sqnr > 20 for error in result.output_errors.values())


def _train(module: torch.nn.Module, x: Array, labels: Array) -> None:
    """Three epochs, with pictures mirrored at random and steps that become smaller."""
    generator = torch.Generator().manual_seed(0)
    module.train()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 3)
    for _ in range(3):
        for part in torch.randperm(len(x), generator=generator).split(64):
            pictures = torch.from_numpy(x[part.numpy()])
            is_mirrored = torch.rand(len(part), 1, 1, 1, generator=generator) < 0.5
            y = module(torch.where(is_mirrored, pictures.flip(3), pictures))
            loss = torch.nn.functional.cross_entropy(y, torch.from_numpy(labels[part.numpy()]).long())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()


def _right(module: torch.nn.Module, x: Array, labels: Array) -> float:
    """Percentage of pictures whose largest score is that of their class."""
    module.eval()
    with torch.no_grad():
        found = np.concatenate([module(part).argmax(1).numpy() for part in torch.from_numpy(x).split(250)])
    return 100 * float((found == labels).mean())
