"""What a sweep leaves for its readers: tables and figures with its parent run, and the page of `analysis.report`."""

import base64
import json
import re
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from PIL import Image

from analysis import report, sweeps
from analysis.gallery import gallery
from analysis.page import sortable
from analysis.store import load_runs
from pipelines.cli import launch
from tests.pipelines.conftest import QUICK, enter, runs_of

WIDTHS, SEEDS = ("FP", "1"), ("0", "1")
IMAGES = 3


def sweep(folder: Path, *overrides: str) -> None:
    words = [f"bits={','.join(WIDTHS)}", "attack=fgsm", f"tracking.image_rows={IMAGES}", *QUICK, *overrides]
    with pytest.MonkeyPatch.context() as monkeypatch:
        enter(folder, monkeypatch)
        monkeypatch.setattr(sys, "argv", ["pipelines.attack", "-m", *words])
        assert launch("attack") == 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two sweeps ran: one of attack seed 0, then one of both seeds, half of whose cells were complete."""
    folder = tmp_path_factory.mktemp("swept")
    sweep(folder, "seed=0")
    sweep(folder, f"seed={','.join(SEEDS)}")
    return folder


@pytest.fixture(scope="module")
def uri(folder: Path) -> str:
    return f"sqlite:///{folder / 'mlflow.db'}"


@pytest.fixture(scope="module")
def parents(uri: str) -> list[Run]:
    """The parent runs, oldest first."""
    return sorted(runs_of(MlflowClient(uri), "sweep"), key=lambda run: run.info.start_time)


def measured(uri: str) -> dict[tuple[str, str], float]:
    runs = runs_of(MlflowClient(uri), "attack")
    return {(r.data.params["bits"], r.data.params["seed"]): r.data.metrics["adversarial_accuracy"] for r in runs}


def test_a_sweep_s_own_cells_are_all_there_whoever_ran_them(uri, parents):
    accuracies = measured(uri)
    assert len(accuracies) == 4
    for parent, seeds in zip(parents, (SEEDS[:1], SEEDS), strict=True):
        found = sweeps.of_sweep(uri, parent.info.run_id)
        assert {(row["params.bits"], row["params.seed"]) for _, row in found.attack.iterrows()} == {
            (bits, seed) for bits in WIDTHS for seed in seeds
        }
        for _, cell in found.cells.iterrows():
            expected = np.mean([accuracies[cell["bits"], seed] for seed in seeds])
            assert cell["adversarial_accuracy"] == pytest.approx(expected)
        assert len(found.train) == len(WIDTHS)
    assert sweeps.newest_sweep(uri) == parents[1].info.run_id


def test_the_parent_run_has_tables_figures_and_a_description(uri, parents):
    client = MlflowClient(uri)
    for parent, seeds in zip(parents, (SEEDS[:1], SEEDS), strict=True):
        run_id = parent.info.run_id
        listed = {item.path for name in ("tables", "figures") for item in client.list_artifacts(run_id, name)}
        assert {"tables/attacks.md", "tables/cells.csv", "figures/bits-digits-mnist_a.png"} <= listed
        labels = json.loads(Path(client.download_artifacts(run_id, sweeps.CELLS)).read_text())
        assert len(labels) == len(WIDTHS) * len(seeds)
        text = client.get_run(run_id).data.tags["mlflow.note.content"]
        for bits in WIDTHS:
            mean = np.mean([measured(uri)[bits, seed] for seed in seeds])
            assert re.search(rf"\| {bits} +\|.*{mean:.3f}".replace("0\\.", r"0?\."), text), text
        assert "python -m pipelines.attack" in text


def test_the_description_links_to_the_sweep_s_own_view(uri, parents):
    client = MlflowClient(uri)
    for parent in parents:
        run_id = parent.info.run_id
        state = json.loads(client.get_experiment(parent.info.experiment_id).tags[f"mlflow.sharedViewState.{run_id}"])
        assert f"viewStateShareKey={run_id}" in client.get_run(run_id).data.tags["mlflow.note.content"]
        assert {chart["metricSectionId"] for chart in state["compareRunCharts"]} == {
            section["uuid"] for section in state["compareRunSections"]
        }
    shown = client.search_runs([parents[0].info.experiment_id], state["searchFilter"])
    assert {run.data.tags["mlflow.parentRunId"] for run in shown} == {parents[1].info.run_id}


@pytest.fixture(scope="module")
def page(uri: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("page") / "new" / "report.html"
    assert report.main(["--tracking-uri", uri, "--out", str(out)]) == 0
    return out.read_text()


def test_the_page_has_a_row_per_cell_and_a_link_per_run(uri, parents, page):
    cells, runs = re.findall(r'<table class="sortable">.*?</table>', page)
    assert cells.count("<tr>") == 1 + len(WIDTHS)
    values = [float(value) for value in re.findall(r'data-value="([^"]*)"', cells)]
    for bits in WIDTHS:
        assert np.isclose(values, np.mean([measured(uri)[bits, seed] for seed in SEEDS])).any()
    linked = re.findall(r'href="http://127.0.0.1:5000/#/experiments/\d+/runs/(\w+)"', runs)
    assert sorted(linked) == sorted(
        run.info.run_id for kind in ("attack", "train") for run in runs_of(MlflowClient(uri), kind)
    )
    assert f"runs/{parents[1].info.run_id}" in page.partition("<h2 ")[0]


def test_the_page_loads_nothing(page):
    loaded = re.findall(r'(?:src|srcset|poster)="(.{5})|url\((.{5})|@import|<link', page)
    assert {source for found in loaded for source in found if source} == {"data:"}


def test_the_images_are_those_of_the_runs_at_their_own_size(uri, page):
    sources = re.findall(r'<img alt="clean, adversarial[^>]*src="data:image/png;base64,([^"]*)"', page)
    assert len(sources) == IMAGES * len(WIDTHS) * len(SEEDS)
    side = {Image.open(BytesIO(base64.b64decode(source))).size for source in sources}
    assert side == {(3 * 28, 28)}
    assert page.count("<details") == len(WIDTHS) * len(SEEDS)
    assert f"All {len(sources)} that the runs keep" in page


def test_a_page_with_little_room_says_what_it_leaves_out(uri):
    runs = load_runs("attack", uri)
    made = gallery(runs, uri, budget=1)
    assert made.html.count("<img") == 1
    assert f"1 of the {IMAGES * len(runs)} that the runs keep are here" in made.text
    assert gallery(runs, uri, budget=0).html == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--sweep", "0" * 32], "no run 0000"),
        (["--study", "absent"], "absent"),
        (["--sweep", "AN ATTACK"], "is no sweep"),
    ],
)
def test_what_is_not_there_is_said_in_one_line(uri, tmp_path, capsys, words, message):
    attack = runs_of(MlflowClient(uri), "attack")[0].info.run_id
    words = [attack if word == "AN ATTACK" else word for word in words]
    assert report.main(["--tracking-uri", uri, "--out", str(tmp_path / "report.html"), *words]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert not list(tmp_path.iterdir())


def test_a_study_s_page_holds_all_its_runs(uri, tmp_path, capsys):
    out = tmp_path / "report.html"
    assert report.main(["--tracking-uri", uri, "--study", "direct", "--out", str(out)]) == 0
    assert "study direct: 6 runs written" in capsys.readouterr().out
    assert "<title>study direct</title>" in out.read_text()


def test_what_runs_are_called_cannot_become_markup():
    shown = sortable(pd.DataFrame({"<b>": ["<script>"], "x": [float("nan")]}), {"x": ".1f"})
    assert "<script>" not in shown
    assert "<b>" not in shown
    assert "–" in shown
