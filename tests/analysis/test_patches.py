import functools
import shlex

import numpy as np
import pandas as pd
import pytest

from analysis import patches, published
from analysis.claims import FAILS, HOLDS, OPEN, PATCH_CLAIMS, judge
from analysis.grid import missing, patch_sweeps
from analysis.paper import make
from analysis.patch_checks import RULES, checks
from analysis.patch_figures import all_figures
from analysis.patch_tables import (
    ablation,
    alignment,
    all_tables,
    clean,
    cost,
    headline,
    reality,
    success,
    transfer,
    unseen,
    visibility,
)
from analysis.patches import read, white_box
from analysis.quantities import Ours, Paper
from analysis.study import Study
from analysis.tables import csv, markdown
from tests.analysis.test_grid import planned

FINETUNED = "training=resnet_finetune"
FAMILY = ("cifar10", "resnet20", "resnet_finetune")
SECTION = "ResNet20 on cifar10, resnet_finetune"
CLAIMS = {claim.key: claim for claim in PATCH_CLAIMS}
MEASURES = ("cosine", "edge_iou", "hog_cosine", "hog_cosine_centred")


launched = functools.cache(lambda pipeline, launch: planned(pipeline, *shlex.split(launch)))


def rows(pipeline, *launches):
    """Rows as of a store, one for each run of the launches."""
    frame = pd.DataFrame([row for launch in launches for row in launched(pipeline, launch)])
    frame = frame.drop_duplicates(ignore_index=True)
    told = {"study": "patches", "commit": "c0ffee", "hardware": "a machine", "versions": "", "started": 1.7e12}
    frame = frame.assign(overrides="", experiment="", **told)
    frame["fingerprint"] = frame["run_id"] = [f"{pipeline}{i:03}" for i in range(len(frame))]
    return frame


def attacks(*launches, success=0.5, n=100):
    """Attack runs; `success`: one rate for all, or a function of a row."""
    frame = rows("attack", *(f"{launch} {FINETUNED}" for launch in launches))
    told = [success(row) if callable(success) else success for row in frame.to_dict("records")]
    return frame.assign(**{
        "metrics.n": n, "metrics.adversarial_accuracy": 1 - np.array(told), "metrics.clean_accuracy": 0.8,
        "metrics.seconds": 1.0,
    })  # fmt: skip


def trainings(*defences, seconds=100.0, seed=0):
    """One training per width of `none` and `pbat`, one for all widths of the others."""
    several = {"none": "FP,8,5,4,2", "pbat": "FP,4,2"}
    launches = [
        f"experiment=table3 model=resnet20 data=cifar10 quantizer=uniform {FINETUNED} training.seed={seed}"
        f" defence={name} bits={several.get(name, 'FP')}"
        for name in defences
    ]
    frame = rows("train", *launches).assign(**{"metrics.test_accuracy": 0.9, "metrics.seconds": seconds})
    widths = frame["params.defence.widths"].notna() if "params.defence.widths" in frame else False
    switchable = pd.Series(widths, frame.index)
    frame.loc[switchable, "params.bits"] = "FP 8 5 4 2"
    for place, bits in enumerate(("FP", "8", "5", "4", "2")):
        frame.loc[switchable, f"metrics.test_accuracy.{bits}"] = 0.9 - 0.01 * place
    return frame


NOTHING = pd.DataFrame()


def study(attack=NOTHING, train=NOTHING, transfer=NOTHING, **tables):
    return Study(train, attack, transfer, **tables)


def section(table, name=SECTION):
    return table.sections[name]


SMALL = "experiment=patch_attacks bits=FP,2 seed=0"


def test_success_of_one_run_has_wilsons_interval():
    attack = attacks("experiment=patch_attacks bits=2 attack=patch_lavan defence=none seed=0", success=lambda row: 0.7)
    frame = section(success(read(study(attack))), f"{SECTION}: LAVAN, one patch for all images, corners")
    assert frame.loc["2", "undefended"] == "0.700 (0.604 … 0.781)"  # Wilson's formula for 70 of 100


@pytest.mark.parametrize("axis", ["seed", "training.seed"])
def test_an_interval_over_several_seeds_covers_the_rate_of_each(axis: str):
    told = {"0": 0.8, "1": 0.6}
    launch = f"experiment=patch_attacks bits=2 attack=patch_lavan defence=none seed=0 {axis}=0,1"
    runs = read(study(attacks(launch, success=lambda row: told[row[f"params.{axis}"]]))).attacks
    (rate,) = patches.rates(white_box(runs, "patch_lavan"), "defence").values()
    assert rate.value == pytest.approx(0.7)
    assert rate.interval[0] < 0.6 < 0.8 < rate.interval[1]


def test_success_is_averaged_over_seeds_and_says_n():
    attack = attacks(
        "experiment=patch_attacks bits=2 attack=patch_lavan defence=none",
        success=lambda row: {"0": 0.8, "1": 0.6}[row["params.seed"]],
    )
    table = success(read(study(attack)))
    frame = section(table, f"{SECTION}: LAVAN, one patch for all images, corners")
    assert frame.loc["2", "undefended"].startswith("0.700 (")
    assert frame.loc["4", "undefended"] == "missing"
    assert "n = 200 per cell, over attack seeds 0, 1 and training seeds 0. LAVAN 500 steps." in table.caption


