import inspect
import re
import typing
from importlib import resources

import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from analysis import published
from analysis.cells import ATTACKS as STUDIED
from attacks.parameters import accepted_parameters
from pipelines import attack as attacking
from pipelines import settings, train
from pipelines.errors import InputError
from pipelines.settings import PROVIDED, attack_function, attack_parameters
from pipelines.sweep import _compose_all
from qnn.quantizers import DoReFa

TREE = resources.files("conf")
MODELS, ATTACKS, RECIPES = (
    sorted(f.name.removesuffix(".yaml") for f in (TREE / group).iterdir() if f.name.endswith(".yaml"))
    for group in ("model", "attack", "training")
)
MUST_GIVE = {"art_any": ["attack.class=SquareAttack"]}
PATCHES = [name for name in ATTACKS if name.startswith("patch_")]
NOT_IN_ART = {"pgd", *PATCHES}


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


@pytest.mark.parametrize("model", [name for name in MODELS if name.startswith(("resnet", "vgg"))])
def test_the_recipes_of_deep_networks_decay_every_convolution_and_linear_layer(model):
    cfg = composed("train", f"model={model}", "bits=2")
    with torch.device("meta"):
        net = instantiate(cfg.model.net, DoReFa(2))
    decayed = {name for name, _ in net.named_parameters() if re.fullmatch(settings.recipe(cfg).decayed, name)}
    weights = {f"{name}.weight" for name, part in net.named_modules() if isinstance(part, nn.Conv2d | nn.Linear)}
    assert weights <= decayed


@pytest.mark.parametrize(("bits", "epochs"), [("FP", 20), ("1", 20), ("2", 60), ("w2a2", 60), ("w1a2", 20), ("16", 20)])
def test_a_recipe_may_depend_on_the_bits_and_enters_the_fingerprint_as_plain_values(bits, epochs):
    cfg = composed("train", f"bits={bits}")
    assert settings.recipe(cfg).epochs == epochs
    assert train.identity(cfg) == train.identity(composed("train", f"bits={bits}", f"training.epochs={epochs}"))
    assert type(train.identity(cfg)["training"]["epochs"]) is int


def test_the_command_line_wins_over_what_a_recipe_says_of_the_bits():
    assert settings.recipe(composed("train", "bits=2", "training.epochs=5")).epochs == 5


def composed_attack(name: str, *overrides: str) -> DictConfig:
    return composed("attack", f"attack={name}", *MUST_GIVE.get(name, []), *overrides)


BACKENDS = pytest.mark.parametrize(
    ("attack", "backend"),
    [(name, "native") for name in ATTACKS] + [(name, "art") for name in ATTACKS if name not in NOT_IN_ART],
)


@pytest.mark.parametrize("hyperparameters", ["mnist", "cifar10"])
@BACKENDS
def test_every_attack_file_gives_its_function_what_it_takes(attack, backend, hyperparameters):
    cfg = composed_attack(attack, f"backend={backend}", f"data.hyperparameters={hyperparameters}")
    chosen, function = attack_parameters(cfg), attack_function(cfg)
    inspect.signature(function).bind(None, None, None, **chosen)
    assert chosen.keys() == accepted_parameters(function).keys() - PROVIDED
    assert settings.backend(cfg) == ("art" if attack == "art_any" else backend)


@pytest.mark.parametrize("elsewhere", ["surrogate=all", "surrogate=8", "inference=random"])
@pytest.mark.parametrize("attack", ["patch_located", "patch_squares", "pgd", "patch_lavan"])
def test_attacks_judged_elsewhere_go_on_after_their_first_success(attack, elsewhere):
    own = ["attack.universal=false", "attack.craft=attacked"] if attack == "patch_lavan" else []
    assert attack_parameters(composed_attack(attack, *own))["early_stop"]
    assert not attack_parameters(composed_attack(attack, *own, elsewhere))["early_stop"]


def test_a_patch_for_all_images_is_the_same_setting_wherever_it_is_judged():
    here, elsewhere = (attack_parameters(composed_attack("patch_lavan", *more)) for more in ([], ["surrogate=all"]))
    assert here == elsewhere


@pytest.mark.parametrize("attack", sorted(NOT_IN_ART - {*PATCHES}))
def test_attacks_of_one_backend_alone_name_what_is_missing(attack):
    with pytest.raises(InputError, match=rf"there is no function attacks\.art\.{attack}: check backend"):
        attack_parameters(composed_attack(attack, "backend=art"))


@pytest.mark.parametrize("attack", PATCHES)
def test_patch_attacks_are_refused_with_art(attack):
    with pytest.raises(InputError, match=rf"attack={attack} is this project's own patch attack: leave backend=art out"):
        attack_parameters(composed_attack(attack, "backend=art"))


