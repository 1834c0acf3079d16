import io
import re
import shlex
import zlib
from contextlib import redirect_stdout

import numpy as np
import pandas as pd
import pytest

from analysis.claims import ALL_CLAIMS
from analysis.figures import all_figures
from analysis.grid import commands
from analysis.paper import main
from analysis.quantities import Ours
from analysis.study import Study, load, save
from tests.analysis.test_grid import planned

N = 24
TARGETS = ("FP", "1", "2")
FIGURES = {
    "bits-mnist_a", "masking-mnist_a", "figure3-mnist_a-FP", "figure3-mnist_a-1", "figure3-mnist_a-distance",
    "figure4-mnist_a", "figure5-mnist_a", "figure6-mnist_a", "figure7-mnist_a", "transfer-bits-mnist_a-mnist_a",
    "transfer-capacity-mnist_a-mnist_b",
}  # fmt: skip
LAUNCHES = {
    "train": ["experiment=table3 bits=FP,1 training.seed=0,1"],
    "attack": [
        "experiment=table6 bits=FP,1 seed=0",
        "experiment=training_seeds bits=FP,1 training.seed=1 attack=fgsm",
        "experiment=stronger_pgd bits=FP,1",
        "experiment=stronger_square bits=FP,1 attack.budget=fgsm",
        "experiment=stronger_cw bits=FP,1",
        "experiment=stronger_boundary bits=FP,1",
        "experiment=figure7 seed=0",
        "experiment=controls quantizer=clip_only attack=fgsm",
    ],
    "transfer": [
        "experiment=transfer_bits bits=FP,1 attack=fgsm,uap",
        "experiment=transfer_capacity bits=FP,1 attack=fgsm,uap targets.model=mnist_b",
    ],
}


def runs(pipeline):
    """Rows as of a store, all of Mnist A; figures follow from the fingerprint."""
    rows = [row for launch in LAUNCHES[pipeline] for row in planned(pipeline, *shlex.split(launch), "model=mnist_a")]
    told = {"study": "s", "commit": "c0ffee" * 7, "hardware": "a machine", "versions": "a tool 1", "overrides": "",
            "experiment": "", "started": 1.7e12}  # fmt: skip
    frame = pd.DataFrame(rows).assign(**told)
    frame["fingerprint"] = frame["run_id"] = [f"{pipeline}{i:03}" for i in range(len(frame))]
    return frame


def images_of(fingerprint):
    """Every run has an image whose label is second and the farthest; a third resists."""
    rng = np.random.default_rng(zlib.crc32(fingerprint.encode()))
    evaded = rng.random(N) > rng.uniform(0.2, 0.6)
    evaded[0] = True
    l2 = rng.uniform(1, 2, size=N)
    l2[0] = 9.0
    return pd.DataFrame({
        "fingerprint": fingerprint, "index": np.arange(N), "label": 3, "adv_prediction": np.where(evaded, 5, 3),
        "evaded": evaded, "success": evaded, "gave_up": False, "label_rank": evaded.astype(int),
        "l0": rng.integers(1, 50, size=N), "l2": l2, "linf": 0.25,
        "correlation": np.where(l2 > 5, 0.0, 0.9),
    })  # fmt: skip


