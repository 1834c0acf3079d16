from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from attacks import AdversarialExamples, load_examples, save_examples


def examples(*, universal: bool = False, targeted: bool = False) -> AdversarialExamples:
    generator = torch.Generator().manual_seed(0)
    return AdversarialExamples(
        x_adv=torch.rand(5, 3, 4, 6, generator=generator),
        indices=torch.tensor([9, 3, 7, 1, 0]),
        labels=torch.tensor([0, 1, 2, 3, 4]),
        metadata={"data": "digits", "attack": "fgsm ε = 0.1"},
        targets=torch.tensor([1, 2, 3, 4, 0]) if targeted else None,
        perturbation=torch.rand(3, 4, 6, generator=generator) if universal else None,
    )


@pytest.mark.parametrize("universal", [False, True])
@pytest.mark.parametrize("targeted", [False, True])
def test_round_trip(tmp_path: Path, universal: bool, targeted: bool):
    saved = examples(universal=universal, targeted=targeted)
    save_examples(tmp_path / "new folder" / "x.safetensors", saved)
    loaded = load_examples(tmp_path / "new folder" / "x.safetensors")
    for name in ("x_adv", "indices", "labels"):
        assert torch.equal(getattr(loaded, name), getattr(saved, name))
        assert getattr(loaded, name).dtype == getattr(saved, name).dtype
    assert loaded.metadata == saved.metadata
    for name, given in (("perturbation", universal), ("targets", targeted)):
        if given:
            assert torch.equal(getattr(loaded, name), getattr(saved, name))
        else:
            assert getattr(loaded, name) is None


def test_channels_last_images_are_stored_as_they_are(tmp_path: Path):
    saved = examples()
    strided = AdversarialExamples(
        saved.x_adv.to(memory_format=torch.channels_last), saved.indices, saved.labels, saved.metadata
    )
    save_examples(tmp_path / "x.safetensors", strided)
    assert torch.equal(load_examples(tmp_path / "x.safetensors").x_adv, saved.x_adv)


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_file_cut_short_is_refused(tmp_path: Path, keep: int):
    path = tmp_path / "x.safetensors"
    save_examples(path, examples())
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"x\.safetensors .*damaged"):
        load_examples(path)


def test_missing_file_is_named(tmp_path: Path):
    with pytest.raises(ValueError, match=r"nowhere\.safetensors holds no stored adversarial examples"):
        load_examples(tmp_path / "nowhere.safetensors")


@pytest.mark.parametrize(
    "change",
    [
        {"labels": torch.zeros(4, dtype=torch.int64)},
        {"indices": torch.zeros(6, dtype=torch.int64)},
        {"indices": torch.tensor(3)},
        {"x_adv": torch.zeros(5, 12)},
        {"labels": None},
    ],
    ids=["labels too few", "indices too many", "index alone", "flat images", "no labels"],
)
def test_tensors_that_do_not_fit_are_refused(tmp_path: Path, change: dict):
    whole = examples()
    tensors = {"x_adv": whole.x_adv, "indices": whole.indices, "labels": whole.labels, **change}
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="damaged"):
        load_examples(tmp_path / "x.safetensors")
