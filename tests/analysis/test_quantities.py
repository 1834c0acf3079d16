import numpy as np
import pandas as pd
import pytest

from analysis.comparisons import controls, headline, stronger_attacks
from analysis.quantities import AbsentError, Ours
from analysis.study import Study
from tests.analysis.test_grid import planned


def launch(pipeline, *overrides):
    return planned(pipeline, *overrides, "model=mnist_a")


def study(cells, *, progress=(), transfers=()):
    """A study of (row, columns of its per-image record)."""
    rows = [{**row, "fingerprint": str(i)} for i, (row, _) in enumerate(cells)]
    images = [record(str(i), **columns) for i, (_, columns) in enumerate(cells)]
    moved = [{**row, "fingerprint": f"t{i}"} for i, (row, _) in enumerate(transfers)]
    transferred = [
        pd.DataFrame({"fingerprint": f"t{i}", "target_bits": bits, "index": range(len(hits)), "evaded": hits})
        for i, (_, targets) in enumerate(transfers)
        for bits, hits in targets.items()
    ]
    return Study(
        pd.DataFrame(),
        pd.DataFrame(rows),
        pd.DataFrame(moved),
        images=pd.concat(images) if images else pd.DataFrame(),
        progress=pd.DataFrame(progress, columns=["fingerprint", "iteration", "l2"]),
        transferred=pd.concat(transferred) if transferred else pd.DataFrame(),
    )


def record(fingerprint, *, evaded, index=None, l2=1.0, l0=1.0, label_rank=1, correlation=1.0):
    places = range(len(evaded)) if index is None else index
    frame = pd.DataFrame({"fingerprint": fingerprint, "index": places, "evaded": np.array(evaded, dtype=bool)})
    return frame.assign(success=frame["evaded"], l2=l2, l0=l0, label_rank=label_rank, correlation=correlation)


def table6(**overrides):
    chosen = {"bits": "FP", "attack": "fgsm", "seed": "0", **overrides}
    (row,) = launch("attack", "experiment=table6", *(f"{name}={value}" for name, value in chosen.items()))
    return row


def other_training(row):
    return {**row, "params.training.seed": "1"}


def test_adversarial_accuracy_is_averaged_over_training_seeds_of_both_sweeps():
    row = table6()
    cells = [
        (row, {"evaded": [1, 1, 1, 1]}),
        ({**row, "params.seed": "1"}, {"evaded": [1, 1, 0, 0]}),
        (other_training(row), {"evaded": [0, 0, 0, 0]}),
    ]
    estimate = Ours(study(cells)).adversarial_accuracy("mnist_a", "FP", "fgsm")
    assert (estimate.value, estimate.spread, estimate.n, estimate.seeds) == (0.625, 0.75, 12, 2)


def test_distance_is_over_successful_images():
    ours = Ours(
        study([
            (table6(), {"evaded": [1, 0, 1], "l2": [2.0, 90.0, 4.0]}),
            (table6(bits="1"), {"evaded": [0, 0]}),
        ])
    )  # fmt: skip
    assert ours.distance("mnist_a", "FP", "fgsm", "l2").value == 3
    with pytest.raises(AbsentError, match="no successful images in mnist_a 1 fgsm"):
        ours.distance("mnist_a", "1", "fgsm", "l2")
    with pytest.raises(AbsentError, match="no runs of cw on mnist_a 1"):
        ours.distance("mnist_a", "1", "cw", "l2")


def test_table_7_s_distance_is_of_its_own_runs_and_of_the_other_trainings():
    (saliency,) = launch("attack", "experiment=table7", "bits=FP", "seed=0")
    images = {"evaded": [1, 1]}
    cells = [
        (table6(attack="jsma"), {**images, "l0": 90.0}),
        (saliency, {**images, "l0": 10.0}),
        (other_training(table6(attack="jsma")), {**images, "l0": 14.0}),
    ]
    estimate = Ours(study(cells)).distance("mnist_a", "FP", "jsma", "l0")
    assert (estimate.value, estimate.spread, estimate.seeds) == (12, 4, 2)


