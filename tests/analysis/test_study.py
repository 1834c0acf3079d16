import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow.parquet
import pytest
import torch
from mlflow import MlflowClient
from safetensors import safe_open
from safetensors.torch import save_file

from analysis.study import KINDS, PICTURES, TABLES, Study, from_store, load, main, merged, save, without
from attacks import AdversarialExamples, per_image_record, save_examples

IMAGES = 12


class Store:
    def __init__(self, folder):
        self.folder, self.uri = folder, f"sqlite:///{folder / 'mlflow.db'}"
        self.client = MlflowClient(self.uri)
        self.studies = {}

    def log(self, kind, fingerprint, *, study="s", started=1, complete="true", params=None, metrics=None, tables=None):
        if study not in self.studies:
            self.studies[study] = self.client.create_experiment(study, (self.folder / "artifacts").as_uri())
        tags = {"kind": kind, "fingerprint": fingerprint, "complete": complete, "hardware": "a machine"}
        run_id = self.client.create_run(self.studies[study], start_time=started, tags=tags).info.run_id
        for name, value in (params or {}).items():
            self.client.log_param(run_id, name, value)
        for name, value in (metrics or {}).items():
            self.client.log_metric(run_id, name, value)
        for name, table in (tables or {}).items():
            self.client.log_table(run_id, table, name)
        return run_id


def bright(count, *, by=1.0):
    """Images that grow brighter one after another, the last by `by`."""
    return torch.linspace(0, by, count)[:, None, None, None].expand(count, 1, 4, 4).contiguous()


