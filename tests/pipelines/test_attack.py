import mlflow
import numpy as np
import pandas as pd
import pytest
from safetensors.torch import load_file

from attacks import load_examples
from pipelines.attack import EXAMPLES, GRID, PROGRESS, SNAPSHOTS, TABLE
from tests.pipelines.conftest import QUICK, per_image_table, runs_of


def artifacts(client, run, path=""):
    return {item.path for item in client.list_artifacts(run.info.run_id, path)}


def examples_of(client, run):
    return load_examples(client.download_artifacts(run.info.run_id, EXAMPLES))


def test_an_attack_run_holds_what_a_reader_looks_for(command, client, workspace):
    assert command("attack", "bits=1", "attack=uap", "attack.max_iter=2", "seed=3", *QUICK) == 0
    network, run = (client.get_run(runs_of(client, kind)[0].info.run_id) for kind in ("train", "attack"))
    params, metrics, tags = run.data.params, run.data.metrics, run.data.tags
    assert run.info.run_name == "uap on mnist_a 1-bit, seed 3"
    assert (params["model"], params["bits"], params["attack"], params["seed"]) == ("mnist_a", "1", "uap", "3")
    assert (params["attack.eps"], params["attack.attacker_eps"], params["attack.max_iter"]) == ("0.6", "0.1", "2")
    assert metrics["n"] == 5
    assert metrics["adversarial_accuracy_low"] <= metrics["adversarial_accuracy"]
    assert tags["source_run_id"] == network.info.run_id
    assert tags["complete"] == "true"
    assert run.inputs.model_inputs[0].model_id == network.outputs.model_outputs[0].model_id
    assert {GRID, TABLE, "config.yaml", "images"} <= artifacts(client, run)

    table = per_image_table(client, run)
    assert len(table) == 5
    assert metrics["adversarial_accuracy"] == pytest.approx(1 - table["evaded"].mean())

    local = mlflow.artifacts.download_artifacts(run_id=run.info.run_id, artifact_path=EXAMPLES)
    examples = load_examples(local)
    assert examples.x_adv.shape == (5, 1, 28, 28)
    assert examples.indices.tolist() == table["index"].tolist()
    assert float(examples.perturbation.abs().max()) <= 0.6 + 1e-6


def test_the_same_seed_gives_the_same_figures(command, client):
    for extra in ([], ["force=true"]):
        assert command("attack", "attack=boundary", "attack.max_iter=3", *QUICK, *extra) == 0
    first, second = runs_of(client, "attack")
    timing = {"seconds"}
    assert {k: v for k, v in first.data.metrics.items() if k not in timing} == {
        k: v for k, v in second.data.metrics.items() if k not in timing
    }
    assert len(runs_of(client, "train")) == 1


def test_targeted_attack_counts_hits_of_the_target(command, client):
    assert command("attack", "attack=jsma", "attack.target=next", "bits=FP", *QUICK) == 0
    (run,) = runs_of(client, "attack")
    table = per_image_table(client, run)
    assert (table["target"] == (table["label"] + 1) % 10).all()
    assert (table["success"] == (table["adv_prediction"] == table["target"])).all()
    assert run.data.metrics["attack_success_rate"] == pytest.approx(table["success"].mean())


def test_fewer_correct_images_than_asked_for_are_recorded(command, client):
    overrides = ("training.epochs=1", "trainer.threads=1", "n=100000", "attack.eps=0.1")
    assert command("attack", *overrides) == 0
    (run,) = runs_of(client, "attack")
    assert run.data.params["n_requested"] == "100000"
    assert run.data.metrics["n"] == round(run.data.metrics["clean_accuracy"] * 450)


def test_stored_examples_are_evaluated_on_another_network(command, client, capsys):
    assert command("attack", "bits=1", *QUICK) == 0
    assert command("train", "bits=FP", "training.epochs=1", "trainer.threads=1") == 0
    (source,) = runs_of(client, "attack")
    evaluate = ("evaluate", "bits=FP", "training.epochs=1", f"examples={source.info.run_id}")
    assert command(*evaluate) == 0
    (run,) = runs_of(client, "evaluate")
    assert run.data.metrics["examples"] == 5
    assert 1 <= run.data.metrics["n"] <= 5
    assert run.data.params["source.bits"] == "1"
    assert "adversarial_accuracy" in capsys.readouterr().err
    assert (
        command("evaluate", "bits=FP", "training.epochs=1", "data.split_seed=1", f"examples={source.info.run_id}") == 1
    )


@pytest.mark.parametrize("aim", ["attack=fgsm", "attack.target=next"])
def test_evaluating_examples_on_their_own_network_gives_the_attack_s_figures(command, client, aim):
    assert command("attack", "bits=1", *QUICK, aim) == 0
    (source,) = runs_of(client, "attack")
    network = source.data.tags["source_run_id"]
    assert command("evaluate", "bits=1", f"network={network}", f"examples={source.info.run_id}") == 0
    (run,) = runs_of(client, "evaluate")
    for figure in ("adversarial_accuracy", "attack_success_rate", "n", "gave_up", "l2_all"):
        assert run.data.metrics[figure] == source.data.metrics[figure]


def test_attack_on_a_stored_network_folder(command, client, workspace):
    assert command("train", "bits=4", "training.epochs=1") == 0
    folder = next(workspace.rglob("network.json")).parent
    assert command("attack", "bits=4", f"network={folder}", "n=3") == 0
    (run,) = runs_of(client, "attack")
    assert run.data.params["network"] == runs_of(client, "train")[0].data.tags["fingerprint"]


