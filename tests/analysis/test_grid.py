import itertools
import shlex
from types import SimpleNamespace

import pandas as pd
import pytest
from hydra import compose, initialize_config_module
from omegaconf import open_dict, read_write

from analysis.grid import MODELS, commands, missing, patch_sweeps, select, sweeps
from analysis.study import Study
from pipelines import attack, train, transfer
from pipelines.sweep import _compose_all, _jobs, _order_axes
from tests.analysis.test_cells import run

DIRECT = {(model, name): sweep for model in MODELS for name, sweep in sweeps(model).items()}
OF_PATCHES = {(sweep.model, name): sweep for name, sweep in patch_sweeps().items()}
SWEEPS = DIRECT | OF_PATCHES
NOTHING = Study()
# axes of which the experiment file alone has other values: `commands` gives them
GIVEN = {
    ("mnist_a", "controls"): ["quantizer=clip_only"],
    ("resnet20", "transfer_capacity"): ["targets.model=resnet32"],
}


def study(pipeline, rows):
    return Study(**{pipeline: pd.DataFrame(rows)})


def planned(pipeline, *launch):
    """The rows that the runs of a launch would have in the store."""
    with initialize_config_module("conf", version_base="1.3"):
        config = compose(pipeline, launch[:1], return_hydra_config=True)
        with read_write(config), open_dict(config):
            config.hydra.overrides.task = list(launch)
        _order_axes(config)
        return [row(pipeline, cfg) for cfg in _compose_all(config, _jobs(config))]


def row(pipeline, cfg):
    params = train.parameters(cfg, SimpleNamespace(name=cfg.data.name))
    params |= attack._parameters(cfg) if pipeline in ("attack", "transfer", "sensitivity") else {}
    params |= {"patched": cfg.patched} if cfg.get("patched") is not None else {}
    params |= transfer._parameters(cfg) if pipeline == "transfer" else {}
    params |= {"inference": "random", "bits": "random"} if cfg.get("inference") == "random" else {}
    params |= {"bits": " ".join(map(str, cfg.compare)), "seed": cfg.seed} if "compare" in cfg else {}
    return {f"params.{name}": str(value) for name, value in params.items()}


def cells(sweep):
    return list(itertools.product(*sweep.axes.values()))


@pytest.mark.parametrize(("model", "name"), SWEEPS)
def test_an_experiment_file_makes_the_runs_its_sweep_wants_and_no_others(model, name):
    sweep = SWEEPS[model, name]
    rows = planned(sweep.pipeline, f"experiment={name}", f"model={model}", *GIVEN.get((model, name), []))
    made = study(sweep.pipeline, rows)
    assert missing(made, sweep) == []
    assert len(select(made, sweep)) == len(rows) == len(cells(sweep))
    if sweep.pipeline in ("attack", "transfer"):
        assert all(int(row["params.n_requested"]) >= sweep.images for row in rows)


def test_of_an_empty_study_every_sweep_is_to_be_launched():
    lines = commands(NOTHING)
    for ((model, name), sweep), line in zip(SWEEPS.items(), lines, strict=True):
        assert line.startswith(f"python -m pipelines.{sweep.pipeline} -m experiment={name} model={model}")
        assert line.endswith(f"  # {len(cells(sweep))} of {len(cells(sweep))} cells: {sweep.purpose}")
        assert set(GIVEN.get((model, name), [])) <= set(shlex.split(line))


def test_commands_name_what_is_missing():
    sweep = sweeps("resnet20")["stronger_pgd"]
    rows = planned("attack", "experiment=stronger_pgd", "model=resnet20", "bits=FP,1,2,8,16")
    rows += planned("attack", "experiment=stronger_pgd", "model=resnet20", "bits=4", "attack.budget=fgsm")
    made = study("attack", rows)
    lacking = [("4", "0.1"), ("12", "0.05"), ("12", "0.1")]
    assert missing(made, sweep) == [
        {"bits": bits, "attack.eps": eps, "attack.loss": loss}
        for bits, eps in lacking
        for loss in ("cross_entropy", "margin")
    ]
    launch = "python -m pipelines.attack -m experiment=stronger_pgd model=resnet20 bits=4,12"
    assert f"{launch}  # 6 of 28 cells: stronger attacks" in commands(made)


