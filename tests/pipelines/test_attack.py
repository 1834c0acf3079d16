import mlflow
import pytest

from attacks import load_examples
from pipelines.attack import EXAMPLES, GRID, TABLE
from tests.pipelines.conftest import QUICK, per_image_table, runs_of


def artifacts(client, run, path=""):
    return {item.path for item in client.list_artifacts(run.info.run_id, path)}


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


def test_evaluating_examples_on_their_own_network_gives_the_attack_s_figures(command, client):
    assert command("attack", "bits=1", *QUICK) == 0
    (source,) = runs_of(client, "attack")
    network = source.data.tags["source_run_id"]
    assert command("evaluate", "bits=1", f"network={network}", f"examples={source.info.run_id}") == 0
    (run,) = runs_of(client, "evaluate")
    for figure in ("adversarial_accuracy", "n", "gave_up", "l2_all"):
        assert run.data.metrics[figure] == source.data.metrics[figure]


def test_attack_on_a_stored_network_folder(command, client, workspace):
    assert command("train", "bits=4", "training.epochs=1") == 0
    folder = next(workspace.rglob("network.json")).parent
    assert command("attack", "bits=4", f"network={folder}", "n=3") == 0
    (run,) = runs_of(client, "attack")
    assert run.data.params["network"] == runs_of(client, "train")[0].data.tags["fingerprint"]