def test_a_second_recipe_of_the_other_trainings_is_left_out():
    cells = [(table6(), {"evaded": [1, 1]}), (other_training(table6()), {"evaded": [1, 0]})]
    cells += [({**other_training(table6()), "params.training.name": "mnist_paper"}, {"evaded": [0, 0]})]
    assert Ours(study(cells)).adversarial_accuracy("mnist_a", "FP", "fgsm").value == 0.25


def test_the_stronger_attack_is_held_against_the_paper_s_on_the_same_network_and_images():
    (adam,) = launch("attack", "experiment=stronger_cw", "bits=FP")
    cells = [
        (table6(attack="cw"), {"evaded": [0, 1, 1, 1], "l2": [9.0, 2.0, 4.0, 90.0]}),
        (other_training(table6(attack="cw")), {"evaded": [1, 1, 1, 1], "l2": 50.0}),
        (adam, {"evaded": [1, 1, 1], "l2": [1.0, 1.0, 4.0], "index": [2, 1, 0]}),
    ]
    made = study(cells)
    (table,) = stronger_attacks(made, Ours(made)).sections.values()
    assert table.loc["FP", "CW"].to_dict() == {
        "paper's": "0.333", "its L2": "3.00", "Adam, κ = 0": "0.000", "L2": "2.00", "n": "3",
    }  # fmt: skip


def test_the_headline_has_the_paper_s_attacks_beside_what_all_of_one_budget_leave():
    evaded = [False] * 60 + [True] * 40
    cells = [(table6(), {"evaded": evaded}), (table6(attack="cw"), {"evaded": evaded[:50]})]
    cells += [(row, {"evaded": [False] * 30 + [True] * 70}) for row in yardsticks("pgd", "fgsm")]
    cells += [(row, {"evaded": [True] * 20 + [False] * 80}) for row in yardsticks("square", "fgsm")]
    made = study(cells)
    (table,) = headline(made, Ours(made)).sections.values()
    row = table.loc["FP"].to_dict()
    assert row.pop("FGSM, ε = 0.25").startswith(".600 (.5")
    assert row.pop("CW").endswith(") [.037]")
    assert row == {
        "epochs": "–", "test accuracy": "–", "any attack": ".100", "JSMA": "–", "UAP": "–", "CW, Adam": "–",
        "Boundary": "–", "images": "50 to 100",
    }  # fmt: skip


def test_controls_say_what_is_left_of_a_width_s_effect():
    (control,) = launch("attack", "experiment=controls", "quantizer=clip_only", "attack=fgsm")
    rates = {"FP": 0.1, "1": 0.5}
    cells = [(table6(bits=bits), {"evaded": np.arange(1000) >= 1000 * rate}) for bits, rate in rates.items()]
    cells += [(control, {"evaded": np.arange(1000) >= 300})]
    levels, effects = controls(Ours(study(cells))).sections.values()
    assert levels.index.tolist() == ["clip_only, n = 1,000", "FP, n = 1,000", "1, n = 1,000"]
    assert levels.loc["clip_only, n = 1,000", "fgsm"].startswith("0.300 (0.27")
    assert effects.index.tolist() == ["FP − clip_only", "1 − FP", "1 − clip_only"]
    lefts = [effects.loc[row, "fgsm"] for row in effects.index]
    assert [left.split()[0] for left in lefts] == ["-0.20", "+0.40", "+0.20"]
    assert all(left.endswith("*") for left in lefts)


def yardsticks(attack, budget):
    return launch("attack", f"experiment=stronger_{attack}", "bits=FP", f"attack.budget={budget}")