def test_trainings_are_seeds_and_their_spread_is_shown():
    launch = "experiment=patch_attacks bits=2 attack=patch_lavan defence=none seed=0"
    attack = attacks(
        f"{launch} training.seed=0,1", success=lambda row: {"0": 0.8, "1": 0.6}[row["params.training.seed"]]
    )
    frame = section(success(read(study(attack))), f"{SECTION}: LAVAN, one patch for all images, corners")
    assert frame.loc["2", "undefended"].startswith("0.700 ± 0.141 (")


def test_triqdefs_numbers_stand_beside_and_say_whose_they_are():
    attack = attacks(f"{SMALL} attack=patch_lavan,patch_squares,patch_random defence=pbat")
    table = success(read(study(attack)))
    frame = section(table, f"{SECTION}: LAVAN, one patch for all images, corners")
    assert frame.loc[["FP", "2"], "PBAT in TriQDef's paper"].tolist() == ["0.514", "0.397"]
    assert "not QADT-R's" in table.caption
    squares = section(table, f"{SECTION}: squares, a patch for each image, random")
    assert squares.loc["FP", "DWQ in TriQDef's paper"] == "0.896"
    noise = section(table, f"{SECTION}: random noise, a patch for each image, random")
    assert list(noise.columns) == ["PBAT"]


def test_no_column_says_that_a_published_number_is_qadt_rs():
    attack = attacks(
        f"{SMALL} attack=patch_lavan defence=none,qadt_r", "experiment=patch_unseen bits=FP seed=0 defence=dwq"
    )
    for table in all_tables(read(study(attack, trainings("none", "qadt_r")))):
        for frame in table.sections.values():
            assert not [name for name in map(str, frame.columns) if "QADT-R" in name and "TriQDef's" in name]


@pytest.mark.parametrize(
    "other",
    [
        {"params.quantizer": "dorefa"},
        {"params.backend": "art"},
        {"params.attack": "fgsm"},
        {"params.attack.size": "8"},
        {"params.attack.target": "3"},
        {"params.attack.opacity": "0.5"},
        {"params.surrogate": "all"},
        {"params.attack.universal": "False"},
        {"params.attack.placement": "anywhere"},
    ],
)
def test_only_patches_like_those_of_the_training_count_as_such(other):
    attack = attacks(f"{SMALL} attack=patch_lavan defence=none")
    table = success(read(study(attack.assign(**other))))
    assert not table.sections


def test_of_several_settings_the_most_frequent_is_shown_and_named():
    usual = attacks("experiment=patch_attacks bits=FP,4,2 attack=patch_lavan defence=none seed=0 attack.max_iter=50")
    other = attacks(f"{SMALL} attack=patch_lavan defence=none attack.max_iter=9", success=0.9)
    table = success(read(study(pd.concat([usual, other.assign(fingerprint=["x", "y"])]))))
    frame = section(table, f"{SECTION}: LAVAN, one patch for all images, corners")
    assert frame.loc["2", "undefended"].startswith("0.500")
    assert "LAVAN 50 steps" in table.caption


def test_of_a_cell_attacked_on_several_numbers_of_images_most_count():
    few = attacks(f"{SMALL} attack=patch_lavan defence=none n=10", success=1.0, n=10)
    many = attacks(f"{SMALL} attack=patch_lavan defence=none n=100", success=0.5)
    found = read(study(pd.concat([few.assign(fingerprint=["x", "y"]), many]))).attacks
    assert found["n"].tolist() == [100, 100]


def test_a_width_drawn_for_each_image_is_a_row_of_its_own():
    attack = attacks(f"{SMALL} attack=patch_lavan defence=dwq", success=0.4)
    drawn = attack.iloc[:1].assign(
        **{
            "fingerprint": "rpi",
            "params.inference": "random",
            "params.bits": "random",
            "metrics.adversarial_accuracy": 0.9,
        }
    )
    frame = section(
        success(read(study(pd.concat([attack, drawn])))), f"{SECTION}: LAVAN, one patch for all images, corners"
    )
    assert frame.index.tolist() == ["FP", "8", "5", "4", "2", "random"]
    assert frame.loc["random", "DWQ"].startswith("0.100")


def test_a_network_that_starts_from_another_without_a_defence_is_undefended():
    attack = attacks(f"{SMALL} attack=patch_lavan defence=none", f"{SMALL} attack=patch_lavan defence=dwq")
    attack.loc[attack["params.defence"].isna(), ["params.defence", "params.defence.start.bits"]] = ["none", "FP"]
    assert set(read(study(attack)).attacks["defence"]) == {"none", "dwq"}


def test_networks_that_differ_in_a_setting_are_not_taken_for_one():
    attack = attacks(
        *(f"{SMALL} attack=patch_lavan defence=pbat defence.objective.adversary.max_iter={k}" for k in (5, 25))
    )
    assert set(read(study(attack)).attacks["defence"]) == {"pbat", "pbat, adversary.max_iter=25"}
    assert patches.title_of("pbat, adversary.max_iter=5") == "PBAT, adversary.max_iter=5"


@pytest.mark.parametrize(
    ("defence", "other", "named"),
    [
        ("none", {"params.defence.widths": "FP 2"}, "none, widths=FP 2"),
        ("qadt_r", {"params.defence.norms": "shared"}, "qadt_r, norms=shared"),
        (
            "none",
            {"params.defence.start.bits": "FP", "params.defence.start.weights": "released"},
            "none, start.bits=FP",
        ),
        ("none", {"params.quantizer.activation_range": "largest"}, "none, activation_range=largest"),
    ],
)
def test_the_usual_network_of_a_defence_keeps_its_name_and_others_say_what_differs(defence, other, named):
    usual = attacks(f"{SMALL} attack=patch_lavan defence={defence}")
    odd = usual.iloc[:1].assign(fingerprint="odd", **other)
    found = read(study(pd.concat([usual, odd]))).attacks
    assert found.set_index("fingerprint")["defence"].to_dict() == {
        **dict.fromkeys(usual["fingerprint"], defence), "odd": named,
    }  # fmt: skip


