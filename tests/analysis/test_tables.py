import pandas as pd
import pytest

from analysis.cells import cell_table
from analysis.tables import MISSING, accuracies, csv, direct_attacks, html, latex, main, markdown, saliency_distances
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


def trained(bits: str, accuracy: float, **more: str) -> dict:
    params = {"data": "mnist", "model": "mnist_a", "bits": bits, "quantizer": "dorefa", "training.seed": "0"}
    params |= {"model.net.topology": "auto", "training.name": "fast", "training.epochs": "20"}
    row = {f"params.{name}": value for name, value in (params | more).items()}
    told = {"fingerprint": str(sorted(row.items())), "started": 1, "study": "s", "experiment": "", "overrides": ""}
    return {**row, **told, "metrics.test_accuracy": accuracy}


def test_table3_has_a_column_for_each_kind_of_network_and_says_how_long_they_were_trained():
    control = {"quantizer": "clip_only", "model.net.topology": "quantized"}
    rows = [trained("FP", 0.99), trained("FP", 0.97, **{"training.seed": "1"}), trained("FP", 0.9, **control)]
    rows += [trained(bits, 0.98, **{"training.name": "long", "training.epochs": "60"}) for bits in ("2", "1")]
    table = accuracies(pd.DataFrame([*rows, trained("4", 0.96), trained("8", 0.96)]))
    frame = table.sections["Accuracy"]
    plain, clipped = (
        f"Mnist A on mnist (quantizer={quantizer}, model.net.topology={topology})"
        for quantizer, topology in (("dorefa", "auto"), ("clip_only", "quantized"))
    )
    assert frame[plain].tolist() == ["98.00 ± 1.41", "98.00", "98.00", "96.00", "96.00", MISSING, MISSING]
    assert frame[clipped].tolist() == ["90.00", *["–"] * 6]
    assert f"{clipped} 20; {plain} 20, with bits=1,2 60." in table.caption
    (launch,) = table.commands
    assert launch.endswith("bits=12,16")


def test_recipes_of_the_same_width_are_kept_apart():
    rows = [trained("FP", 0.99), trained("FP", 0.9, **{"training.name": "long"}), trained("1", 0.8)]
    frame = accuracies(pd.DataFrame(rows)).sections["Accuracy"]
    assert frame["Mnist A on mnist (training.name=fast)"].tolist()[:2] == ["99.00", "80.00"]
    assert frame["Mnist A on mnist (training.name=long)"].tolist()[:2] == ["90.00", MISSING]


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
