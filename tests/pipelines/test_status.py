"""How a sweep is told of: from its folder, by the process that launched it and by any other."""

import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pexpect
import pytest
from rich.console import Console

from pipelines.plan import Cell, Outcome, Sweep, newest
from pipelines.status import main, table
from tests.pipelines.conftest import QUICK

ATTACKS = ("fgsm", "jsma", "uap")
DIES_AT_WORK = "import os, pathlib, pipelines.plan as p; p.Sweep(pathlib.Path({!r})).begin('jsma1'); os._exit(9)"


def planned(folder: Path, cells: list[Cell], **more: bool) -> Sweep:
    return Sweep.write(folder, None, cells, title="attack sweep", **{"on_terminal": False, **more})


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    cells = [
        Cell(f"{attack}{seed}", f"{attack} {seed}", attack, attack == "uap") for attack in ATTACKS for seed in (0, 1)
    ]
    return planned(tmp_path / "sweeps" / "one", cells)


def drawn(sweep: Sweep, width: int = 100, height: int = 40) -> str:
    console = Console(width=width, height=height, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(table(sweep, height))
    return console.export_text()


def test_every_state_of_a_cell(sweep):
    sweep.begin("fgsm0", "attacking 5 images")
    sweep.record("fgsm1", Outcome("failed", reason="out of luck"))
    sweep.begin("jsma0")
    sweep.record("jsma0", Outcome("done", 4.0, 4.0))
    subprocess.run([sys.executable, "-c", DIES_AT_WORK.format(str(sweep.folder))], check=False)
    states = Sweep(sweep.folder).states()
    assert states == {"fgsm0": "running", "fgsm1": "failed", "jsma0": "done", "jsma1": "interrupted", "uap0": "skipped",
                      "uap1": "skipped"}  # fmt: skip
    text = drawn(sweep)
    assert re.search(r"▶ +fgsm 0 +0:0\d +attacking 5 images", text)
    assert re.search(r"✘ +fgsm 1 +out of luck", text)
    assert re.search(r"■ +jsma 1 +interrupted", text)
    assert re.search(r"all +0 +1 +1 +1 +2 +1\b", text)
    assert "4 of 6" in text


def test_what_is_left_is_judged_by_the_cells_that_ended(sweep):
    assert re.fullmatch(r"elapsed 0:0\d", sweep.elapsed_and_left())
    sweep.record("fgsm0", Outcome("done", 700.0, 600.0))
    assert "at least 10:00 left" in sweep.elapsed_and_left()
    sweep.record("jsma0", Outcome("done", 60.0, 60.0))
    assert "about 11:00 left" in sweep.elapsed_and_left()
    for key in ("fgsm1", "jsma1"):
        sweep.begin(key)
    assert "about 5:30 left" in sweep.elapsed_and_left() or "about 5:29 left" in sweep.elapsed_and_left()


def test_a_sweep_whose_launcher_is_gone_is_interrupted(sweep):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    plan = json.loads((sweep.folder / "plan.json").read_text())
    (sweep.folder / "plan.json").write_text(json.dumps({**plan, "process": {**plan["process"], "pid": dead.pid}}))
    left = Sweep(sweep.folder)
    assert left.is_over()
    assert "interrupted (run it again to go on)" in drawn(left)


def test_hundreds_of_cells_fit_a_small_terminal(tmp_path):
    cells = [Cell(f"{g}x{i}", f"attack {g} on a network of a long name, seed {i}", f"group {g}", False)
             for g in range(30) for i in range(20)]  # fmt: skip
    sweep = planned(tmp_path / "many", cells)
    for cell in cells[:40]:
        sweep.begin(cell.key)
    for cell in cells[40:90]:
        sweep.record(cell.key, Outcome("failed", reason="a reason that is much longer than what fits in a line" * 3))
    lines = drawn(sweep, width=80, height=24).splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    assert any("and 35 more" in line for line in lines)
    assert any(re.search(r"27 more +510 +· +· +30", line) for line in lines)


def test_the_newest_sweep_is_shown(sweep, tmp_path, capsys):
    later = planned(tmp_path / "sweeps" / "two", [Cell("a", "the later one", "a", False)])
    os.utime(sweep.folder / "plan.json", (1, 1))
    later.begin("a")
    assert newest(tmp_path) == later.folder
    assert main(["--work", str(tmp_path)]) == 0
    assert "the later one" in capsys.readouterr().out
    assert main([str(sweep.folder)]) == 0
    assert "fgsm" in capsys.readouterr().out
    assert main(["--work", str(tmp_path / "elsewhere")]) == 1
    assert capsys.readouterr().err.startswith("error: no sweep in ")


def test_watched_from_a_terminal_and_from_a_pipe(sweep):
    def work() -> None:
        time.sleep(2)
        sweep.begin("fgsm0", "choosing images")
        time.sleep(2)
        for key in ("fgsm0", "fgsm1", "jsma0", "jsma1"):
            sweep.record(key, Outcome("done", 1.0, 1.0, figures=f"figures of {key}"))

    threading.Thread(target=work).start()
    watch = [sys.executable, "-m", "pipelines.status", str(sweep.folder), "--watch"]
    piped = subprocess.Popen(watch, stderr=subprocess.PIPE, text=True)
    terminal = pexpect.spawn(watch[0], watch[1:], dimensions=(24, 80), encoding="utf8", timeout=60)
    terminal.expect("2 of 6")
    terminal.expect("choosing images")
    terminal.expect(r"figures of fgsm0 \(1.0 s; ")
    terminal.expect("finished")
    terminal.expect(pexpect.EOF)
    lines = piped.communicate(timeout=60)[1].splitlines()
    assert [line.split(" (")[0] for line in lines] == [
        f"[{i}/6] {key[:-1]} {key[-1]}: figures of {key}"
        for i, key in enumerate(("fgsm0", "fgsm1", "jsma0", "jsma1"), 1)
    ]


@pytest.mark.full
@pytest.mark.parametrize(
    "launcher", [(), ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")], ids=["serial", "joblib"]
)
def test_a_sweep_on_a_terminal(workspace, launcher):
    sweep = ["bits=FP,1", "attack=fgsm", "seed=0,1", "+training.steps_per_epoch=3", *QUICK, *launcher]
    arguments = ["-m", "pipelines.attack", "-m", *sweep]
    terminal = pexpect.spawn(
        sys.executable, arguments, cwd=workspace, dimensions=(30, 120), encoding="utf8", timeout=300
    )
    terminal.expect("0 of 4")
    terminal.expect(r"▶.*fgsm on mnist_a FP, seed 0.*training|choosing|attacking")
    terminal.expect(r"\[1/4\] fgsm on mnist_a FP, seed 0: adversarial accuracy")
    terminal.expect("4 of 4.*finished")
    terminal.expect("4 cells done, 0 were complete, 0 failed")
    terminal.expect(pexpect.EOF)
    assert (
        "finished"
        in subprocess.run(
            [sys.executable, "-m", "pipelines.status"], cwd=workspace, capture_output=True, text=True, check=True
        ).stdout
    )