def test_a_sweep_that_is_complete_is_not_to_be_launched():
    rows = planned("attack", "experiment=figure7", "model=mnist_a")
    assert len(commands(study("attack", rows))) == len(SWEEPS) - 1


@pytest.mark.parametrize(
    "other",
    [
        {"params.model": "mnist_b"},
        {"params.data": "digits"},
        {"params.bits": "w1a4"},
        {"params.seed": "3"},
        {"params.training.seed": "1"},
        {"params.quantizer": "clip_only"},
        {"params.model.net.topology": "quantized"},
        {"params.attack": "pgd"},
        {"params.attack.eps": "0.1"},
        {"params.attack.target": "next"},
        {"params.backend": "art"},
        {"params.n_requested": "100"},
    ],
    ids=lambda other: next(iter(other)),
)
def test_other_runs_are_left_out(other):
    found = select(study("attack", [table6("a"), table6("b", **other)]), sweeps("mnist_a")["table6"])
    assert found["fingerprint"].tolist() == ["a"]


def table6(fingerprint, *, n="1000", **more):
    return run(fingerprint, **{"params.n_requested": n, "params.backend": "native", **more})


@pytest.mark.parametrize(
    ("sizes", "chosen"),
    [
        (["1000", "1100"], ["1000"]),
        (["1000", "200"], ["1000"]),
        (["1100", "500"], ["1100"]),
        (["200"], ["200"]),
        (["199"], []),
    ],
)
def test_of_a_cell_attacked_on_several_numbers_of_images_one_number_counts(sizes, chosen):
    rows = [table6(f"{size}-{seed}", n=size, seed=seed) for size in sizes for seed in "01"]
    found = select(study("attack", rows), sweeps("mnist_a")["table6"])
    assert sorted(found["fingerprint"]) == [f"{size}-{seed}" for size in chosen for seed in "01"]


def test_a_cell_attacked_on_too_few_images_is_to_be_launched():
    """Of ResNet-20 200 images suffice under CW, and only there."""
    for name, n, lacking in (("cw", "200", False), ("cw", "199", True), ("fgsm", "999", True)):
        rows = planned("attack", "experiment=table6", "model=resnet20", f"attack={name}", f"n={n}")
        launch = "python -m pipelines.attack -m experiment=table6 model=resnet20"
        (line,) = (line for line in commands(study("attack", rows)) if line.startswith(launch))
        assert (f"attack={name}" in line or f",{name}" in line) == lacking


def test_the_number_that_is_enough_comes_before_larger_ones():
    """CW was run on 200 images of ResNet-20 with three seeds, and on 260 with one to be transferred."""
    rows = [
        row
        for launch in (("n=200", "seed=0,1"), ("n=260", "seed=0"))
        for row in planned("attack", "experiment=table6", "model=resnet20", "attack=cw", "bits=FP", *launch)
    ]
    found = select(study("attack", rows), sweeps("resnet20")["table6"])
    assert found[["params.n_requested", "params.seed"]].to_numpy().tolist() == [["200", "0"], ["200", "1"]]


@pytest.mark.parametrize(
    "other",
    [{"params.variant": "first"}, {"params.training.name": "mnist_paper"}, {"params.attack.learning_rate": "0.5"}],
    ids=lambda other: next(iter(other)),
)
def test_runs_of_a_second_setting_are_not_averaged_with_those_of_the_usual_one(other):
    rows = [table6(f"usual {bits} {seed}", bits=bits, seed=seed) for bits in ("FP", "1") for seed in "01"]
    rows += [table6(f"other {seed}", bits="1", seed=seed, **other) for seed in "012"]
    found = select(study("attack", rows), sweeps("mnist_a")["table6"])
    assert sorted(found["fingerprint"]) == [f"usual {bits} {seed}" for bits in ("1", "FP") for seed in "01"]


