"""The embedded network: what training gives back of its accuracy, and the manual tuning that docs/training.md shows."""

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from amct_onnx import (  # noqa: E402
    create_compressed_retrain_model,
    create_quant_retrain_config,
    create_quant_retrain_model,
    save_compressed_retrain_model,
    save_quant_retrain_model,
    to_torch,
)

torch.set_num_threads(1)  # the tensors are small

pytestmark = pytest.mark.usefixtures("one_thread")

FOLDER = Path(__file__).resolve().parents[1] / "models" / "digits"
MODEL = FOLDER / "digits.onnx"
FLOAT = 97.2


@pytest.fixture(scope="module")
def images():
    with np.load(FOLDER / "test.npz") as file:
        return torch.from_numpy(file["image"]), torch.from_numpy(file["label"])


def right(module, images):
    """Percentage of right answers on the half of the images that judges."""
    module.eval()
    with torch.no_grad():
        return 100 * float((module(images[0][250:]).argmax(1) == images[1][250:]).double().mean())


def trained(module, images, epochs, rate):
    """Train on the other half."""
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.SGD(module.parameters(), lr=rate, momentum=0.9)
    module.train()
    for _ in range(epochs):
        for part in torch.randperm(250, generator=generator).split(25):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(module(images[0][part]), images[1][part]).backward()
            optimizer.step()
    return right(module, images)


HALF = {
    "prune_config": {
        "filter_pruner": {"balanced_l2_norm_filter_prune": {"prune_ratio": 0.5, "ascend_optimized": False}}
    }
}
INT4 = {"retrain_weight_quant_config": {"arq_retrain": {"dst_type": "INT4"}}}


@pytest.mark.parametrize("cfg", [HALF, HALF | INT4], ids=["half", "half, INT4"])
def test_training_gives_back_what_half_of_the_channels_took(cfg, images, tmp_path):
    assert right(to_torch(MODEL), images) == pytest.approx(FLOAT, abs=0.5)
    module = create_compressed_retrain_model(MODEL, cfg)
    assert [row.removed for row in module.pruning.rows] == [8, 16]
    module.eval()(images[0][:50])  # finds the limits
    before, after = right(module, images), trained(module, images, 10, 0.01)
    print(f"{FLOAT} % as it is, {before:.1f} % without training, {after:.1f} % with")
    assert before < 20
    assert after > 93
    result = save_compressed_retrain_model(module, tmp_path / "digits", data=images[0][:64].numpy())
    assert right(to_torch(result.fake_quant_model), images) == pytest.approx(after, abs=1)


def as_written(config):
    pass


def first_and_last_float(config):
    config["stem.conv"]["retrain_enable"] = False
    config["classifier"]["retrain_enable"] = False


def narrow_limits(config):
    config["stem.conv"]["retrain_data_config"].update(clip_max=0.2, clip_min=-0.2)


@pytest.mark.parametrize(
    ("edit", "before", "layers"), [(as_written, 97.6, 5), (first_and_last_float, 97.2, 3), (narrow_limits, 26.0, 5)]
)
def test_manual_tuning(edit, before, layers, images, tmp_path):
    """Limits are where training starts: far too narrow ones are learned to fit."""
    create_quant_retrain_config(tmp_path / "config.json", MODEL)
    config = json.loads((tmp_path / "config.json").read_text())
    edit(config)
    (tmp_path / "config.json").write_text(json.dumps(config))
    module = create_quant_retrain_model(tmp_path / "config.json", MODEL)
    assert len(module.plan.layers) == layers
    module.eval()(images[0][:50])
    assert right(module, images) == pytest.approx(before, abs=1.5)
    assert trained(module, images, 5, 0.003) > 96
    if edit is narrow_limits:
        assert float(module.activation_quantizer("stem.conv").clip_max.detach()) > 0.5
    assert save_quant_retrain_model(module, None, data=images[0][:64].numpy()).output_errors["logits"].sqnr > 40