def test_a_run_on_more_images_of_one_seed_leaves_the_other_seeds_alone():
    """The sources of the transfers are attacked on more images, with the first seed alone."""
    usual = attacks("experiment=patch_attacks bits=2 attack=patch_lavan defence=none seed=0,1")
    more = attacks(f"{SMALL} attack=patch_lavan defence=none n=1300").iloc[:1].assign(fingerprint="more")
    more["params.bits"] = "2"
    found = read(study(pd.concat([usual, more]))).attacks
    assert sorted(zip(found["seed"], found["fingerprint"], strict=True)) == [
        ("0", "more"), ("1", usual.loc[usual["params.seed"] == "1", "fingerprint"].item()),
    ]  # fmt: skip


def test_recipes_are_kept_apart():
    long = attacks(f"{SMALL} attack=patch_lavan defence=none").assign(**{"params.training.name": "resnet_fast"})
    short = attacks("experiment=patch_attacks attack=patch_lavan defence=none bits=FP,4,2", success=0.9)
    both = study(pd.concat([long.assign(fingerprint=["x", "y"]), short]))
    found = read(both)
    assert found.families() == [FAMILY, ("cifar10", "resnet20", "resnet_fast")]
    assert len(success(found).sections) == 2
    assert Ours(both).patch_success("none", "2", "patch_lavan", 6).value == pytest.approx(0.9)


def test_clean_accuracy_is_by_width_with_the_spread_of_training_seeds():
    train = pd.concat([trainings("none", "qadt_r"), trainings("none", seed=1)], ignore_index=True)
    train["fingerprint"] = [f"t{i}" for i in range(len(train))]
    train.loc[train["params.training.seed"] == "1", "metrics.test_accuracy"] = 0.88
    attack = attacks("experiment=patch_unseen defence=qadt_r bits=3 seed=0")
    frame = section(clean(read(study(attack, train))))
    assert frame.loc["2", ["undefended", "QADT-R (ours)"]].tolist() == ["89.00 ± 1.41", "86.00"]
    assert frame.loc["3", ["undefended", "QADT-R (ours)"]].tolist() == ["–", "80.00"]
    assert frame.loc["2", "QAT in TriQDef's paper"] == "78.2"
    assert frame.loc["8", "QAT in TriQDef's paper"] == "–"


def test_in_short_are_the_widest_and_the_narrowest_width():
    success = {"patch_lavan": 0.3, "patch_located": 0.7, "patch_squares": 0.6}
    made = attacks(
        "experiment=patch_attacks defence=none,dwq bits=FP,4,2 seed=0 attack=patch_lavan,patch_located",
        "experiment=patch_attacks defence=none bits=2 seed=0 attack=patch_squares",
        "experiment=patch_sizes defence=none bits=2 attack.size=8,10 attack.placement=corners seed=0",
        success=lambda row: success[row["params.attack"]] + 0.01 * (int(row["params.attack.size"]) - 6),
    )
    table = headline(read(study(made, trainings("none", "dwq"))))
    assert list(table.sections) == [f"{SECTION}, FP", f"{SECTION}, 2 bit"]
    narrow = section(table, f"{SECTION}, 2 bit")
    assert list(narrow.columns) == [
        "test accuracy",
        "LAVAN 6×6",
        "LAVAN 8×8",
        "LAVAN 10×10",
        "located patch",
        "squares",
        "strongest",
    ]
    assert narrow.loc["undefended"].tolist()[1:] == [
        ".300 (.22–.40)", ".320 (.24–.42)", ".340 (.25–.44)", ".700 (.60–.78)", ".600 (.50–.69)", ".700 (.60–.78)",
    ]  # fmt: skip
    assert narrow.loc["DWQ", ["test accuracy", "LAVAN 8×8", "strongest"]].tolist() == ["86.00 %", "missing", "missing"]


def test_what_is_unseen_is_varied_one_thing_at_a_time():
    attack = attacks(
        "experiment=patch_unseen bits=FP,3 seed=0 defence=dwq,qadt_r",
        success=lambda row: int(row["params.attack.size"]) / 20 + (row["params.bits"] == "3") / 4
        + (row["params.attack.placement"] == "anywhere") / 5,
    )  # fmt: skip
    found = unseen(read(study(attack))).sections
    size, place, width = (found[f"{SECTION}: LAVAN, {axis}"] for axis in ("size", "placement", "width"))
    assert [text[:5] for text in size.loc["FP", "DWQ"]] == ["0.300", "0.400", "0.500"]
    assert list(size["DWQ"].columns) == ["6×6", "8×8", "10×10"]
    assert "3" not in size.index
    assert place.loc["FP", "DWQ"].to_dict().keys() == {"corners", "anywhere (unseen)"}
    assert [text[:5] for text in place.loc["FP", "DWQ"]] == ["0.300", "0.500"]
    assert [text[:5] for text in width["QADT-R (ours)"]] == ["0.300", "missi", "missi", "missi", "0.550", "missi"]
    theirs = found["LAVAN in TriQDef's paper"]
    assert theirs.loc["2", "PBAT in TriQDef's paper, unseen"] == "0.653"