def synthetic():
    train, attack, transfer = (runs(kind) for kind in ("train", "attack", "transfer"))
    train = train.assign(**{"metrics.test_accuracy": 0.98, "metrics.best_val_accuracy": 0.97, "metrics.seconds": 9.0})
    images = pd.concat([images_of(key) for key in attack["fingerprint"]], ignore_index=True)
    by_run = images.groupby("fingerprint")
    successful = images[images["success"]].groupby("fingerprint")
    attack = attack.set_index("fingerprint", drop=False).rename_axis(None)
    attack = attack.assign(**{
        "metrics.n": N, "metrics.adversarial_accuracy": 1 - by_run["evaded"].mean(), "metrics.gave_up": 0,
        **{f"metrics.{name}": successful[name].mean() for name in ("l0", "l2", "linf")},
        "metrics.zero_gradients": 6.0,
    }).reset_index(drop=True)  # fmt: skip
    long = attack[attack["params.attack.max_iter"].eq("1000") & attack["params.attack"].eq("boundary")]
    progress = pd.DataFrame(
        {"fingerprint": key, "iteration": i, "l2": 9.0 - i / 200} for key in long["fingerprint"] for i in (0, 15, 200)
    )
    rng = np.random.default_rng(0)
    shade = rng.integers(256, size=(4, 10, 1, 28, 28), dtype=np.uint8)
    pictures = {f"{key}.first": shade[0] for key in attack["fingerprint"]}
    pictures |= {f"{key}.snapshots": shade for key in long["fingerprint"]}
    pictures |= {f"{key}.clean": shade[1] for key in long["fingerprint"]}
    pictures |= {f"{key}.iterations": np.array([0, 100, 200, 1000]) for key in long["fingerprint"]}
    boundary = attack.loc[attack["params.attack"] == "boundary", "fingerprint"]
    pictures |= {f"{key}.farthest": shade[2] for key in boundary}
    cells = [(key, bits) for key in transfer["fingerprint"] for bits in TARGETS]
    transferred = pd.concat([
        images_of(key + bits)[["index", "evaded"]].assign(fingerprint=key, target_bits=bits) for key, bits in cells
    ], ignore_index=True)  # fmt: skip
    rates = transferred.groupby(["fingerprint", "target_bits"], as_index=False)["evaded"].mean()
    models = dict(zip(transfer["fingerprint"], transfer["params.targets.model"], strict=True))
    transfers = rates.rename(columns={"evaded": "transfer_rate"}).assign(
        n=N, target_model=rates["fingerprint"].map(models)
    )
    tables = {"images": images, "progress": progress, "transfers": transfers, "transferred": transferred}
    return Study(train, attack, transfer, **tables, pictures=pictures)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    save(synthetic(), folder)
    return folder


@pytest.fixture(scope="module")
def launched(study, tmp_path_factory):
    """The folder written to, and what was printed."""
    out = tmp_path_factory.mktemp("paper")
    with redirect_stdout(io.StringIO()) as printed:
        assert main(["--runs", str(study), "--out", str(out)]) == 0
    return out, printed.getvalue().splitlines()


@pytest.fixture(scope="module")
def made(launched):
    return launched[0]


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def table(path):
    return pd.read_csv(path, comment="#")


def test_tables_figures_verdicts_and_report_are_written(made):
    tables = ("headline", "table3", "table6", "stronger-attacks", "given-up", "agreement", "controls")
    wanted = {f"tables/{name}.{end}" for name in tables for end in ("md", "csv", "tex", "html")}
    wanted |= {"tables/networks.csv", "tables/cells.csv"}
    wanted |= {f"figures/{name}.{end}" for name in FIGURES for end in ("png", "svg")}
    assert files(made).keys() == wanted | {"claims.csv", "contrasts.csv", "report.md", "report.html"}


def test_every_file_says_where_it_comes_from(made):
    note = (
        b"Made by `python -m analysis.paper` from 40 runs of 2023-11-14 to 2023-11-14;"
        b" commits c0ffeec0ff; a machine; a tool 1."
    )
    for name, content in files(made).items():
        assert note in content, name


def test_made_twice_it_is_the_same_to_the_byte(study, made, tmp_path):
    assert main(["--runs", str(study), "--out", str(tmp_path)]) == 0
    assert files(tmp_path) == files(made)


def test_the_html_report_needs_no_other_file(made):
    text = (made / "report.html").read_text()
    sources = re.findall(r'src\s*=\s*"([^"]*)"', text)
    assert len(sources) == len(FIGURES)
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    links = re.findall(r'href\s*=\s*"#([^"]*)"', text)
    assert len(links) == text.count("href") > 10
    assert {*links} <= {*re.findall(r'<h[23] id="([^"]*)"', text)}
    assert len({*links}) == len(links)
    assert not re.search(r"url\(|@import|<script[^>]+src|<link", text)


def test_the_markdown_report_shows_files_that_are_there(made):
    shown = re.findall(r"!\[[^]]*\]\(([^)]*)\)", (made / "report.md").read_text())
    assert {f"figures/{name}.png" for name in FIGURES} == set(shown)
    for line in (made / "report.md").read_text().splitlines():
        assert "nan" not in re.findall(r"\w+", line.lower())


def test_rows_of_markdown_tables_have_the_cells_of_their_heading(made):
    for path in made.rglob("*.md"):
        for block in re.findall(r"(?:^\|.*\n)+", path.read_text(), re.MULTILINE):
            assert len({line.count("|") for line in block.splitlines()}) == 1, block