@pytest.mark.parametrize("function", ["attacks.native.fgsm", "attacks.native.pgd.pgd", "attacks.patch_lavan.lavan"])
def test_the_project_s_own_attacks_are_native_by_whichever_path(function):
    assert settings.backend(composed_attack("fgsm", f"attack.function={function}")) == "native"


@BACKENDS
def test_every_variant_of_a_function_can_be_chosen(attack, backend):
    cfg = composed_attack(attack, f"backend={backend}")
    variants = typing.get_args(typing.get_type_hints(attack_function(cfg)).get("variant"))
    assert not variants or cfg.attack.variant in variants
    for variant in variants:
        attack_parameters(composed_attack(attack, f"backend={backend}", f"attack.variant={variant}"))


def test_a_function_from_elsewhere_is_its_own_backend():
    cfg = composed_attack("fgsm", "attack.function=qnn.training.predict")
    assert settings.backend(cfg) == "qnn.training"


@pytest.mark.parametrize(
    ("attack", "setting"),
    [
        ("fgsm", "backend=art"),
        ("fgsm", "n=7"),
        ("cw", "attack.variant=adam"),
        ("cw", "attack.art_defects=false"),
        ("boundary", "attack.variant=first"),
        ("uap", "attack.all_passes=true"),
        ("uap", "attack.craft=train"),
        ("pgd", "attack.loss=margin"),
        ("patch_lavan", "attack.size=8"),
        ("patch_lavan", "attack.craft_n=500"),
        ("patch_located", "attack.location_search=random"),
        ("art_any", "attack.class=DeepFool"),
        ("art_any", "+attack.params.eps=0.1"),
    ],
)
def test_what_changes_an_attack_s_outcome_is_part_of_its_fingerprint(attack, setting):
    assert attacking.identity(composed_attack(attack)) != attacking.identity(composed_attack(attack, setting))


def test_the_number_of_training_images_counts_only_where_a_perturbation_is_grown_on_them():
    for craft, same in (("attacked", True), ("train", False)):
        one, other = (
            attacking.identity(composed_attack("uap", f"attack.craft={craft}", f"attack.craft_n={n}")) for n in (5, 6)
        )
        assert (one == other) == same


def test_published_hyperparameters_are_those_of_the_studied_attacks():
    assert set(STUDIED) == {name for name in ATTACKS if published.hyperparameters("mnist_a", name)}


@pytest.mark.parametrize("hyperparameters", ["mnist", "cifar10"])
@pytest.mark.parametrize("attack", ["pgd", "square"])
def test_the_yardsticks_have_the_ball_of_fgsm(attack, hyperparameters):
    fgsm, yardstick = (
        attack_parameters(composed_attack(name, f"data.hyperparameters={hyperparameters}")) for name in ("fgsm", attack)
    )
    assert fgsm["eps"] == yardstick["eps"]


@pytest.mark.parametrize("backend", ["native", "art"])
@pytest.mark.parametrize(("model", "data"), [("mnist_a", "mnist"), ("resnet20", "cifar10")])
@pytest.mark.parametrize("attack", STUDIED)
def test_attack_presets_are_the_published_hyperparameters(attack, model, data, backend):
    cfg = composed("attack", f"attack={attack}", f"data={data}", f"model={model}", f"backend={backend}")
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
        ("transfer", "transfer_bits", "mnist_a", "mnist"),
        ("transfer", "transfer_capacity", "resnet20", "cifar10"),
        ("transfer", "transfer_architecture", "mnist_a", "mnist"),
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


def test_networks_that_differ_in_their_defence_or_quantiser_are_told_apart_by_name():
    ablation = ("defence=qadt_r_fixed", "defence.objective.gir=none", "defence.objective.adversary.max_iter=5")
    cfg = composed("train", "model=resnet20", "quantizer=uniform", "bits=4", *ablation)
    assert train.network_name(cfg) == "resnet20 4-bit qadt_r_fixed uniform gir=none adversary.max_iter=5"
    cfg = composed("train", "model=resnet20", "quantizer=uniform", "bits=4", "+quantizer.activation_range=largest")
    assert train.network_name(cfg) == "resnet20 4-bit uniform activation_range=largest"


def test_fingerprint_ignores_where_and_on_what_it_runs(tmp_path):
    plain = composed("attack", "bits=1")
    moved = composed("attack", "bits=1", f"work={tmp_path}", "trainer.threads=3", "tracking.uri=http://x", "study=y")
    other = composed("attack", "bits=2")
    assert train.identity(plain) == train.identity(moved)
    assert train.identity(plain) != train.identity(other)


def test_a_sweep_over_bits_is_planned_with_each_width_s_own_recipe():
    with initialize_config_module("conf", version_base="1.3"):
        planned = _compose_all(compose("attack", return_hydra_config=True), [["bits=FP"], ["bits=2"], ["bits=4"]])
    assert [cfg.training.epochs for cfg in planned] == [20, 60, 20]


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