def test_opacity_is_varied_beside_opaque_patches():
    attack = attacks(
        f"{SMALL} attack=patch_lavan defence=dwq",
        "experiment=patch_opacity bits=FP,4,2 defence=dwq",
        success=lambda row: float(row["params.attack.opacity"]) / 2,
    )
    faded = unseen(read(study(attack))).sections[f"{SECTION}: LAVAN, opacity"]
    assert list(faded["DWQ"].columns) == [f"opacity {value}" for value in ("1", "0.75", "0.5", "0.25")]
    assert [text[:5] for text in faded.loc["2", "DWQ"]] == ["0.500", "0.380", "0.250", "0.120"]


def test_patches_are_listed_by_how_much_they_show():
    attack = attacks(
        f"{SMALL} attack=patch_lavan defence=none",
        "experiment=patch_opacity bits=FP,2 defence=none",
        "experiment=patch_sizes bits=FP defence=none seed=0 attack.size=10 attack.placement=corners",
    )
    area = attack["params.attack.size"].astype(float) ** 2 * attack["params.attack.opacity"].astype(float)
    unmeasured = visibility(read(study(attack)))
    assert not unmeasured.sections
    attack = attack.assign(**{"metrics.ssim": 1 - area / 1000, "metrics.l2_all": area / 10})
    frame = visibility(read(study(attack))).sections[f"{SECTION}: LAVAN"]
    assert frame.index.tolist() == ["6×6, opacity 0.25", "6×6, opacity 0.5", "6×6, opacity 0.75", "6×6", "10×10"]
    assert frame["SSIM"].tolist() == ["0.991", "0.982", "0.973", "0.964", "0.900"]
    assert frame.loc["10×10", ["L2", "2"]].tolist() == ["10.00", "missing"]
    assert frame.loc["6×6", "2"].startswith("0.500 (0.40")


def test_the_ablation_has_a_row_for_every_combination():
    parts = ("defence.objective.a_qapa", "defence.objective.gir")
    rate = {("qadt_r", "True", "inconsistency"): 0.1, ("qadt_r_fixed", "False", "none"): 0.8}
    attack = attacks(
        "experiment=patch_ablation bits=2 seed=0",
        success=lambda row: rate.get((row["params.defence"], *(row[f"params.{part}"] for part in parts)), 0.4),
    )
    frame = section(ablation(read(study(attack.iloc[:-1]))))  # the last is qadt_r_fixed without both
    assert frame.index.name == "parts"
    assert frame.index.tolist() == [
        "A-QAPA + DBWT + GIR", "A-QAPA + DBWT", "A-QAPA + GIR", "DBWT + GIR", "A-QAPA", "DBWT", "GIR", "none of them",
    ]  # fmt: skip
    assert frame.loc["A-QAPA + DBWT + GIR", ("6×6", "2")].startswith("0.100")
    assert frame.loc["none of them", ("6×6", "2")] == "missing"
    assert frame.loc["GIR", ("clean, %", "2")] == "80.00"


def test_what_a_part_changes_is_told_beside_all_others():
    def success(row):
        with_dbwt, with_gir = row["params.defence"] == "qadt_r", row["params.defence.objective.gir"] != "none"
        return 0.5 - 0.2 * with_dbwt + (0.1 if with_dbwt else -0.1) * with_gir

    table = ablation(read(study(attacks("experiment=patch_ablation bits=2 seed=0", success=success))))
    frame = table.sections[f"{SECTION}: what a part changes"]
    assert frame.columns.tolist() == [("clean, %", "2"), ("6×6", "2")]
    assert frame[("6×6", "2")].tolist() == [
        "+0.000 (+0.000 … +0.000)",
        "-0.100 (-0.284 … +0.084)",  # -0.2, -0.2, 0, 0: t = 3.18 with 3 degrees of freedom
        "+0.000 (-0.184 … +0.184)",
    ]
    assert frame[("clean, %", "2")].tolist() == ["+0.00 (+0.00 … +0.00)"] * 3


def test_without_an_ablation_there_is_no_such_table():
    assert not ablation(read(study(attacks("experiment=patch_unseen defence=qadt_r bits=2 seed=0")))).sections


def transferred(defence, rate, experiment="patch_transfer"):
    """Transfers of LAVAN between FP, 4 and 2 bits; `rate`: a function of source and target width."""
    runs = rows("transfer", f"experiment={experiment} defence={defence} bits=FP,4,2 attack=patch_lavan {FINETUNED}")
    pairs = [(key, bits, target) for key, bits in runs[["fingerprint", "params.bits"]].itertuples(index=False)
             for target in ("FP", "4", "2")]  # fmt: skip
    table = [{"fingerprint": key, "target_bits": target, "transfer_rate": rate(bits, target), "n": 100,
              "target_model": "resnet20"} for key, bits, target in pairs]  # fmt: skip
    return runs, pd.DataFrame(table)


def test_transfer_is_a_matrix_of_widths():
    runs, table = transferred("none", lambda source, target: 0.9 if source == target else 0.2 + (source == "FP") / 10)
    made = transfer(read(study(transfer=runs, transfers=table)))
    frame = section(made, f"{SECTION}: undefended, LAVAN")
    assert frame.index.name == "made at"
    assert frame.loc["FP"].tolist() == ["0.900", "0.300", "0.300"]
    assert frame.loc["2"].tolist() == ["0.200", "0.200", "0.900"]
    assert "n = 100; 95 % intervals are at most ± 0.088." in made.caption  # at 30 of 100


