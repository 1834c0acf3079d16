"""Gradient alignment and sensitivity maps as a user launches them, on the bundled digits."""

import pandas as pd
import pytest
from mlflow import MlflowClient

from pipelines import alignment, sensitivity
from tests.pipelines.conftest import runs_of

NETWORK = (
    "quantizer=uniform", "model.net.width=4", "defence.widths=[FP,4,2]", "training.epochs=2", "training.batch_size=256",
    "trainer.threads=1", "trainer.accelerator=cpu", "compare=[FP,4,2]",
)  # fmt: skip
PATCH = ("n=20", "attack.max_iter=3", "attack.craft=attacked")


def table(client: MlflowClient, run, name: str) -> pd.DataFrame:
    return pd.read_json(client.download_artifacts(run.info.run_id, name), orient="split", dtype={"bits": str})


def test_alignment_compares_all_pairs_with_two_nulls_and_is_skipped_when_done(command, client, capsys):
    assert command("alignment", *NETWORK, "n=40") == 0
    (run,) = runs_of(client, "alignment")
    found = table(client, run, alignment.TABLE)
    assert set(found["pair"]) == {"FP-4", "FP-2", "4-2"}
    assert set(found["kind"]) == {"measured", "shuffled", "noise"}
    assert (found["n"] <= 40).all()
    assert run.data.metrics["mean_cosine"] == pytest.approx(found[found["kind"] == "measured"]["cosine"].mean())
    assert len(runs_of(client, "train")) == 1
    assert command("alignment", *NETWORK, "n=40", "bits=4") == 0
    assert "already complete" in capsys.readouterr().err


def test_alignment_on_patched_images_attacks_them_first(command, client):
    assert command("alignment", *NETWORK, "n=20") == 0
    assert not runs_of(client, "attack")
    assert command("alignment", *NETWORK, *PATCH, "patched=2") == 0
    (attacked,) = runs_of(client, "attack")
    assert (attacked.data.params["attack"], attacked.data.params["bits"]) == ("patch_lavan", "2")
    patched, clean = runs_of(client, "alignment")
    assert patched.data.params["patched"] == "2"
    assert patched.data.params["attack.size"] == attacked.data.params["attack.size"]
    assert "patched" not in clean.data.params
    assert patched.data.metrics["mean_cosine"] != clean.data.metrics["mean_cosine"]


def test_sensitivity_maps_each_widths_own_patch_and_noise(command, client):
    assert command("sensitivity", *NETWORK, *PATCH, "images=15", "stride=11") == 0
    assert len(runs_of(client, "attack")) == 3
    (run,) = runs_of(client, "sensitivity")
    found = table(client, run, sensitivity.TABLE)
    assert set(zip(found["bits"], found["kind"], strict=True)) == {
        (b, k) for b in ("FP", "4", "2") for k in ("patch", "noise")
    }
    assert set(found["row"]) == set(found["column"]) == {0, 11, 22}
    assert (found["n"] <= 15).all()
    assert found["success_rate"].between(0, 1).all()
    agreement = table(client, run, sensitivity.AGREEMENT)
    assert len(agreement) == 6
    assert agreement["top_overlap"].dropna().between(0, 1).all()  # a map of one value agrees with none


@pytest.mark.parametrize(
    ("pipeline", "overrides", "message"),
    [
        ("alignment", ["compare=[FP]"], "at least two widths"),
        ("alignment", ["compare=[FP,x]"], "compare"),
        ("alignment", ["n=1"], "n=1 is out of range"),
        ("alignment", ["cell=0", "n=40"], "cell=0 is out of range"),
        ("alignment", ["patched=2", "attack=fgsm", "n=40"], "makes no patches"),
        ("alignment", ["patched=x", "n=40"], "patched=x: "),
        ("sensitivity", ["attack=fgsm"], "no one patch for all images"),
        ("sensitivity", ["attack=patch_located"], "no one patch for all images"),
        ("sensitivity", ["stride=0"], "stride=0 is out of range"),
    ],
)
def test_what_cannot_be_compared_is_one_line_before_any_training(command, capsys, client, pipeline, overrides, message):
    assert command(pipeline, *NETWORK, *overrides) == 1
    assert message in capsys.readouterr().err
    assert not runs_of(client, "train")
