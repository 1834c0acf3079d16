"""Networks shipped with the package: released from a store, then used where there is no store."""

import json
import shutil
import sqlite3
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipelines import release
from pipelines.cli import launch
from qnn import released
from qnn.checkpoint import DESCRIPTION, WEIGHTS, read_description, rebuild
from tests.pipelines.conftest import enter, runs_of

TRAINED = ("training.epochs=1", "trainer.threads=1", "trainer.accelerator=cpu")
RELEASED = ("weights=released", "trainer.threads=1", "trainer.accelerator=cpu")
FIGURES_OF_TIME = {"seconds"}


def launched(pipeline: str, folder: Path, *overrides: str) -> int:
    """Run a pipeline as from the command line, in `folder`."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        enter(folder, monkeypatch)
        monkeypatch.setattr("sys.argv", [f"pipelines.{pipeline}", *overrides])
        return launch(pipeline)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with three trainings, one of them a control, and an attack on one of them."""
    folder = tmp_path_factory.mktemp("store")
    assert launched("train", folder, "-m", "bits=1,w4a2", *TRAINED) == 0
    assert launched("train", folder, "quantizer=clip_only", "training.seed=2", "study=control", *TRAINED) == 0
    assert launched("attack", folder, "bits=w4a2", "attack.eps=0.1", "n=20", *TRAINED) == 0
    return folder


@pytest.fixture
def uri(store: Path) -> str:
    return f"sqlite:///{store / 'mlflow.db'}"