def test_transfer_to_another_model_is_a_matrix_of_its_own():
    (within, near), (abroad, far) = (
        transferred("none", lambda source, target, rate=rate: rate, experiment)
        for experiment, rate in (("patch_transfer", 0.8), ("patch_transfer_model", 0.3))
    )
    abroad, far = (table.assign(fingerprint="to VGG, " + table["fingerprint"]) for table in (abroad, far))
    moved = study(transfer=pd.concat([within, abroad]), transfers=pd.concat([near, far]))
    matrices = transfer(read(moved)).sections
    assert matrices[f"{SECTION}: undefended, LAVAN"].loc["FP", "2"] == "0.800"
    assert matrices[f"{SECTION}: undefended, LAVAN, to VGG-11"].loc["FP", "2"] == "0.300"
    assert Ours(moved).patch_transfer("none", "FP", "2", "patch_lavan").value == pytest.approx(0.8)


REAL = {"patch_random": 0.05, "patch_lavan": 0.5, "patch_located": 0.7, "patch_squares": 0.4, "patch_google": 0.4}
EVERYTHING = (
    "experiment=patch_attacks bits=2 seed=0,1 defence=qadt_r",
    "experiment=patch_unseen bits=2 seed=0,1 defence=qadt_r attack.placement=corners",
    "experiment=patch_surrogate bits=2 seed=0 defence=qadt_r",
    "experiment=patch_strength bits=2 defence=qadt_r",
)


def as_real(row):
    """Success rates as of a network that is what it seems."""
    rate = REAL[row["params.attack"]] + (int(row["params.attack.size"]) - 6) / 20
    rate -= (row.get("params.surrogate") == "all") / 10
    if row.get("params.attack.universal") == "False" and row["params.attack"] == "patch_lavan":
        rate += int(row["params.attack.max_iter"]) / 1000
    return rate


def judged(rate, own=0.5, other=0.3):
    runs, table = transferred("qadt_r", lambda source, target: own if source == target else other)
    attack = attacks(*EVERYTHING, success=rate, n=200)
    found = read(study(attack, transfer=runs, transfers=table))
    return checks(found.of(FAMILY))["qadt_r", "2"], reality(found)


def test_a_defence_that_keeps_every_rule_is_not_accused():
    result, table = judged(as_real)
    assert result.tested == len(RULES)
    assert result.broken == []
    assert result.verdict == "no sign of masking (9 of 9 rules)"
    assert result.strongest.value == pytest.approx(0.75)  # LAVAN for each image, 250 steps
    frame = section(table, f"{SECTION}: QADT-R (ours)")
    assert frame.loc["2", RULES["noise"]].startswith("0.500 − 0.050 = +0.450 (+0.3")
    assert frame.loc["2", RULES["size"]] == "6×6: 0.500 → 8×8: 0.600 → 10×10: 0.700 ✔"
    assert frame.loc["2", RULES["steps"]] == "10: 0.510 → 50: 0.550 → 250: 0.750 ✔"


def on_all_widths(row, attack):
    return row.get("params.surrogate") == "all" and row["params.attack"] == attack


def lowered(change):
    return lambda row: as_real(row) + change(row)


@pytest.mark.parametrize(
    ("rule", "rate", "transferred_at"),
    [
        ("surrogate", lowered(lambda row: 0.4 * on_all_widths(row, "patch_lavan")), 0.3),
        ("located surrogate", lowered(lambda row: 0.3 * on_all_widths(row, "patch_located")), 0.3),
        ("transfer", as_real, 0.7),
        ("noise", lowered(lambda row: 0.6 * (row["params.attack"] == "patch_random")), 0.67),
        ("size", lowered(lambda row: -0.3 * (row["params.attack.size"] == "10")), 0.3),
        ("steps", lowered(lambda row: -0.4 * (row.get("params.attack.max_iter") == "250")), 0.3),
        ("attempts", lowered(lambda row: -0.3 * (row.get("params.attack.num_random_init") == "5")), 0.3),
        ("gradient-free", lowered(lambda row: 0.45 * (row["params.attack"] == "patch_squares")), 0.3),
        ("transferred noise", as_real, 0.0),
    ],
)
def test_a_defence_that_hides_its_gradients_is_told_by_the_rule_it_breaks(rule, rate, transferred_at):
    result, table = judged(rate, other=transferred_at)
    assert rule in result.broken
    assert set(result.broken) <= {rule, "transfer"}
    frame = section(table, f"{SECTION}: QADT-R (ours)")
    assert frame.loc["2", RULES[rule]].endswith("✘")
    assert frame.loc["2", "verdict"].startswith("gradients mislead: ")


def test_a_difference_within_the_interval_breaks_no_rule():
    slightly = lowered(lambda row: 0.22 * (row["params.attack"] == "patch_squares") + 0.1)
    result, _ = judged(slightly)
    assert "gradient-free" not in result.broken


def test_rules_without_runs_are_not_counted():
    attack = attacks(f"{SMALL} attack=patch_lavan,patch_random defence=none", success=as_real)
    found = checks(read(study(attack)).of(FAMILY))["none", "2"]
    assert (found.tested, found.verdict) == (1, "too little tested (1 of 9 rules)")
    assert found.strongest is None


