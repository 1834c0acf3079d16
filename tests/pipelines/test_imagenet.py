"""ResNet-34 on generated images in ImageNet's layout: that it runs, not what it learns."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.pipelines.conftest import QUICK, runs_of

WNIDS = ("n01440764", "n01443537", "n02105855")
SIZES = ((70, 101), (133, 90), (64, 64), (30, 41), (90, 80))
MODES = ("RGB", "L", "CMYK", "RGB", "RGB")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for part, count in (("train", 5), ("val", 2)):
        for wnid in WNIDS:
            (tmp_path / part / wnid).mkdir(parents=True)
            for i in range(count):
                image = Image.fromarray(rng.integers(0, 256, (*SIZES[i], 3), dtype=np.uint8)).convert(MODES[i])
                image.save(tmp_path / part / wnid / f"{wnid}_{i}.JPEG", "JPEG")
    return tmp_path


def test_resnet34_is_trained_and_attacked_on_images_in_imagenet_s_layout(command, client, root):
    chosen = (f"data.root={root}", "data=imagenet", "data.size=64", "data.validation=3", "model=resnet34", "bits=2")
    quick = [setting for setting in QUICK if not setting.startswith("n=")]
    assert command("train", *chosen, *quick, "training.batch_size=4") == 0
    assert command("attack", *chosen, *quick, "training.batch_size=4", "attack=fgsm", "n=2") == 0
    (trained,), (attacked,) = (runs_of(client, kind) for kind in ("train", "attack"))
    assert trained.data.params["model"] == "resnet34"
    assert trained.data.params["data.size"] == "64"
    assert 1 <= attacked.data.metrics["n"] <= 2
    assert attacked.data.tags["source_run_id"] == trained.info.run_id


@pytest.mark.parametrize("overrides", [[], ["data.root=nowhere"]])
def test_absent_imagenet_is_one_line(command, capsys, overrides):
    assert command("train", "data=imagenet", "model=resnet34", "trainer.threads=1", *overrides) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert "data.root" in line
