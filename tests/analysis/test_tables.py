import pandas as pd
import pytest

from analysis.cells import cell_table
from analysis.tables import MISSING, csv, direct_attacks, html, latex, main, markdown, saliency_distances
from tests.analysis.test_cells import run

JSMA = {
    "params.attack": "jsma", "params.variant": "top2", "params.attack.eps": "", "params.attack.theta": "1.0",
    "params.attack.gamma": "0.1", "metrics.l0": 44.25,
}  # fmt: skip


@pytest.fixture
def runs() -> pd.DataFrame:
    rows = [run("a", bits="1", accuracy=0.8), run("b", bits="1", seed="1", accuracy=0.6), run("c", bits="2", **JSMA)]
    return pd.DataFrame(rows).assign(experiment="table6", overrides="training.epochs=3")


def test_table6_puts_ours_beside_the_paper_s_and_says_what_is_missing(runs):
    table = direct_attacks(cell_table(runs), runs)
    frame = table.sections["Mnist A on mnist"]
    assert frame.index.tolist() == ["FP", "1", "2", "4", "8", "12", "16"]
    assert frame.loc["1", ("fgsm", "adv. acc.")] == "0.700 ± 0.141 (0.845)"
    assert frame.loc["2", ("jsma", "adv. acc.")] == "0.500 (0.375)"
    assert frame.loc["FP", ("fgsm", "L2")] == MISSING
    launch = "python -m pipelines.attack -m experiment=table6 study=s training.epochs=3 model=mnist_a data=mnist"
    assert f"{launch} bits=1 attack=jsma,uap,cw,boundary n=100 seed=0,1" in table.commands
    assert f"{launch} bits=FP,4,8,12,16 attack=fgsm,jsma,uap,cw,boundary n=100 seed=0,1" in table.commands


def test_table7_is_the_mean_l0_under_jsma(runs):
    table = saliency_distances(cell_table(runs), runs)
    assert table.sections["Mnist A on mnist"].loc["2", ("jsma", "L0")] == "44.2"


@pytest.mark.parametrize("render", [markdown, csv, latex, html])
def test_every_format_holds_every_value(runs, render):
    text = render(direct_attacks(cell_table(runs), runs))
    for value in ("0.700", "0.845", "4.700", MISSING):
        assert value in text


def test_latex_is_escaped(runs):
    text = latex(direct_attacks(cell_table(runs), runs))
    assert r"$\pm$" in text
    assert "±" not in text


def test_without_runs_there_is_a_message_and_a_status(tmp_path, capsys):
    assert main(["--tracking-uri", f"sqlite:///{tmp_path / 'none.db'}", "--out", str(tmp_path / "tables")]) == 1
    assert "launch a sweep first" in capsys.readouterr().err
    assert main(["--tracking-uri", f"sqlite:///{tmp_path / 'none.db'}", "--study", "x"]) == 1
    assert "no study named x" in capsys.readouterr().err