def test_sizes_are_not_judged_by_a_single_patch_of_each():
    made = "experiment=patch_unseen bits=2 defence=qadt_r attack.placement=corners"
    for seeds, told in (("0", False), ("0,1", True)):
        attack = attacks(f"{made} seed={seeds}", success=lambda row: 4 / int(row["params.attack.size"]))
        rule = checks(read(study(attack)).of(FAMILY))["qadt_r", "2"].by_rule["size"]
        assert (rule.tested, rule.broken) == (told, told)


def test_rules_compare_runs_of_the_same_training_and_attack_seeds():
    own = "experiment=patch_attacks bits=2 defence=qadt_r"
    success = {("patch_located", "0", "0"): 0.7, ("patch_located", "1", "0"): 0.1, ("patch_squares", "0", "0"): 0.5}
    attack = attacks(
        f"{own} seed=0,1 attack=patch_located",
        f"{own} seed=0 attack=patch_located training.seed=1",
        f"{own} seed=0 attack=patch_squares",
        success=lambda row: success.get(
            tuple(row[f"params.{key}"] for key in ("attack", "seed", "training.seed")), 0.1
        ),
    )
    rule = checks(read(study(attack)).of(FAMILY))["qadt_r", "2"].by_rule["gradient-free"]
    assert [rate.value for rate in rule.rates] == pytest.approx([0.5, 0.7])
    elsewhere = attack[(attack["params.attack"] == "patch_squares") | (attack["params.seed"] == "1")]
    assert not checks(read(study(elsewhere)).of(FAMILY))["qadt_r", "2"].by_rule["gradient-free"].tested


def test_attacks_judged_elsewhere_count_where_they_do_not_stop_early():
    own = "experiment=patch_attacks bits=2 defence=qadt_r seed=0 attack=patch_located"
    drawn = "experiment=patch_inference defence=qadt_r bits=2 seed=0 attack=patch_located"
    attack = attacks(own, f"{own} surrogate=all", drawn, success=0.5)
    stopped = attack.assign(**{"params.attack.early_stop": "True"})
    for runs, there in ((attack, True), (stopped, False)):
        found = read(study(runs)).of(FAMILY)
        assert checks(found)["qadt_r", "2"].by_rule["located surrogate"].tested == there
        assert ("random" in set(white_box(found.attacks, "patch_located")["bits"])) == there


def test_the_rate_of_several_trainings_is_the_mean_of_theirs():
    one = attacks(f"{SMALL} defence=none attack=patch_lavan", success=0.2)
    made = attacks("experiment=patch_attacks bits=FP,2 seed=0,1 defence=none attack=patch_lavan", success=0.8)
    both = pd.concat([one.assign(fingerprint="other " + one["fingerprint"], **{"params.training.seed": "1"}), made])
    rate = patches.rates(white_box(read(study(both)).attacks, "patch_lavan"), "bits")[("2",)]
    assert (rate.n, rate.value) == (300, pytest.approx(0.5))
    assert rate.value == pytest.approx(Ours(study(both)).patch_success("none", "2", "patch_lavan", 6).value)


def test_steps_and_attempts_are_judged_without_the_whole_grid():
    each = f"{SMALL} attack=patch_lavan defence=none attack.universal=false attack.craft=attacked"
    budgets = ("attack.max_iter=10 attack.num_random_init=1,5", "attack.max_iter=50 attack.num_random_init=1")
    attack = attacks(*(f"{each} {budget}" for budget in budgets), success=as_real)
    rules = checks(read(study(attack)).of(FAMILY))["none", "2"].by_rule
    assert rules["steps"].labels == ["10", "50"]
    assert rules["attempts"].labels == ["1", "5"]


def aligned():
    """Alignment of one undefended network per width, FP and 2 bits."""
    runs = trainings("none").iloc[:1].assign(**{"params.bits": "FP 2", "fingerprint": "al"})
    values = {"measured": 0.3, "shuffled": 0.1, "noise": 0.05}
    table = []
    for kind, value in values.items():
        row = {"fingerprint": "al", "pair": "FP-2", "kind": kind, "n": 500}
        for name in MEASURES:
            row |= {name: value, f"{name}_low": value - 0.01, f"{name}_high": value + 0.01}
            if kind == "measured":
                row |= {f"{name}_excess": 0.2, f"{name}_excess_low": 0.19, f"{name}_excess_high": 0.21}
        table.append(row)
    return {"alignment": runs, "alignments": pd.DataFrame(table)}


def test_alignment_stands_beside_its_nulls_and_the_published_values():
    frame = section(alignment(read(study(train=trainings("none"), **aligned()))), f"{SECTION}: undefended")
    row = frame.loc["FP-2"]
    assert row["cosine"].tolist() == ["0.300 (0.290 … 0.310)", "0.100", "0.050", "+0.200 (+0.190 … +0.210)", "0.05"]
    assert row["HOG cosine", "in TriQDef's paper"] == "0.80"
    assert "in TriQDef's paper" not in row["centred HOG cosine"]
    assert row["", "n"] == "500"


def test_alignment_on_patched_images_is_not_averaged_with_that_on_clean_ones():
    clean = aligned()
    runs, table = (part.replace({"fingerprint": {"al": "patched"}}) for part in clean.values())
    runs = runs.assign(**{"params.patched": "FP", "params.attack": "patch_lavan", "params.attack.size": "8"})
    both = {"alignment": pd.concat([clean["alignment"], runs]),
            "alignments": pd.concat([clean["alignments"], table.assign(cosine=0.9, cosine_high=0.9)])}  # fmt: skip
    found = read(study(train=trainings("none"), **both))
    texts = {title: frame["cosine", "measured"].iloc[0][:5] for title, frame in alignment(found).sections.items()}
    assert texts == {
        f"{SECTION}: undefended": "0.300", f"{SECTION}: undefended, images with LAVAN 8×8 made at FP": "0.900"
    }  # fmt: skip
    assert {name for name, _, _ in all_figures(found, {}) if "alignment" in name} == {
        "patch-alignment-resnet20", "patch-alignment-resnet20-lavan-8-8-made-at-fp"
    }  # fmt: skip