def test_every_claim_has_a_verdict_on_what_was_run(made):
    claims = table(made / "claims.csv").set_index("claim")
    assert claims.index.tolist() == [claim.key for claim in ALL_CLAIMS]
    judged = claims["ours_contrasts"]
    one_width_of_mnist = ["fgsm-weaker-when-quantised", "boundary-breaks-all", "masking-explains-fgsm"]
    assert judged[one_width_of_mnist].tolist() == [1, 2, 1]
    assert judged["mnist-more-robust"] == 0
    assert judged[["boundary-stuck-at-1-bit", "unrecognisable-only-when-quantised"]].tolist() == [1, 2]
    assert judged[["transfer-is-weaker", "uap-transfers-best", "own-widths-predict-others"]].tolist() == [2, 1, 2]
    contrasts = table(made / "contrasts.csv")
    assert len(contrasts) == judged.sum()
    far = contrasts.set_index("claim").loc["unrecognisable-only-when-quantised", "effect"]
    assert far.tolist() == pytest.approx([0.01 - 1 / N, 1 / N - 0.01], abs=1e-6)


def test_pictures_of_two_widths_are_of_the_same_images():
    whole = synthetic()
    long = whole.attack[whole.attack["params.attack.max_iter"].eq("1000") & whole.attack["params.bits"].eq("1")]
    moved = whole.images["fingerprint"].isin(long["fingerprint"])
    whole.images.loc[moved, "index"] += 2  # of the ten pictured images of each width eight are pictured at both
    drawn = {name: figure for name, _, figure in all_figures(whole, Ours(whole))}
    shown = {
        name: sum(bool(axis.images) for axis in drawn[name].axes) for name in ("figure4-mnist_a", "figure5-mnist_a")
    }
    assert shown == {"figure4-mnist_a": 2 * 5, "figure5-mnist_a": 2 * 8}


def test_tables_hold_the_runs(made):
    networks = table(made / "tables" / "networks.csv")
    assert networks[["bits", "training_seed", "test_accuracy"]].to_numpy().tolist() == [
        ["1", 0, 0.98], ["FP", 0, 0.98], ["1", 1, 0.98], ["FP", 1, 0.98],
    ]  # fmt: skip
    direct = table(made / "tables" / "table6.csv").set_index("bits")
    ours = 1 - images_of("attack000")["evaded"].mean()
    assert direct.loc["FP", "fgsm adv. acc."] == f"{ours:.3f} (0.337)"
    assert direct.loc["2", "fgsm adv. acc."] == "missing"
    headline = table(made / "tables" / "headline.csv").set_index("bits")
    assert headline[["epochs", "test accuracy"]].to_numpy().tolist() == [[20, "98.00 %"]] * 2
    stronger = table(made / "tables" / "stronger-attacks.csv").set_index("bits")
    assert stronger.loc["1", "FGSM no gradient"] == 0.25
    assert stronger.loc["1", "FGSM n"] == N
    lowest = stronger.loc["1", ["FGSM itself", "FGSM PGD", "FGSM PGD margin", "FGSM Square"]].astype(float).min()
    assert float(stronger.loc["1", "FGSM any"].split()[0]) <= lowest


def test_missing_sweeps_are_listed(study, launched):
    launches = commands(load(study))
    start = "python -m pipelines.attack -m experiment"
    assert f"{start}=stronger_cw model=mnist_a bits=2,4,8,12,16  # 5 of 7 cells: stronger attacks" in launches
    assert not any("stronger_boundary model=mnist_a bits=FP" in launch for launch in launches)
    out, printed = launched
    report = (out / "report.md").read_text()
    for launch in launches:
        assert f"    {launch}\n" in report
    assert printed[:-1] == [f"missing: {launch}" for launch in launches]
    assert printed[-1].startswith(f"written to {out}")


def test_trainings_alone_make_a_report(tmp_path):
    save(Study(runs("train").assign(**{"metrics.test_accuracy": 0.98}), pd.DataFrame(), pd.DataFrame()), tmp_path)
    assert main(["--runs", str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "tables" / "table3.md").is_file()
    assert (table(tmp_path / "out" / "claims.csv")["ours_contrasts"] == 0).all()


def test_without_a_study_there_is_a_message_and_a_status(tmp_path, capsys):
    assert main(["--runs", str(tmp_path / "none"), "--out", str(tmp_path / "out")]) == 1
    assert "none holds no exported study" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