def record():
    """The first half evades; distances grow with the index."""
    labels = torch.zeros(IMAGES, dtype=torch.int64)
    logits = torch.tensor([[0.0, 2.0, 1.0]] * (IMAGES // 2) + [[1.0, 0.0, 0.0]] * (IMAGES // 2))
    x_adv = bright(IMAGES)
    return per_image_record(torch.arange(IMAGES), labels, torch.zeros_like(x_adv), x_adv, logits, logits)


@pytest.fixture(scope="module")
def patches(tmp_path_factory):
    """A store of patch attacks and comparisons of widths."""
    folder = tmp_path_factory.mktemp("patches")
    store = Store(folder)
    labels = torch.zeros(IMAGES, dtype=torch.int64)
    patch = torch.full((1, 2, 2), 0.2)
    for name, shown, seed in (
        ("universal", patch, "0"),
        ("each", patch.expand(IMAGES, 1, 2, 2).clone(), "0"),
        ("later", patch, "1"),
    ):
        examples = AdversarialExamples(bright(IMAGES), labels, labels.clone(), {}, patch=shown)
        save_examples(folder / "adversarial.safetensors", examples)
        run_id = store.log("attack", name, params={"attack": "patch_lavan", "seed": seed})
        store.client.log_artifact(run_id, str(folder / "adversarial.safetensors"), "examples")
    pairs = pd.DataFrame({"pair": ["FP-2"], "kind": ["measured"], "cosine": [0.25]})
    store.log("alignment", "aligned", params={"model": "mnist_a"}, tables={"alignment.json": pairs})
    places = pd.DataFrame({"bits": ["2"], "kind": ["noise"], "row": [0], "column": [2], "success_rate": [0.5]})
    store.log("sensitivity", "mapped", params={"model": "mnist_a"}, tables={"sensitivity.json": places})
    return store


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    store = Store(folder)
    store.log("train", "net", params={"model": "mnist_a"}, metrics={"test_accuracy": 0.98})
    store.log("attack", "bare", params={"attack": "fgsm"})
    store.log("attack", "unfinished", params={"attack": "fgsm"}, complete="false")
    store.log("attack", "twice", started=5, params={"attack": "fgsm", "seed": "new"}, metrics={"n": 3})
    store.log("attack", "twice", started=2, params={"attack": "fgsm", "seed": "old"}, metrics={"n": 4})
    store.log("attack", "elsewhere", study="t", params={"attack": "cw"})
    progress = pd.DataFrame({"iteration": [0, 5], "l2": [3.0, 2.0]})
    whole = store.log(
        "attack",
        "whole",
        params={"attack": "boundary", "attack.eps": 0.25},
        metrics={"n": IMAGES},
        tables={"per_image.json": record(), "progress.json": progress},
    )
    labels = torch.zeros(IMAGES, dtype=torch.int64)
    save_examples(folder / "adversarial.safetensors", AdversarialExamples(bright(IMAGES), labels, labels.clone(), {}))
    after = torch.stack([bright(IMAGES), bright(IMAGES, by=0.5)])
    snapshots = {"clean": bright(IMAGES), "images": after, "iterations": torch.tensor([0, 5])}
    save_file(snapshots, folder / "snapshots.safetensors")
    single = store.log("attack", "single", params={"attack": "fgsm"}, tables={"per_image.json": record()})
    for run_id, name in ((whole, "adversarial"), (whole, "snapshots"), (single, "adversarial")):
        store.client.log_artifact(run_id, str(folder / f"{name}.safetensors"), "examples")
    images = pd.DataFrame({"target_bits": ["FP", "1"], "index": [4, 4], "evaded": [True, False]})
    targets = pd.DataFrame({"target_bits": ["FP", "1"], "n": [9, 9], "transfer_rate": [0.5, 0.25]})
    store.log("transfer", "moved", params={"attack": "fgsm"},
              tables={"transfer.json": targets, "transferred.json": images})  # fmt: skip
    return store


@pytest.fixture(scope="module")
def study(store):
    return from_store(store.uri)


def test_complete_runs_are_read_with_parameters_as_text_and_metrics_as_numbers(study):
    assert (len(study.train), len(study.transfer)) == (1, 1)
    assert set(study.attack["fingerprint"]) == {"bare", "twice", "elsewhere", "whole", "single"}
    whole = study.attack.set_index("fingerprint").loc["whole"]
    assert (whole["params.attack.eps"], whole["metrics.n"], whole["hardware"]) == ("0.25", IMAGES, "a machine")
    assert study.train["metrics.test_accuracy"].item() == 0.98


def test_of_a_fingerprint_the_newest_run_counts(study):
    twice = study.attack.set_index("fingerprint").loc["twice"]
    assert (twice["params.seed"], twice["metrics.n"], twice["superseded"]) == ("new", 3, 1)


def test_images_hang_on_their_run_by_its_fingerprint(study):
    assert set(study.images["fingerprint"]) == {"whole", "single"}
    wanted, images = record(), study.images[study.images["fingerprint"] == "whole"]
    for name in ("index", "evaded", "success", "gave_up", "label_rank", "l0"):
        assert images[name].tolist() == wanted[name].tolist()
    assert images["l2"].tolist() == pytest.approx(wanted["l2"].tolist(), rel=1e-6)


def test_other_tables_hang_on_their_run_by_its_fingerprint(study):
    assert study.progress.to_dict("list") == {"iteration": [0, 5], "l2": [3, 2], "fingerprint": ["whole", "whole"]}
    assert study.transfers[["target_bits", "transfer_rate"]].to_numpy().tolist() == [["FP", 0.5], ["1", 0.25]]
    assert study.transferred["evaded"].tolist() == [True, False]
    assert set(study.transfers["fingerprint"]) | set(study.transferred["fingerprint"]) == {"moved"}


def test_pictures_are_the_first_images_and_snapshots_and_the_farthest_successful_ones(study):
    assert set(study.pictures) == {
        "single.first", *(f"whole.{name}" for name in ("clean", "snapshots", "iterations", "farthest")),
    }  # fmt: skip
    shades = np.round(np.linspace(0, 1, IMAGES) * 255)
    first, after = study.pictures["single.first"], study.pictures["whole.snapshots"]
    assert first.dtype == np.uint8
    assert first.shape == (PICTURES, 1, 4, 4)
    assert first[:, 0, 0, 0].tolist() == shades[:PICTURES].tolist()
    assert (study.pictures["whole.clean"] == first).all()
    assert after.shape == (2, PICTURES, 1, 4, 4)
    assert after[1, :, 0, 0, 0].tolist() == np.round(np.linspace(0, 0.5, IMAGES)[:PICTURES] * 255).tolist()
    assert study.pictures["whole.iterations"].tolist() == [0, 5]
    farthest = study.pictures["whole.farthest"][: IMAGES // 2, 0, 0, 0]
    assert farthest.tolist() == shades[: IMAGES // 2][::-1].tolist()


def test_runs_of_one_study_can_be_chosen(store):
    assert from_store(store.uri, ["t"]).attack["fingerprint"].tolist() == ["elsewhere"]
    with pytest.raises(LookupError, match=r"no study named x in .*: there are"):
        from_store(store.uri, ["x"])


def same(one: Study, other: Study) -> None:
    for name in (*KINDS, *TABLES):
        pd.testing.assert_frame_equal(getattr(one, name), getattr(other, name), check_column_type=False)
    assert one.pictures.keys() == other.pictures.keys()
    for name, images in one.pictures.items():
        np.testing.assert_array_equal(images, other.pictures[name], strict=True)


def test_what_is_saved_is_loaded(study, tmp_path):
    save(study, tmp_path / "runs")
    same(load(tmp_path / "runs"), study)


def test_a_study_without_attacks_is_saved_and_loaded(tmp_path):
    bare = Study(pd.DataFrame({"fingerprint": ["net"]}), pd.DataFrame(), pd.DataFrame())
    save(bare, tmp_path)
    same(load(tmp_path), bare)


def test_every_exported_file_says_where_it_comes_from(study, tmp_path):
    save(study, tmp_path)
    for path in tmp_path.iterdir():
        if path.suffix == ".parquet":
            told = pyarrow.parquet.read_schema(path).metadata[b"provenance"]
        else:
            with safe_open(path, framework="numpy") as stored:
                told = stored.metadata()["provenance"]
        facts = json.loads(told)
        assert facts["command"] == "python -m analysis.study"
        assert facts["runs"] > 0
        assert {"commit", "versions", "hardware", "first", "last"} <= facts.keys()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("pictures.safetensors", None, "pictures.safetensors is missing"),
        ("pictures.safetensors", b"cut", "pictures.safetensors is damaged"),
        ("images.parquet", b"PAR1cut", "images.parquet is damaged"),
    ],
)
def test_a_damaged_export_is_named(name, content, message, study, tmp_path):
    save(study, tmp_path)
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(LookupError, match=message):
        load(tmp_path)


def test_an_empty_folder_is_no_study(tmp_path):
    with pytest.raises(LookupError, match="holds no exported study"):
        load(tmp_path)


def test_a_store_is_exported_from_the_command_line(store, study, tmp_path, capsys):
    assert main(["--tracking-uri", store.uri, "--out", str(tmp_path / "runs")]) == 0
    assert (
        f"1 train, 5 attack, 1 transfer, 0 alignment, 0 sensitivity runs written to {tmp_path / 'runs'}"
        in capsys.readouterr().out
    )
    same(load(tmp_path / "runs"), study)


def test_without_runs_there_is_a_message_and_a_status(store, tmp_path, capsys):
    assert main(["--tracking-uri", store.uri, "--study", "x"]) == 1
    assert "no study named x" in capsys.readouterr().err
    assert main(["--tracking-uri", f"sqlite:///{tmp_path / 'none.db'}", "--out", str(tmp_path / "runs")]) == 1
    assert "no complete runs" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_merging_keeps_what_only_the_old_study_has_and_takes_the_rest_from_the_new(study):
    older = study.attack.assign(started=0.0, **{"metrics.n": 1.0})
    gone = older.iloc[:1].assign(fingerprint="gone")
    images = study.images.astype({"fingerprint": str})
    old = replace(
        study,
        attack=pd.concat([older, gone], ignore_index=True),
        images=pd.concat([images, images.iloc[:2].assign(fingerprint="gone")], ignore_index=True),
        pictures={"gone.first": np.zeros(1), "whole.clean": np.zeros(1)},
    )
    both = merged(old, study)
    assert sorted(both.attack["fingerprint"]) == sorted([*study.attack["fingerprint"], "gone"])
    assert both.attack.set_index("fingerprint").loc["whole", "metrics.n"] == IMAGES
    assert (both.images["fingerprint"] == "gone").sum() == 2
    assert len(both.images) == len(study.images) + 2
    assert set(both.pictures) == {*study.pictures, "gone.first"}
    assert both.pictures["whole.clean"].shape == study.pictures["whole.clean"].shape


def test_merging_with_nothing_changes_nothing(study):
    nothing = Study(pd.DataFrame(), pd.DataFrame(), pd.DataFrame())
    for both in (merged(nothing, study), merged(study, nothing)):
        for name in (*KINDS, *TABLES):
            pd.testing.assert_frame_equal(
                getattr(both, name), getattr(study, name), check_dtype=False, check_categorical=False
            )


def test_a_network_that_was_replaced_is_forgotten_with_all_of_its_runs(study):
    networks = {"whole": "net@4", "single": "other", "moved": "other"}
    study = replace(
        study,
        attack=study.attack.assign(**{"params.network": study.attack["fingerprint"].map(networks)}),
        transfer=study.transfer.assign(**{"params.network": study.transfer["fingerprint"].map(networks)}),
        transfers=study.transfers.assign(target_network=["net", "other"]),
    )
    left = without(study, ["net"])
    for name in ("attack", "images", "progress"):
        before = set(getattr(study, name)["fingerprint"])
        assert set(getattr(left, name)["fingerprint"]) == before - {"whole"}
    assert not any(len(getattr(left, name)) for name in ("train", "transfer", "transferred"))
    assert {name.partition(".")[0] for name in left.pictures} == {"single"}
    same = without(study, [])
    assert all(len(getattr(same, name)) == len(getattr(study, name)) for name in (*KINDS, *TABLES))
    assert same.pictures.keys() == study.pictures.keys()


def test_universal_patches_of_the_first_seed_are_kept_with_patched_images(patches):
    pictures = from_store(patches.uri).pictures
    assert pictures["universal.patch"].shape == (1, 2, 2)
    assert (pictures["universal.patch"] == 51).all()
    assert pictures["universal.first"].shape == (PICTURES, 1, 4, 4)
    assert not {name for name in pictures if name.startswith(("each.", "later."))}


def test_comparisons_of_widths_are_kept(patches, tmp_path):
    save(from_store(patches.uri), tmp_path)
    study = load(tmp_path)
    assert study.alignments[["fingerprint", "pair", "cosine"]].values.tolist() == [["aligned", "FP-2", 0.25]]
    assert study.sensitivities["success_rate"].tolist() == [0.5]
    assert study.alignment["params.model"].tolist() == study.sensitivity["params.model"].tolist() == ["mnist_a"]


def test_an_export_from_before_there_were_such_runs_can_be_read(patches, tmp_path):
    save(from_store(patches.uri), tmp_path)
    for name in ("alignment", "alignments", "sensitivity", "sensitivities"):
        (tmp_path / f"{name}.parquet").unlink()
    study = load(tmp_path)
    assert study.alignment.empty
    assert len(study.attack)