@pytest.mark.parametrize(("images", "lacking"), [("500", 5), ("1000", 4)])
def test_alignment_on_too_few_images_is_missing_on_clean_and_on_patched_ones(images, lacking):
    clean = aligned()["alignment"].assign(**{"params.bits": "FP 8 5 4 2", "params.n": images})
    clean["params.seed"] = "0"
    patched = clean.assign(**{"params.patched": "FP", "params.n_requested": images})
    found = study(train=trainings("none"), alignment=pd.concat([clean, patched]))
    for name in ("patch_alignment", "patch_alignment_patched"):
        assert len(missing(found, patch_sweeps()[name])) == lacking


def test_cost_is_relative_to_plain_quantised_training_per_step():
    train = pd.concat([trainings("none", seconds=100.0), trainings("qadt_r", seconds=450.0)], ignore_index=True)
    train["fingerprint"] = [f"t{i}" for i in range(len(train))]
    train.loc[train["params.bits"] == "FP", "metrics.seconds"] = 10.0  # no quantisers: not the yardstick
    train["params.training.steps_per_epoch"] = "100"
    frame = section(cost(read(study(train=train))), f"{SECTION}, a machine")
    ours = frame.loc["QADT-R (ours), FP 8 5 4 2"]
    assert ours[["× plain training", "ms per step", "steps of the attack within"]].tolist() == ["4.50", "750", "10"]
    assert frame.loc["undefended, 2", "× plain training"] == "1.00"


def sensitivities():
    runs = (
        attacks(f"{SMALL} attack=patch_lavan defence=dwq")
        .iloc[:1]
        .assign(**{"params.bits": "FP 2", "fingerprint": "s"})
    )
    table = [{"fingerprint": "s", "bits": bits, "kind": kind, "row": i, "column": j, "success_rate": 0.1 * i, "n": 50}
             for bits in ("FP", "2") for kind in ("patch", "noise") for i in range(3) for j in range(3)]  # fmt: skip
    return {"sensitivity": runs, "sensitivities": pd.DataFrame(table)}


def everything():
    runs, table = transferred("none", lambda source, target: 0.4)
    attack = attacks(
        f"{SMALL} defence=none,qadt_r", "experiment=patch_unseen bits=2 seed=0 defence=qadt_r", success=0.4
    )
    shade = np.random.default_rng(0).integers(256, size=(10, 3, 32, 32), dtype=np.uint8)
    pictures = {f"{key}.{kind}": shade[0, :, :6, :6] if kind == "patch" else shade
                for key in attack["fingerprint"] for kind in ("patch", "first")}  # fmt: skip
    tables = {"transfers": table, **aligned(), **sensitivities()}
    return study(attack, trainings("none", "qadt_r"), runs, pictures=pictures, **tables)


def test_every_figure_is_drawn_and_says_on_how_many_images_it_rests():
    whole = everything()
    drawn = {name: caption for name, caption, _ in all_figures(read(whole), whole.pictures)}
    assert drawn.keys() == {
        "patch-pictures-resnet20-lavan", "patch-pictures-resnet20-google", "patch-bits-resnet20",
        "patch-size-resnet20", "patch-transfer-resnet20", "patch-alignment-resnet20",
        "patch-sensitivity-resnet20-dwq-lavan",
    }  # fmt: skip
    assert all("n = " in caption for name, caption in drawn.items() if "pictures" not in name)


def test_lines_of_the_figure_are_the_rates_with_their_intervals():
    attack = attacks(f"{SMALL} attack=patch_lavan defence=none", success=0.4)
    ((_, _, figure),) = all_figures(read(study(attack)), {})
    (bars,) = figure.axes[0].containers
    line, _, (errors,) = bars.lines
    assert line.get_ydata().tolist() == pytest.approx([0.4, *[np.nan] * 3, 0.4], nan_ok=True)  # FP and 2 bits alone
    low, high = errors.get_segments()[0][:, 1]
    assert (low, high) == pytest.approx((0.3094, 0.4980), abs=1e-4)  # Wilson's formula for 40 of 100


def test_an_empty_study_has_no_tables_and_no_figures():
    nothing = read(study())
    assert nothing.families() == []
    assert not any(table.sections for table in all_tables(nothing))
    assert all_figures(nothing, {}) == []


def test_trainings_without_attacks_have_their_tables():
    made = {table.name for table in all_tables(read(study(train=trainings("qadt_r")))) if table.sections}
    assert made == {"patch-clean", "patch-cost"}


def test_tables_of_other_rows_than_widths_say_so():
    runs, table = transferred("none", lambda source, target: 0.5)
    made = transfer(read(study(transfer=runs, transfers=table)))
    assert "| made at   | FP " in markdown(made)
    assert csv(made).startswith("network,made at,FP,")