def test_a_cell_that_has_only_another_setting_is_kept():
    rows = [table6("a", bits="FP"), table6("b", bits="1", **{"params.training.epochs": "60"})]
    found = select(study("attack", rows), sweeps("mnist_a")["table6"])
    assert sorted(found["fingerprint"]) == ["a", "b"]


def test_each_cell_has_its_own_number_of_images():
    rows = [table6("a", n="1000"), table6("b", n="200", bits="2"), table6("c", n="300", bits="2")]
    found = select(study("attack", rows), sweeps("mnist_a")["table6"])
    assert found["fingerprint"].tolist() == ["a", "c"]


def test_a_sweep_over_seeds_alone_has_one_number_of_images():
    small = {"params.bits": "FP", "params.attack.eps": "0.1"}
    rows = [table6("a", seed="0", **small), table6("b", seed="0", n="2000", **small)]
    assert select(study("attack", rows), sweeps("mnist_a")["figure7"])["fingerprint"].tolist() == ["a"]


@pytest.mark.parametrize(
    ("setting", "kept"),
    [
        ({"params.attack.max_iter": "10"}, False),
        ({"params.attack.num_random_init": "1"}, False),
        ({"params.attack.eps": "0.3"}, False),
        ({"params.attack.eps": "0.60"}, True),
    ],
)
def test_only_the_yardsticks_as_described_count(setting, kept):
    rows = planned("attack", "experiment=stronger_pgd", "model=mnist_a", "bits=1", "attack.loss=margin")
    sweep = sweeps("mnist_a")["stronger_pgd"]
    found = select(study("attack", [{**row, **setting} for row in rows]), sweep)
    assert len(found) == (len(rows) if kept else 0)


@pytest.mark.parametrize(
    ("setting", "kept"),
    [
        ({"params.targets.seed": "1"}, False),
        ({"params.attack.eps": "0.1"}, False),
        ({"params.apply": "perturbation"}, False),
    ],
)
def test_only_transfers_of_the_published_attack_count(setting, kept):
    rows = planned("transfer", "experiment=transfer_bits", "model=mnist_a", "bits=1", "attack=fgsm")
    sweep = sweeps("mnist_a")["transfer_bits"]
    assert len(select(study("transfer", rows), sweep)) == 1
    assert len(select(study("transfer", [{**row, **setting} for row in rows]), sweep)) == kept


PATCHED = "experiment=patch_attacks defence=none bits=2 attack=patch_lavan seed=0"


def of_patches(*launch):
    return planned("attack", *PATCHED.split(), *launch)


@pytest.mark.parametrize(
    ("setting", "kept"),
    [
        ({"params.attack.max_iter": "20"}, True),
        ({"params.n_requested": "50"}, True),
        ({"params.defence": "none", "params.defence.start.bits": "FP"}, True),
        ({"params.training.name": "resnet_fast"}, True),
        ({"params.attack.size": "8"}, False),
        ({"params.attack.universal": "False"}, False),
        ({"params.attack.opacity": "0.5"}, False),
        ({"params.surrogate": "all"}, False),
        ({"params.inference": "random", "params.bits": "random"}, False),
        ({"params.quantizer": "dorefa"}, False),
        ({"params.defence": "qadt_r_fixed"}, False),
    ],
)
def test_patch_attacks_count_with_any_budget_but_not_with_other_patches(setting, kept):
    made = study("attack", [{**row, **setting} for row in of_patches()])
    assert len(select(made, patch_sweeps()["patch_attacks"])) == kept


def test_patches_of_defences_and_plain_attacks_are_not_mixed():
    direct = table6("a", **{"params.defence": "pbat"})
    assert select(study("attack", [direct]), sweeps("mnist_a")["table6"]).empty
    made = study("attack", of_patches())
    assert not [sweep for sweep in DIRECT.values() if sweep.pipeline == "attack" and len(select(made, sweep))]