@pytest.fixture(scope="module")
def shipped(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of released networks."""
    folder = tmp_path_factory.mktemp("shipped")
    assert release.main(["--tracking-uri", f"sqlite:///{store / 'mlflow.db'}", "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def networks(shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it in the place of the package's own."""
    folder = tmp_path / "networks"
    shutil.copytree(shipped, folder)
    monkeypatch.setattr(released, "FOLDER", folder)
    return folder


def row_of(text: str, *first: str) -> list[str]:
    """The cells of the one table row that begins with these."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    (found,) = [row for row in rows if row[: len(first)] == list(first)]
    return found


def test_released_networks_are_packed_and_say_what_they_are(shipped: Path, store: Path):
    folders = {path.name for path in shipped.iterdir() if path.is_dir()}
    assert folders == {
        "mnist_a-digits-1-mnist_fast-seed0",
        "mnist_a-digits-w4a2-mnist_fast-seed0",
        "mnist_a-digits-FP-clip_only-mnist_fast-seed2",
    }
    described = read_description(shipped / "mnist_a-digits-1-mnist_fast-seed0")
    (run,) = [run for run in runs_of(client_of(store), "train") if run.data.params["bits"] == "1"]
    assert described["fingerprint"] == run.data.tags["fingerprint"]
    assert (described["test_accuracy"], described["test_images"]) == (run.data.metrics["test_accuracy"], 450)
    assert described["packed"]["fc0.weight"] == {"bits": 1, "shape": [512, 784]}


def client_of(folder: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")


def test_attack_on_a_released_network_is_the_cell_of_the_trained_one(store: Path, networks: Path, workspace, command):
    # neither its training nor a store has to be at hand, nor has its recipe to be known
    assert command("attack", "bits=w4a2", "attack.eps=0.1", "n=20", *RELEASED) == 0
    (theirs,), (ours,) = (runs_of(client_of(folder), "attack") for folder in (store, workspace))
    assert not runs_of(client_of(workspace), "train")
    assert ours.data.tags["fingerprint"] == theirs.data.tags["fingerprint"]
    assert ours.data.params == theirs.data.params
    assert ours.data.params["training.epochs"] == "1"
    figures = [
        {name: value for name, value in run.data.metrics.items() if name not in FIGURES_OF_TIME}
        for run in (ours, theirs)
    ]
    assert figures[0] == figures[1]


def test_every_pipeline_takes_a_released_network(networks: Path, command, client, capsys):
    assert command("attack", "-m", "bits=1,w4a2", "n=5", *RELEASED) == 0
    assert command("evaluate", "bits=FP", "quantizer=clip_only", "training.seed=2", *RELEASED) == 0
    (evaluated,) = runs_of(client, "evaluate")
    described = read_description(networks / "mnist_a-digits-FP-clip_only-mnist_fast-seed2")
    assert evaluated.data.metrics["test_accuracy"] == described["test_accuracy"]
    assert {run.data.params["network"] for run in runs_of(client, "attack")} == {
        read_description(networks / f"mnist_a-digits-{bits}-mnist_fast-seed0")["fingerprint"] for bits in ("1", "w4a2")
    }


@pytest.mark.parametrize(("recipe", "chosen"), [("mnist_short", "mnist_short"), ("resnet_fast", "mnist_fast")])
def test_of_two_alike_the_recipe_decides(networks: Path, recipe: str, chosen: str):
    folder = networks / "mnist_a-digits-1-mnist_fast-seed0"
    described = read_description(folder)
    other = shutil.copytree(folder, networks / "mnist_a-digits-1-mnist_short-seed0") / DESCRIPTION
    other.write_text(json.dumps({**described, "training": {**described["training"], "name": "mnist_short"}}))
    wanted = {name: described[name] for name in ("net", "quantizer", "bits", "data")}
    found = released.find(networks, **wanted, training_seed=0, recipe=recipe)
    assert found == networks / f"mnist_a-digits-1-{chosen}-seed0"


def test_a_packed_folder_is_a_stored_network(networks: Path, command, client):
    folder = networks / "mnist_a-digits-1-mnist_fast-seed0"
    assert command("attack", "bits=1", f"network={folder}", "n=5", "trainer.accelerator=cpu") == 0
    (run,) = runs_of(client, "attack")
    assert run.data.params["network"] == read_description(folder)["fingerprint"]


THERE_ARE = (
    "there are bits=1,w4a2 data=digits training.seed=0,"
    " bits=FP data=digits training.seed=2 quantizer=clip_only; weights=trained trains it"
)
CASES = [
    ("attack", ["weights=nope"], "weights=nope is unknown: use trained or released"),
    ("train", ["weights=nope"], "weights=nope is unknown: use trained or released"),
    ("attack", ["weights=null"], "weights=None is unknown"),
    ("train", ["weights=released", "bits=1"], "weights=released: released networks need no training"),
    ("attack", ["weights=released", "network=x"], "weights=released and network=x name a network each"),
    ("evaluate", ["weights=released", "network=x"], "weights=released and network=x name a network each"),
    ("attack", ["weights=released"], "no mnist_a with bits=FP data=digits training.seed=0 is released: " + THERE_ARE),
    ("evaluate", ["weights=released", "bits=2"], THERE_ARE),
    ("attack", ["weights=released", "bits=1", "training.seed=1"], THERE_ARE),
    ("attack", ["weights=released", "model.net.width=8", "bits=1"], THERE_ARE),
    (
        "attack",
        ["weights=released", "model.net.topology=quantized"],
        "training.seed=0 model.net.topology=quantized is released",
    ),
    ("attack", ["weights=released", "model=lenet5_a"], "there are networks of mnist_a only"),
]


@pytest.mark.parametrize(
    ("pipeline", "overrides", "message"), CASES, ids=[" ".join([case[0], *case[1]]) for case in CASES]
)
@pytest.mark.parametrize("mode", [[], ["-m"]], ids=["one", "sweep"])
def test_what_is_not_released_is_a_one_line_error(pipeline, overrides, message, mode, networks, command, capsys):
    assert command(pipeline, *mode, *overrides) == 1
    assert_one_line_with(message, capsys)


def assert_one_line_with(message: str, capsys: pytest.CaptureFixture) -> None:
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("checking")]
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert message in lines[0]


def test_nothing_released_at_all_is_said(command, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr(released, "FOLDER", tmp_path)
    assert command("attack", "weights=released") == 1
    assert_one_line_with("there are no released networks; weights=trained trains it", capsys)


@pytest.mark.parametrize(
    ("file", "message"),
    [(WEIGHTS, "is damaged or cut short"), (DESCRIPTION, "cannot be read")],
    ids=["weights", "json"],
)
def test_damaged_release_is_noticed_before_anything_runs(file, message, networks: Path, command, capsys):
    path = networks / "mnist_a-digits-1-mnist_fast-seed0" / file
    path.write_bytes(path.read_bytes()[:-100])
    assert command("attack", "bits=1", *RELEASED) == 1
    assert_one_line_with(message, capsys)


def test_a_description_without_its_training_is_damaged(networks: Path, command, capsys):
    path = networks / "mnist_a-digits-1-mnist_fast-seed0" / DESCRIPTION
    described = json.loads(path.read_text())
    del described["training"]
    path.write_text(json.dumps(described))
    assert command("attack", "bits=1", *RELEASED) == 1
    assert_one_line_with("does not say what the network was trained with", capsys)


def test_table_lists_every_network_and_the_sizes_by_width(shipped: Path):
    text = (shipped / release.README).read_text()
    for name, first in {
        "mnist_a-digits-1-mnist_fast-seed0": ("mnist_a", "digits", "1"),
        "mnist_a-digits-w4a2-mnist_fast-seed0": ("mnist_a", "digits", "w4a2"),
        "mnist_a-digits-FP-clip_only-mnist_fast-seed2": (
            "mnist_a quantizer=clip_only",
            "digits",
            "FP",
            "mnist_fast",
            "1",
            "2",
        ),
    }.items():
        described = read_description(shipped / name)
        size = (shipped / name / WEIGHTS).stat().st_size
        accuracy, written, _, digest = row_of(text, *first)[6:]
        assert accuracy == f"{described['test_accuracy']:.2%} (n = 450)"
        assert written == f"{size:,}"
        assert digest == f"`{described['sha256'][:12]}`"
    shares = {bits: float(row_of(text, bits, "1")[3].rstrip("%")) / 100 for bits in ("FP", "1", "w4a2")}
    assert shares["FP"] == 1
    assert 1 / 32 < shares["1"] < 1 / 32 + 0.02
    assert 4 / 32 < shares["w4a2"] < 4 / 32 + 0.02
    total = sum(path.stat().st_size for path in shipped.rglob(WEIGHTS))
    assert row_of(text, "all", "3")[2] == f"{total:,}"


def test_releases_add_up_and_repeat_themselves(uri: str, shipped: Path, tmp_path: Path):
    def released_with(*arguments: str) -> int:
        return release.main(["--tracking-uri", uri, "--out", str(tmp_path / "new"), *arguments])

    for arguments in (["--study", "control"], ["--bits", "1", "--bits", "w4a2", "--model", "mnist_a"]):
        assert released_with(*arguments) == 0
    paths = sorted(path.relative_to(shipped) for path in shipped.rglob("*") if path.is_file())
    assert len(paths) == 7
    assert paths == sorted(
        path.relative_to(tmp_path / "new") for path in (tmp_path / "new").rglob("*") if path.is_file()
    )
    assert all((shipped / path).read_bytes() == (tmp_path / "new" / path).read_bytes() for path in paths)


def test_one_run_is_released_by_its_id(store: Path, uri: str, tmp_path: Path):
    (run,) = [run for run in runs_of(client_of(store), "train") if run.data.params["bits"] == "w4a2"]
    assert release.main([run.info.run_id, "--tracking-uri", uri, "--out", str(tmp_path)]) == 0
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["mnist_a-digits-w4a2-mnist_fast-seed0"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--study", "nope"], "no study named nope"),
        (["--model", "mnist_b"], "no complete training of model mnist_b in"),
        (["--bits", "1", "--bits", "7"], "no complete training of bits 7 in"),
        (["0123"], "no complete training of run_id 0123 in"),
    ],
)
def test_what_is_not_in_the_store_cannot_be_released(arguments, message, uri: str, tmp_path: Path, capsys):
    assert release.main([*arguments, "--tracking-uri", uri, "--out", str(tmp_path / "new")]) == 1
    assert_one_line_with(message, capsys)
    assert not (tmp_path / "new").exists()


def test_an_empty_store_has_nothing_to_release(tmp_path: Path, capsys):
    assert release.main(["--tracking-uri", f"sqlite:///{tmp_path / 'new.db'}", "--out", str(tmp_path / "new")]) == 1
    assert "no complete trainings in" in capsys.readouterr().err


@pytest.fixture
def copied(store: Path, tmp_path: Path) -> Path:
    """A copy of the store's database, to be changed."""
    return shutil.copy(store / "mlflow.db", tmp_path / "copy.db")


def alter(database: Path, statement: str) -> str:
    with sqlite3.connect(database) as connection:
        connection.execute(statement)
    return f"sqlite:///{database}"


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("update latest_metrics set value = 0.5 where key = 'test_accuracy'", "has test accuracy 0."),
        ("update params set value = '7' where key = 'data.split_seed'", "was not trained on the digits found here"),
        ("update params set value = 'nope' where key = 'data'", "Could not find 'data/nope'"),
    ],
    ids=["accuracy", "split", "data"],
)
def test_network_that_does_not_do_what_was_tracked_is_not_released(
    statement: str, message: str, copied: Path, tmp_path: Path, capsys
):
    arguments: list[str] = ["--tracking-uri", alter(copied, statement), "--bits", "1", "--out", str(tmp_path / "new")]
    assert release.main(arguments) == 1
    assert_one_line_with(message, capsys)
    assert not list((tmp_path / "new").iterdir())


def test_a_released_network_is_not_replaced_by_one_of_another_training(networks: Path, uri: str, capsys):
    path = networks / "mnist_a-digits-1-mnist_fast-seed0" / DESCRIPTION
    path.write_text(json.dumps({**json.loads(path.read_text()), "fingerprint": "other"}))
    assert release.main(["--tracking-uri", uri, "--bits", "1", "--out", str(networks)]) == 1
    assert_one_line_with("mnist_a-digits-1-mnist_fast-seed0 holds a network of another training", capsys)
    assert json.loads(path.read_text())["fingerprint"] == "other"


def test_networks_of_the_package_are_whole_and_in_its_table():
    table = released.FOLDER / release.README
    found = released.descriptions(released.FOLDER)
    assert table.is_file() == bool(found)
    assert not found or table.read_text() == release.overview(released.FOLDER)
    for folder in found:
        rebuild(folder)