def test_the_report_has_a_section_that_says_what_it_is(tmp_path):
    make(everything(), tmp_path, "a command")
    made = {path.name for path in tmp_path.rglob("*")}
    assert {
        "patch-cells.csv",
        "patch-reality.md",
        "patch-cost.tex",
        "patch-transfer.html",
        "patch-bits-resnet20.svg",
    } <= made
    assert not {"table3.md", "table6.md", "patch-ablation.md"} & made
    report = (tmp_path / "report.md").read_text()
    patched = report.split("## Patches and defences")[1]
    assert "a re-implementation from its abstract" in patched
    for heading in ("Clean accuracy", "Patches as in the training", "Is the defence real?", "Gradient alignment"):
        assert f"### {heading}" in patched
    assert "A patch for each image breaks 70 % of the images and more even at 2 bits" in patched
    assert "experiment=patch_strength model=resnet20" in patched


def claimed(key, attack, **more):
    return judge(CLAIMS[key], Ours(study(attack, **more)))


def test_claims_are_judged_on_known_rates():
    rate = {"none": 0.8, "pbat": 0.4, "dwq": 0.77, "qadt_r": 0.2}

    def success(row):
        defence = row["params.defence"] if isinstance(row["params.defence"], str) else "none"
        unseen = int(row["params.attack.size"]) > 6 or row["params.attack.placement"] == "anywhere"
        return rate[defence] + unseen * (0.3 if defence == "pbat" else 0.05)

    attack = attacks(
        "experiment=patch_attacks bits=FP,4,2 seed=0 defence=none,dwq",
        "experiment=patch_unseen bits=FP,4,2 seed=0 defence=dwq,qadt_r",
        "experiment=patch_sizes bits=FP,4,2 seed=0 defence=pbat",
        success=success,
        n=1000,
    )
    whole = Ours(study(attack, trainings("none", "qadt_r")))
    found = {key: judge(claim, whole) for key, claim in CLAIMS.items()}
    assert {key: judgement.verdict for key, judgement in found.items()} == {
        "one-patch-breaks-undefended-2-bit": HOLDS,
        "patches-break-undefended-2-bit": HOLDS,
        "patches-transfer-to-2-bit": OPEN,
        "pbat-fails-on-unseen": HOLDS,
        "finetuned-pbat-fails-on-unseen": OPEN,
        "dwq-stops-no-patches": HOLDS,
        "qadt-r-below-others-on-unseen": HOLDS,
        "qadt-r-a-quarter-below": HOLDS,
        "qadt-r-25-points-below": HOLDS,
        "qadt-r-keeps-clean-accuracy": FAILS,  # 0.04 less at 2 bits
        "qadt-r-keeps-accuracy-of-one-width": OPEN,
    }
    effects = {finding.name: finding.estimate.value for finding in found["qadt-r-25-points-below"].findings}
    assert len(effects) == 18
    assert effects["pbat 2, 8×8"] == effects["pbat 2, anywhere"] == pytest.approx(0.7 - 0.25 - 0.25)
    accuracy = {finding.name: finding.estimate.value for finding in found["qadt-r-keeps-clean-accuracy"].findings}
    assert {bits: accuracy[bits] for bits in ("FP", "4", "2")} == pytest.approx({"FP": 0.02, "4": -0.01, "2": -0.02})
    assert [len(found["patches-transfer-to-2-bit"].absent), found["patches-transfer-to-2-bit"].findings] == [2, []]


def test_a_gap_to_the_undefended_counts_against_dwq_either_way():
    def success(row):
        return (
            0.5 if not isinstance(row["params.defence"], str) else {"FP": 0.3, "4": 0.7, "2": 0.5}[row["params.bits"]]
        )

    attack = attacks("experiment=patch_attacks bits=FP,4,2 defence=none,dwq seed=0", success=success, n=1000)
    found = {finding.name: finding.estimate.value for finding in claimed("dwq-stops-no-patches", attack).findings}
    assert found["FP, LAVAN"] == pytest.approx(-0.1)
    assert found["4, LAVAN"] == pytest.approx(-0.1)
    assert found["2, LAVAN"] == pytest.approx(0.1)


def test_patches_of_the_full_precision_network_are_transferred_to_2_bits():
    runs, table = transferred("none", lambda source, target: 0.9 if (source, target) == ("FP", "2") else 0.1)
    judgement = claimed("patches-transfer-to-2-bit", NOTHING, transfer=runs, transfers=table)
    (finding,) = judgement.findings
    assert (finding.name, finding.verdict) == ("LAVAN", HOLDS)
    assert finding.estimate.value == pytest.approx(0.2)
    assert judgement.verdict == OPEN  # no Google patch


def test_the_seed_paper_says_nothing_of_patches():
    paper = Paper(published.table6())
    for claim in PATCH_CLAIMS:
        judgement = judge(claim, paper)
        assert (judgement.verdict, judgement.findings) == (OPEN, [])


def test_triqdefs_tables_are_those_published():
    table = published.triqdef().set_index(["quantity", "data", "setting", "defence", "attack", "bits"])["value"]
    assert len(table) == 186
    assert table["success_rate", "imagenet", "unseen", "triqdef", "patchattack", "4"] == 0.302
    assert table["clean_accuracy", "cifar10", "", "none", "", "2"] == 0.782
    assert table["hog_cosine", "", "", "", "", "5-4"] == 0.82
    assert not table.index.duplicated().any()


def test_white_box_leaves_sizes_and_widths_free():
    attack = attacks("experiment=patch_unseen seed=0 defence=dwq bits=FP,3 attack.placement=corners")
    found = white_box(read(study(attack)).attacks, "patch_lavan")
    assert sorted(set(found["size"])) == [6, 8, 10]
    assert set(found["bits"]) == {"FP", "3"}
