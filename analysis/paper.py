"""Everything the papers show, from the tracked runs: ``python -m analysis.paper`` (or ``make paper``).

Reads the runs in results/runs (written by `analysis.study`), and writes tables, figures, verdicts and the
report; what lacks runs is left out and listed with the sweeps that would make it.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import pandas as pd

from analysis import (
    claims,
    comparisons,
    figures,
    page,
    patch_figures,
    patch_tables,
    patches,
    published,
    study_report,
    tables,
)
from analysis.cells import cell_table
from analysis.grid import MODELS, commands, select, sweeps
from analysis.page import Picture, Section
from analysis.quantities import Ours, Paper
from analysis.study import Study, load
from analysis.tables import PaperTable

PATCH_PARTS = {
    "patch-headline": (),
    "patch-clean": ("patch-pictures-",),
    "patch-attacks": ("patch-bits-",),
    "patch-unseen": ("patch-size-",),
    "patch-visibility": (),
    "patch-reality": (),
    "patch-transfer": ("patch-transfer-",),
    "patch-ablation": (),
    "patch-alignment": ("patch-alignment-",),
    "patch-sensitivity": ("patch-sensitivity-",),
    "patch-cost": (),
}
TITLE = "Robustness of quantised networks: what reproduces"


def make(study: Study, out: Path, command: str) -> list[str]:
    """Write everything; returns the launches that are missing."""
    note = provenance_note(study, command)
    ours, paper, patched = Ours(study), Paper(published.table6()), patches.read(study)
    made = _tables(study, ours) | {table.name: table for table in patch_tables.all_tables(patched) if table.sections}
    for table in made.values():
        tables.write(table, out / "tables", note)
    _write_csv(comparisons.trainings(study), out / "tables" / "networks.csv", note)
    _write_csv(_cells(study), out / "tables" / "cells.csv", note)
    if len(patched.attacks):
        _write_csv(patched.attacks, out / "tables" / "patch-cells.csv", note)
    drawings = [*figures.all_figures(study, ours), *patch_figures.all_figures(patched, study.pictures)]
    drawn = [Picture(*named) for named in figures.write(drawings, out / "figures", note)]
    theirs, mine = (claims.judgements(source) for source in (paper, ours))
    of_patches = [claims.judgements(source, claims.PATCH_CLAIMS) for source in (paper, ours)]
    _write_csv(claims.verdict_table(theirs + of_patches[0], mine + of_patches[1]), out / "claims.csv", note)
    _write_csv(claims.contrast_table(mine + of_patches[1]), out / "contrasts.csv", note)
    launches = commands(study)
    sections = _sections(study_report.verdicts(theirs, mine), made, drawn, launches)
    if patched.families():
        parts = [study_report.verdicts(*of_patches), *_patch_parts(made, drawn)]
        sections.insert(-1, Section("Patches and defences", patch_tables.summary(patched), parts))
    (out / "report.md").write_text(page.markdown(TITLE, sections, Path("figures"), note))
    (out / "report.html").write_text(page.html(TITLE, sections, out / "figures", note))
    return launches


def provenance_note(study: Study, command: str) -> str:
    """What made a file: command, runs, commits, machine, versions and dates."""
    facts = tables.provenance(pd.concat([study.train, study.attack, study.transfer]))
    commits = ", ".join(commit[:10] for commit in facts["commit"])
    parts = [f"{facts['runs']} runs of {facts['first']} to {facts['last']}", f"commits {commits}"]
    parts += ["; ".join(facts[name]) for name in ("hardware", "versions")]
    return f"Made by `{command}` from " + "; ".join(parts) + "."


def _tables(study: Study, ours: Ours) -> dict[str, PaperTable]:
    direct, saliency = (
        pd.concat([select(study, sweeps(model)[name]) for model in MODELS]) for name in ("table6", "table7")
    )
    made = [
        comparisons.headline(study, ours),
        tables.accuracies(_plain(study.train)),
        _sized(tables.direct_attacks(cell_table(direct), direct), direct),
        _sized(tables.saliency_distances(cell_table(saliency), saliency), saliency),
        comparisons.stronger_attacks(study, ours),
        comparisons.given_up(study),
        comparisons.agreement(ours),
        comparisons.controls(ours),
    ]
    for table in made:
        table.commands.clear()  # `commands` of the whole study takes their place
    return {table.name: table for table in made if table.sections}


def _plain(trainings: pd.DataFrame) -> pd.DataFrame:
    """Those of the papers' Tables 2 and 3: DoReFa's networks and their controls, without defences."""
    if trainings.empty:
        return trainings
    defended = trainings["params.defence"].notna() if "params.defence" in trainings else False
    return trainings[(trainings["params.quantizer"] != "uniform") & ~pd.Series(defended, trainings.index)]


def _sized(table: PaperTable, runs: pd.DataFrame) -> PaperTable:
    """Say in the caption on how many images the cells rest."""
    if len(runs):
        sizes = runs.groupby(["params.model", "params.attack"])["metrics.n"].min().astype(int)
        seeds = runs.groupby(["params.model", "params.attack", "params.bits"])["params.seed"].nunique()
        n, most = (_exceptions(counts) for counts in (sizes, seeds))
        table.caption += f" Training seed 0, n = {n} images per attack seed, {most} attack seeds."
    return table


def _exceptions(counts: pd.Series) -> str:
    """The usual count, and in brackets what has another.

    >>> _exceptions(pd.Series({("resnet20", "cw"): 200, ("resnet20", "jsma"): 1000, ("mnist_a", "cw"): 1000}))
    '1,000 (resnet20 cw 200)'
    """
    usual = int(counts.mode().iloc[-1])
    keys = counts.index.to_frame().astype(str).agg(" ".join, axis=1)
    others = [f"{key} {n:,}" for key, n in zip(keys, counts, strict=True) if n != usual]
    return f"{usual:,} ({', '.join(others)})" if others else f"{usual:,}"


def _cells(study: Study) -> pd.DataFrame:
    chosen = [
        select(study, sweep) for model in MODELS for sweep in sweeps(model).values() if sweep.pipeline == "attack"
    ]
    there = [runs for runs in chosen if len(runs)]
    runs = pd.concat(there) if there else pd.DataFrame()
    return cell_table(runs.drop_duplicates("fingerprint") if len(runs) else runs)


def _sections(
    verdicts: pd.DataFrame, made: dict[str, PaperTable], drawn: list[Picture], launches: list[str]
) -> list[Section]:
    def pictures(*starts: str) -> list[Picture]:
        return [picture for picture in drawn if picture.name.startswith(starts)]

    def listed(*names: str) -> list[PaperTable]:
        return [made[name] for name in names if name in made]

    sections = [
        Section("In short", parts=[*listed("headline"), *pictures("bits-")]),
        Section(
            "Verdicts",
            "Each statement of the papers, judged by the paper's own Table 6 and by our runs. A contrast counts for or"
            " against only if its 95 % bootstrap interval leaves out zero and it is larger than the largest difference"
            " between training seeds of its cells (a mean of contrasts: than the mean of theirs); what has no runs is"
            " open. ¹: on one training of each network, so that nothing is known of the spread between trainings. The"
            " paper's distances come without an interval and are judged by their sign.",
            [verdicts],
        ),
        Section("Direct attacks", parts=listed("table6", "agreement")),
        Section("Is the robustness real?", parts=[*pictures("masking-"), *listed("stronger-attacks", "given-up")]),
        Section("Topology held fixed", parts=listed("controls")),
        Section("JSMA's changes", parts=listed("table7")),
        Section("Networks", parts=listed("table3")),
        Section("The papers' figures", parts=pictures("figure")),
        Section("Transfer", parts=pictures("transfer-")),
        Section(
            "What is missing",
            "Sweeps that would fill what is left out above. Those of patches are to be given the recipe and the lengths"
            " of attacks that results/README.md lists, or else train networks of another recipe, which is held apart.",
            code=launches,
        ),
    ]
    return [section for section in sections if section.parts or section.code]


def _patch_parts(made: dict[str, PaperTable], drawn: list[Picture]) -> list[PaperTable | Picture]:
    """Tables, each with the figures about the same behind it."""
    parts: list[PaperTable | Picture] = []
    for name in PATCH_PARTS:
        parts += [made[name]] if name in made else []
        parts += [picture for picture in drawn if picture.name.startswith(PATCH_PARTS[name])]
    return parts


def _write_csv(table: pd.DataFrame, path: Path, note: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"# {note}\n{table.to_csv(index=False, float_format='%.6g')}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m analysis.paper", description=__doc__.split("\n\n")[0])
    parser.add_argument("--runs", type=Path, default=Path("results/runs"), help="exported study (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder to write to (default: %(default)s)")
    chosen = parser.parse_args(arguments)
    started = time.perf_counter()
    try:
        study = load(chosen.runs)
    except LookupError as error:
        print(f"error: {error.args[0]}", file=sys.stderr)
        return 1
    launches = make(study, chosen.out, "python -m analysis.paper")
    for line in launches:
        print(f"missing: {line}")
    print(f"written to {chosen.out.absolute()} in {time.perf_counter() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