@pytest.mark.parametrize(
    ("settings", "variant", "bound"),
    [
        ((), "cross_entropy", ("linf", 0.25)),
        (("attack.norm=2", "attack.eps=1.5", "attack.loss=margin", "attack.num_random_init=0"), "margin", ("l2", 1.5)),
    ],
    ids=["default", "l2 margin"],
)
def test_projected_gradient_descent_stays_in_its_ball(attacked, shared_store, settings, variant, bound):
    run = attacked("attack=pgd", "attack.max_iter=5", *settings)
    assert run.data.params["variant"] == variant
    assert run.data.params["backend"] == "native"
    distance, radius = bound
    moved = per_image_table(shared_store, run)[distance]
    assert 0.1 * radius < moved.min()
    assert moved.max() <= radius + 1e-5
    assert run.data.metrics["forwards_per_image"] >= 1
    assert PROGRESS not in artifacts(shared_store, run)


PARAMS = "attack.params={eps:0.1,max_iter:5}"


@pytest.mark.parametrize("name", ["SquareAttack", "ProjectedGradientDescent"])
def test_any_attack_of_art_is_run_by_the_name_of_its_class(attacked, shared_store, name):
    run = attacked("attack=art_any", f"attack.class={name}", PARAMS, "seed=1")
    said = run.data.params
    assert (said["attack"], said["variant"], said["backend"]) == ("art_any", name, "art")
    assert said["attack.params"] == "{'eps': 0.1, 'max_iter': 5}"
    assert per_image_table(shared_store, run)["linf"].max() == pytest.approx(0.1, abs=1e-5)


def test_snapshots_of_the_boundary_attack_are_a_table_of_its_progress(attacked, shared_store):
    settings = ("attack=boundary", "attack.max_iter=6", "attack.delta=0.1", "attack.epsilon=0.1", "seed=2")
    run = attacked(*settings, "attack.snapshots=[0,2,6]", "tracking.image_rows=2")
    progress = pd.read_json(shared_store.download_artifacts(run.info.run_id, PROGRESS), orient="split")
    assert progress["iteration"].tolist() == [0, 2, 6]
    assert (np.diff(progress["l2"]) < 0).all()
    last, figures = progress.iloc[-1], run.data.metrics
    assert last["adversarial_accuracy"] == pytest.approx(figures["adversarial_accuracy"])
    assert last["l2"] == pytest.approx(figures["l2"], rel=1e-4)
    assert last["l2_median"] == pytest.approx(figures["l2_median"], rel=1e-4)
    pictures = load_file(shared_store.download_artifacts(run.info.run_id, SNAPSHOTS))
    assert pictures["iterations"].tolist() == [0, 2, 6]
    assert pictures["images"].shape == (3, 2, 1, 28, 28)
    assert pictures["images"][-1].equal(examples_of(shared_store, run).x_adv[:2])
    without = attacked(*settings)
    assert not {PROGRESS, SNAPSHOTS} & (artifacts(shared_store, without) | artifacts(shared_store, without, "examples"))
    assert without.data.metrics["l2"] == figures["l2"]


def test_universal_perturbation_grown_on_training_images_is_applied_to_the_attacked_ones(attacked, shared_store):
    runs = {
        craft: attacked("attack=uap", "attack.max_iter=2", "seed=3", f"attack.craft={craft}", "attack.craft_n=20")
        for craft in ("attacked", "train")
    }
    assert (runs["train"].data.params["attack.craft"], runs["train"].data.params["attack.craft_n"]) == ("train", "20")
    assert "attack.craft" not in runs["attacked"].data.params
    stored = {craft: examples_of(shared_store, run) for craft, run in runs.items()}
    assert stored["train"].indices.tolist() == stored["attacked"].indices.tolist()
    assert not stored["train"].perturbation.equal(stored["attacked"].perturbation)
    for examples in stored.values():
        assert examples.perturbation.abs().max() > 0
        inside = (examples.x_adv > 0) & (examples.x_adv < 1)
        clean = (examples.x_adv - examples.perturbation)[inside]
        np.testing.assert_allclose(clean * 255, (clean * 255).round(), atol=1e-3)  # a shade of grey
    # shares of twenty and of five images
    assert runs["train"].data.metrics["fooling_rate"] * 20 % 1 == pytest.approx(0)
    fooled = 1 - runs["attacked"].data.metrics["adversarial_accuracy"]
    assert runs["attacked"].data.metrics["fooling_rate"] == pytest.approx(fooled)


@pytest.mark.parametrize(
    "settings",
    [
        ("attack=cw", "attack.variant=adam", "attack.max_iter=3", "attack.binary_search_steps=2"),
        ("attack=cw", "attack.variant=line_search", "attack.max_iter=2", "attack.binary_search_steps=2"),
        ("attack=jsma", "attack.variant=pairwise", "attack.gamma=0.02"),
        ("attack=boundary", "attack.variant=first", "attack.max_iter=1"),
        ("attack=boundary", "attack.variant=closest", "attack.max_iter=1", "backend=art"),
    ],
    ids=" ".join,
)
def test_runs_name_their_variant_and_their_backend(attacked, settings):
    run = attacked(*settings)
    chosen = dict(setting.split("=") for setting in settings)
    assert run.data.params["variant"] == chosen["attack.variant"]
    assert run.data.params["backend"] == chosen.get("backend", "native")
    assert run.data.metrics["n"] == 5


def test_the_network_was_trained_once_for_all_of_these(attacked, shared_store):
    attacked("attack.eps=0.01")
    assert len(runs_of(shared_store, "train")) == 1
