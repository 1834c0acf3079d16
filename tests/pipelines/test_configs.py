from importlib import resources

import pytest
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from analysis import published
from pipelines import settings, train
from pipelines.settings import attack_parameters
from pipelines.sweep import _compose_all

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


def test_planned_configs_are_those_hydra_composes():
    jobs = [
        [f"experiment={experiment}", f"model={model}", "data=paper", f"bits={bits}", f"attack={attack}", f"seed={seed}"]
        for experiment in ("table6", "table7")
        for model in ("mnist_a", "resnet20")
        for bits, attack, seed in (("FP", "cw", "0"), ("w1a4", "cw", "1"), ("2", "jsma", "1"))
    ]
    jobs.append(["attack=fgsm", "attack.eps=0.1", "training=mnist_paper", "+model.net.note=1", "study=x"])
    with initialize_config_module("conf", version_base="1.3"):
        master = compose("attack", return_hydra_config=True)
        loader = GlobalHydra.instance().config_loader()
        for planned, job in zip(_compose_all(master, jobs), jobs, strict=True):
            theirs = loader.load_sweep_config(master, job)
            wanted = OmegaConf.masked_copy(theirs, [name for name in theirs if name != "hydra"])
            assert OmegaConf.to_container(planned, resolve=True) == OmegaConf.to_container(wanted, resolve=True)