def test_an_image_resists_the_strongest_attack_if_it_resists_each():
    cross_entropy, margin = yardsticks("pgd", "fgsm")
    (square,) = yardsticks("square", "fgsm")
    wider = yardsticks("pgd", "uap")
    cells = [
        (table6(), {"evaded": [1, 0, 0, 0, 0]}),
        (cross_entropy, {"evaded": [0, 1, 0, 0], "index": [0, 1, 2, 3]}),
        (margin, {"evaded": [0, 0, 0, 0], "index": [3, 2, 1, 0]}),
        (square, {"evaded": [1, 0, 0, 0], "index": [2, 1, 0, 3]}),
        *((row, {"evaded": [1, 1, 1, 1, 1]}) for row in wider),
    ]
    ours = Ours(study(cells))
    kept = ours.kept_by_attack("mnist_a", "FP", "fgsm")
    assert list(kept) == ["fgsm", "pgd, cross-entropy", "pgd, margin", "square"]
    assert kept.all(axis=1).to_dict() == {0: False, 1: False, 2: False, 3: True}
    assert ours.strongest("mnist_a", "FP", "fgsm").value == 0.25
    assert ours.kept_by_attack("mnist_a", "FP", "uap").mean().to_dict() == {"pgd, cross-entropy": 0, "pgd, margin": 0}


def test_without_pgd_there_is_no_strongest_attack():
    (square,) = yardsticks("square", "fgsm")
    square_alone = study([(table6(), {"evaded": [0, 1]}), (square, {"evaded": [1, 1]})])
    ours = Ours(square_alone)
    with pytest.raises(AbsentError, match="no PGD runs on mnist_a FP"):
        ours.strongest("mnist_a", "FP", "fgsm")
    (table,) = stronger_attacks(square_alone, ours).sections.values()
    assert table.loc["FP", ("FGSM", "only Square")] == "0.500"
    assert ("FGSM", "any") not in table


def test_boundary_s_distance_after_iterations_is_the_run_s_at_its_end_and_the_snapshot_s_before():
    (row,) = launch("attack", "experiment=stronger_boundary", "bits=1")
    snapshots = [("0", 15, 6.0), ("0", 200, 5.0)]
    ours = Ours(study([(row, {"evaded": [1, 1, 0], "l2": [4.0, 5.0, 9.0]})], progress=snapshots))
    assert ours.boundary_after("mnist_a", "1", 1000).value == 4.5
    assert ours.boundary_after("mnist_a", "1", 15).value == 6
    assert ours.boundary_after("mnist_a", "1", 15, scale=0.5).value == 3
    with pytest.raises(AbsentError, match="no snapshot of Boundary after 7 iterations on mnist_a 1"):
        ours.boundary_after("mnist_a", "1", 7)
    with pytest.raises(AbsentError, match="no long Boundary runs on mnist_a FP"):
        ours.boundary_after("mnist_a", "FP", 1000)


def test_unrecognisable_images_are_successful_and_unlike_their_originals():
    (row,) = launch("attack", "experiment=table6", "bits=1", "attack=boundary", "seed=0")
    # of L2 1, 1, 1, 1, 5, 9 successful: mean 3, standard deviation 3.3; 5 is below, 9 above
    l2 = [1.0, 1.0, 1.0, 1.0, 5.0, 9.0, 99.0]
    unlike = {"correlation": [0.9, 0.9, 0.9, 0.9, 0.2, 0.1, 0.0], "label_rank": [0, 0, 0, 0, 1, 2, 0]}
    ours = Ours(study([(row, {"evaded": [1, 1, 1, 1, 1, 1, 0], "l2": l2, **unlike})]))
    assert ours.unrecognisable("mnist_a", "1").value == pytest.approx(2 / 7)
    assert ours.unrecognisable("mnist_a", "1", "z-score").value == pytest.approx(1 / 7)
    assert ours.label_in_top_two("mnist_a", "1").value == 0.5
    with pytest.raises(AbsentError, match="no Boundary runs with correlations on mnist_a FP"):
        ours.unrecognisable("mnist_a", "FP")


def rates(**by_bits):
    return {bits.removeprefix("b"): np.arange(100) < round(100 * rate) for bits, rate in by_bits.items()}


def transfers(sweep, *overrides):
    return launch("transfer", f"experiment=transfer_{sweep}", "bits=FP,1", "attack=fgsm,cw", *overrides)


