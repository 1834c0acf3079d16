from importlib import resources

import pytest
from hydra import compose, initialize_config_module
from omegaconf import DictConfig, OmegaConf

from analysis import published
from pipelines import settings, train
from pipelines.settings import attack_parameters

TREE = resources.files("conf")
MODELS, ATTACKS, RECIPES = (
    sorted(f.name.removesuffix(".yaml") for f in (TREE / group).iterdir() if f.name.endswith(".yaml"))
    for group in ("model", "attack", "training")
)


def composed(name: str, *overrides: str) -> DictConfig:
    with initialize_config_module("conf", version_base="1.3"):
        return compose(name, list(overrides))


@pytest.mark.parametrize("bits", ["FP", "1", "12", "w1a4"])
@pytest.mark.parametrize("model", MODELS)
def test_every_model_builds_at_every_kind_of_width(model, bits, monkeypatch):
    shape = (1, 28, 28) if model.startswith(("mnist", "lenet")) else (3, 32, 32)
    cfg = composed("train", f"model={model}", f"bits={bits}", "data=digits")
    data = settings.load_data(cfg)
    monkeypatch.setattr(type(data), "shape", shape)
    assert settings.build_network(cfg, data) is not None


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_composes(recipe):
    assert settings.recipe(composed("train", f"training={recipe}")).epochs >= 1


@pytest.mark.parametrize(("model", "data"), [("mnist_a", "mnist"), ("resnet20", "cifar10")])
@pytest.mark.parametrize("attack", ATTACKS)
def test_attack_presets_are_the_published_hyperparameters(attack, model, data):
    cfg = composed("attack", f"attack={attack}", f"data={data}", f"model={model}")
    chosen = attack_parameters(cfg)
    listed = published.hyperparameters(model, attack)
    assert listed
    assert {name: chosen[name] for name in listed} == listed


@pytest.mark.parametrize(
    ("pipeline", "experiment", "model", "data"),
    [
        ("attack", "quickstart", "mnist_a", "digits"),
        ("attack", "table6", "mnist_a", "mnist"),
        ("attack", "table6", "resnet20", "cifar10"),
        ("attack", "table7", "resnet20", "cifar10"),
        ("train", "table3", "resnet20", "cifar10"),
    ],
)
def test_experiments_pair_models_with_their_data(pipeline, experiment, model, data):
    cfg = composed(pipeline, f"experiment={experiment}", f"model={model}")
    OmegaConf.to_container(cfg, resolve=True)
    assert cfg.data.name == data
    assert cfg.training.name.startswith(model.rstrip("_a0123456789"))


def test_control_networks_are_told_apart_by_name():
    cfg = composed("train", "bits=FP", "model.net.topology=quantized", "quantizer=clip_only", "training.seed=3")
    assert train.network_name(cfg) == "mnist_a FP clip_only quantized topology training seed 3"


def test_fingerprint_ignores_where_and_on_what_it_runs(tmp_path):
    plain = composed("attack", "bits=1")
    moved = composed("attack", "bits=1", f"work={tmp_path}", "trainer.threads=3", "tracking.uri=http://x", "study=y")
    other = composed("attack", "bits=2")
    assert train.identity(plain) == train.identity(moved)
    assert train.identity(plain) != train.identity(other)
