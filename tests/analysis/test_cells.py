import numpy as np
import pandas as pd
import pytest

from analysis.cells import TIDY, bits_order, cell_table, newest

PAPER_FGSM = {"params.attack": "fgsm", "params.variant": "single_step", "params.attack.eps": "0.25"}


def run(fingerprint, *, seed="0", bits="1", accuracy=0.5, n=100, started=0, **more):
    return {
        "run_id": fingerprint, "study": "s", "started": started, "fingerprint": fingerprint, "overrides": "",
        "experiment": "", "params.data": "mnist", "params.model": "mnist_a", "params.bits": bits,
        "params.backend": "art", "params.seed": seed, "params.n_requested": "100", "params.quantizer": "dorefa",
        "params.model.net.topology": "auto", "params.training.seed": "0", "params.network": f"net{bits}",
        "params.attack.target": "None", "metrics.n": n, "metrics.adversarial_accuracy": accuracy,
        "metrics.l0": 1.0, "metrics.l1": 1.0, "metrics.l2": 4 + accuracy, "metrics.linf": 0.25,
        "metrics.l2_median": 4.0, "metrics.gave_up": 3, "metrics.clean_accuracy": 0.99, "metrics.seconds": 1.0,
        **PAPER_FGSM, **more,
    }  # fmt: skip


def test_seeds_of_one_cell_are_summed_up_with_a_pooled_interval():
    table = cell_table(pd.DataFrame([run("a", accuracy=0.8), run("b", seed="1", accuracy=0.6)]))
    assert list(table.columns) == TIDY
    (row,) = table.to_dict("records")
    assert (row["n"], row["n_total"], row["seeds"], row["seed_list"]) == (100, 200, 2, "0 1")
    assert row["adversarial_accuracy"] == pytest.approx(0.7)
    assert row["adversarial_accuracy_sd"] == pytest.approx(np.std([0.8, 0.6], ddof=1))
    # Wilson's formula by hand for 140 of 200
    z, p, total = 1.959964, 0.7, 200
    centre, half = p + z**2 / (2 * total), z * np.sqrt(p * (1 - p) / total + z**2 / (4 * total**2))
    low, high = ((centre + sign * half) / (1 + z**2 / total) for sign in (-1, 1))
    assert row["adversarial_accuracy_low"] == pytest.approx(low, abs=1e-4)
    assert row["adversarial_accuracy_high"] == pytest.approx(high, abs=1e-4)
    assert row["gave_up"] == 6
    assert row["paper_adversarial_accuracy"] == 0.845


@pytest.mark.parametrize(
    ("setting", "value", "shown"),
    [
        ("params.attack.eps", "0.1", "single_step, attack.eps=0.1"),
        ("params.n_requested", "50", "single_step, n=50"),
        ("params.training.seed", "1", "single_step, training.seed=1"),
        ("params.backend", "native", "single_step, backend=native"),
        ("params.quantizer", "clip_only", "single_step, quantizer=clip_only"),
    ],
)
def test_runs_that_differ_in_a_setting_are_never_averaged(setting, value, shown):
    table = cell_table(pd.DataFrame([run("a"), run("b", **{setting: value})]))
    assert len(table) == 2
    assert shown in set(table["variant"])
    assert (table["seeds"] == 1).all()


def test_of_no_runs_there_is_no_newest():
    assert newest(pd.DataFrame([run("a")]).iloc[:0]).empty


def test_of_duplicate_runs_the_newest_counts_and_the_others_are_mentioned():
    table = cell_table(pd.DataFrame([run("a", accuracy=0.1, started=1), run("a", accuracy=0.9, started=2)]))
    (row,) = table.to_dict("records")
    assert row["adversarial_accuracy"] == 0.9
    assert row["superseded_runs"] == 1


@pytest.mark.parametrize(
    "departure",
    [
        {"params.data": "digits"},
        {"params.attack.eps": "0.1"},
        {"params.model.net.topology": "quantized"},
        {"params.quantizer": "clip_only"},
        {"params.attack.target": "next"},
        {"params.bits": "w1a4"},
    ],
)
def test_published_numbers_stand_only_beside_the_published_setting(departure):
    table = cell_table(pd.DataFrame([run("a", **departure)]))
    assert table["paper_adversarial_accuracy"].isna().all()


PAPER_UAP = {
    "params.attack": "uap", "params.variant": "fgsm", "params.attack.eps": "0.6", "params.attack.attacker_eps": "0.1",
}  # fmt: skip
PAPER_CW = {
    "params.attack": "cw", "params.variant": "line_search", "params.attack.confidence": "5",
    "params.attack.max_iter": "25", "params.attack.binary_search_steps": "20", "params.attack.initial_const": "0.01",
}  # fmt: skip


@pytest.mark.parametrize("setting", [PAPER_UAP, PAPER_CW], ids=["uap", "cw"])
@pytest.mark.parametrize("backend", ["art", "native"])
def test_published_numbers_stand_beside_the_published_setting_of_either_backend(setting, backend):
    table = cell_table(pd.DataFrame([run("a", **setting, **{"params.backend": backend})]))
    assert table["paper_adversarial_accuracy"].notna().all()


@pytest.mark.parametrize(
    "departure",
    [
        {**PAPER_UAP, "params.attack.craft": "train", "params.attack.craft_n": "1000"},
        {**PAPER_UAP, "params.attack.all_passes": "True"},
        {**PAPER_CW, "params.variant": "adam"},
        {**PAPER_CW, "params.attack.art_defects": "False"},
    ],
    ids=["craft", "all passes", "adam", "no defects"],
)
def test_published_numbers_do_not_stand_beside_another_way_to_attack(departure):
    table = cell_table(pd.DataFrame([run("a", **departure)]))
    assert table["paper_adversarial_accuracy"].isna().all()


def test_a_cell_without_success_has_no_distance():
    table = cell_table(pd.DataFrame([run("a", accuracy=1.0, **{"metrics.l2": np.nan})]))
    assert np.isnan(table["l2"].item())


def test_rows_are_ordered_by_width():
    frame = pd.DataFrame([run(bits, bits=bits) for bits in ("16", "FP", "2", "w1a4", "12")])
    assert cell_table(frame)["bits"].tolist() == ["FP", "2", "12", "16", "w1a4"]
    assert sorted(["12", "FP", "w1a4", "2"], key=bits_order) == ["FP", "2", "12", "w1a4"]


def test_no_runs_give_an_empty_table():
    assert cell_table(pd.DataFrame()).empty