def test_transfer_rates_are_to_the_source_itself_or_to_its_other_widths():
    fp, one = (row for row in transfers("bits") if row["params.attack"] == "cw")
    moved = [(fp, rates(FP=1.0, b1=0.2, b2=0.4)), (one, rates(FP=0.6, b1=0.8, b2=0.0))]
    ours = Ours(study([], transfers=moved))
    assert ours.transfer_rate("mnist_a", "cw", "itself").value == pytest.approx(0.9)
    assert ours.transfer_rate("mnist_a", "cw", "widths").value == pytest.approx((0.2 + 0.4 + 0.6 + 0.0) / 4)
    with pytest.raises(AbsentError, match="no transfer runs of fgsm on mnist_a"):
        ours.transfer_rate("mnist_a", "fgsm", "itself")


def test_transfer_rates_to_other_capacities_and_architectures_are_over_all_pairs_of_widths():
    source = "cw", "FP"
    to_wider, to_another = (
        next(row for row in transfers(*to) if (row["params.attack"], row["params.bits"]) == source)
        for to in (("capacity", "targets.model=mnist_b"), ("architecture",))
    )
    moved = [(to_wider, rates(FP=0.2, b1=0.4)), (to_another, rates(FP=0.5, b1=0.9))]
    ours = Ours(study([], transfers=moved))
    assert ours.transfer_rate("mnist_a", "cw", "capacity").value == pytest.approx(0.3)
    assert ours.transfer_rate("mnist_a", "cw", "architecture").value == pytest.approx(0.7)


def test_rates_of_one_source_to_many_targets_are_not_taken_for_independent():
    """All targets fall for the same images: the mean over them is no more certain than one of them."""
    fp, one = (row for row in transfers("bits") if row["params.attack"] == "cw")
    ours = Ours(study([], transfers=[(fp, rates(FP=1.0, b1=0.5, b2=0.5, b4=0.5)), (one, rates(FP=0.5, b1=1.0))]))
    low, high = ours.transfer_rate("mnist_a", "cw", "widths").interval
    assert high - low == pytest.approx(2 * 1.96 * 0.05, rel=0.1)


def test_transfers_to_own_and_other_quantised_widths_are_paired_by_source():
    sources = [("fgsm", "FP"), ("fgsm", "1"), ("cw", "FP"), ("cw", "1")]
    own = dict(zip(sources, [rates(FP=1.0, b1=x, b2=x) for x in (0.1, 0.2, 0.3, 0.4)], strict=True))
    other = dict(zip(sources, [rates(FP=0.0, b1=x, b2=x + 0.1) for x in (0.5, 0.4, 0.7, 0.6)], strict=True))
    moved = [(row, own[row["params.attack"], row["params.bits"]]) for row in transfers("bits")]
    wider = transfers("capacity", "targets.model=mnist_b")
    moved += [(row, other[row["params.attack"], row["params.bits"]]) for row in wider]
    ours = Ours(study([], transfers=moved))
    points = ours.transfer_points("mnist_a", "capacity").set_index(["attack", "bits"])
    assert points.loc[sources, "own"].tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert points.loc[sources, "other"].tolist() == pytest.approx([0.55, 0.45, 0.75, 0.65])
    # ranks 1 2 3 4 against 2 1 4 3: 1 - 6 * 4 / (4 * 15); within each attack 1 2 against 2 1
    assert ours.transfer_correlation("mnist_a", "capacity").value == pytest.approx(0.6)
    assert ours.transfer_correlation("mnist_a", "capacity", within=True).value == pytest.approx(-1)
    with pytest.raises(AbsentError, match="too few sources of mnist_a transferred across architecture"):
        ours.transfer_correlation("mnist_a", "architecture")


def test_a_quantity_has_the_same_replicates_whatever_was_asked_before():
    cells = [(table6(bits=bits), {"evaded": [1, 0, 0]}) for bits in ("FP", "1")]
    first, second = Ours(study(cells)), Ours(study(cells))
    second.adversarial_accuracy("mnist_a", "1", "fgsm")
    draws = [ours.adversarial_accuracy("mnist_a", "FP", "fgsm").draws for ours in (first, second)]
    assert (draws[0] == draws[1]).all()
    assert (draws[0] != first.adversarial_accuracy("mnist_a", "1", "fgsm").draws).any()
