"""The papers' tables from the tracked runs: ``python -m analysis.tables [--study NAME] [--out DIR]``.

Writes tables 3 (accuracies), 6 and 7 as Markdown, CSV, LaTeX and HTML, and `cells.csv` with one row per
cell of the study (`analysis.cells.TIDY`).
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table as RichTable

from analysis.cells import ATTACKS, STUDY_BITS, bits_order, cell_table, newest
from analysis.store import default_uri, load_runs

MISSING = "missing"
_NONE = "–"
ADVERSARIAL_ACCURACY = "adv. acc."
_FIGURES = {"adversarial_accuracy": (ADVERSARIAL_ACCURACY, 3), "l2": ("L2", 3), "linf": ("L∞", 3)}
_PAPER_GRID = {"n": "1000", "seed": "0,1,2"}
_TEX = {
    "_": r"\_",
    "%": r"\%",
    "±": r"$\pm$",
    "L∞": r"$L_\infty$",
    "L2": "$L_2$",
    "L0": "$L_0$",
    "–": "--",
    "…": r"\ldots{}",
    "κ": r"$\kappa$",
    "ρ": r"$\rho$",
    "τ": r"$\tau$",
    "ε": r"$\varepsilon$",
    "|": r"$|$",
}
_KIND = ("params.quantizer", "params.model.net.topology", "params.defence")
_REPLICATE = {"params.bits", "params.weight_bits", "params.activation_bits", "params.training.seed"}
_SPREAD = re.compile(r" ± [\d.]+")
TITLES = {
    "mnist_a": "Mnist A",
    "mnist_b": "Mnist B",
    "mnist_c": "Mnist C",
    "lenet5_a": "LeNet-5 A",
    "resnet20": "ResNet20",
    "resnet32": "ResNet32",
    "vgg11": "VGG-11",
}

STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;margin:2rem;max-width:100%;overflow-x:auto}"
    "table{border-collapse:collapse;font-variant-numeric:tabular-nums}"
    "th,td{padding:.3rem .7rem;text-align:right;white-space:nowrap;border-bottom:1px solid #ddd}"
    "thead th{text-align:center;background:#f4f4f4}"
)


@dataclass
class PaperTable:
    """A table ready to be written: text cells, and what is missing from it.

    Attributes:
        number: of the papers' table, or the name of one they do not have, which then has a `title`.
        sections: title -> frame of text cells, indexed by bits.
        commands: what to run for the cells shown as missing.
    """

    number: str
    caption: str
    sections: dict[str, pd.DataFrame] = field(default_factory=dict)
    commands: list[str] = field(default_factory=list)
    title: str = ""

    @property
    def name(self) -> str:
        return f"table{self.number}" if self.number.isdecimal() else self.number

    @property
    def heading(self) -> str:
        return self.title or f"Table {self.number}"


def accuracies(runs: pd.DataFrame) -> PaperTable:
    """Tables 2 and 3: test accuracy in per cent by bits and network, mean ± standard deviation over training seeds."""
    table = PaperTable(
        "3", "Test set accuracy (%) of the networks. Mean ± standard deviation where there are several training seeds."
    )
    if runs.empty:
        return table
    runs = newest(runs)
    columns: dict[str, pd.Series] = {}
    lengths: dict[str, str] = {}
    for keys, group in runs.groupby(["params.data", "params.model"]):
        data, model = map(str, keys)
        for label, part in _by_settings(group):
            title = section_title(model, data, label)
            found = part.groupby("params.bits")["metrics.test_accuracy"].agg(["mean", "std"]) * 100
            text = found.apply(lambda row: _with_spread(row["mean"], row["std"], 2), axis=1)
            absent = [bits for bits in STUDY_BITS if bits not in found.index]
            columns[title] = text.reindex(_all_bits(found.index), fill_value=_NONE if _is_control(part) else MISSING)
            lengths[title] = _epochs(part)
            if absent and not _is_control(part):
                table.commands.append(_command("train", part, {"model": model, "data": data, "bits": ",".join(absent)}))
    frame = pd.DataFrame(columns)
    table.sections["Accuracy"] = frame.reindex(_all_bits(frame.index)).fillna(MISSING).rename_axis(None)
    table.caption += f" Epochs: {'; '.join(f'{title} {epochs}' for title, epochs in lengths.items())}."
    return table


def _is_control(trainings: pd.DataFrame) -> bool:
    """Whether these are of a control topology, which has no quantised networks."""
    return any(
        name in trainings and bool((trainings[name] == value).all())
        for name, value in (("params.quantizer", "clip_only"), ("params.model.net.topology", "quantized"))
    )


def _epochs(trainings: pd.DataFrame) -> str:
    """As in ``20, with bits=2 60``: the number that most have first."""
    bits = trainings.groupby("params.training.epochs")["params.bits"].unique()
    usual, *others = sorted(bits.index, key=lambda epochs: -len(bits[epochs]))
    return ", ".join([usual, *(f"with bits={','.join(sorted(bits[few], key=bits_order))} {few}" for few in others)])


def direct_attacks(cells: pd.DataFrame, runs: pd.DataFrame) -> PaperTable:
    """Table 6: bits by attack × {adversarial accuracy, L2, L∞}, published value in brackets."""
    table = PaperTable(
        "6",
        "Adversarial accuracy and mean L2 and L∞ over successful images, attacks created and applied on the same"
        " network. Mean ± standard deviation over attack seeds; the paper's value in brackets.",
    )
    return _by_network(table, cells, runs, ATTACKS, _FIGURES)


def found(cells: pd.DataFrame, train: pd.DataFrame, transfer: pd.DataFrame) -> list[PaperTable]:
    """What any runs give, in the form of Tables 6 and 3 but with all their attacks and widths and no others."""
    attacks = PaperTable(
        "attacks",
        "Adversarial accuracy and mean L2 and L∞ over successful images. Mean ± standard deviation over attack seeds;"
        " in brackets the paper's value, where data and hyper-parameters are the paper's.",
        title="Attacks",
    )
    names = (*ATTACKS, *sorted(set(cells["attack"]) - set(ATTACKS)))
    _by_network(attacks, cells, None, tuple(name for name in names if name in set(cells["attack"])), _FIGURES)
    networks = accuracies(train)
    networks.number, networks.title = "networks", "Networks"
    networks.caption = networks.caption.replace(" of the networks", "")
    tables = [attacks, networks, transfers(transfer)]
    for table in tables:
        table.commands.clear()
        table.sections = {
            title: frame[~frame.isin(["", MISSING]).all(axis=1)] for title, frame in table.sections.items()
        }
    return [table for table in tables if table.sections]


def transfers(runs: pd.DataFrame) -> PaperTable:
    """Adversarial accuracy of target networks against examples made on others, mean over attack seeds."""
    table = PaperTable(
        "transfer", "Adversarial accuracy of the targets, by bits of the target; mean over seeds.", title="Transfer"
    )
    keys = ["params.data", "params.model", "params.targets.model", "params.apply"]
    for (data, source, target, how), group in newest(runs).groupby(keys) if len(runs) else ():
        names = [str(name) for name in group if str(name).startswith("metrics.adversarial_accuracy.")]
        means = group.groupby(["params.attack", "params.bits"])[names].mean()
        widths = {name.rpartition(".")[2]: name for name in names}
        means = pd.DataFrame({width: means[widths[width]] for width in sorted(widths, key=bits_order)})
        ordered = sorted(means.index, key=lambda key: (key[0], bits_order(key[1])))
        frame = means.loc[ordered].map(lambda value: "" if pd.isna(value) else f"{value:.3f}")
        frame.index = pd.Index([f"{attack}, {bits}" for attack, bits in ordered])
        made = f"{section_title(str(source), str(data))} to {TITLES.get(str(target), str(target))}, {how}"
        table.sections[made] = frame
    return table


def saliency_distances(cells: pd.DataFrame, runs: pd.DataFrame) -> PaperTable:
    """Table 7: mean L0 of successful images under JSMA."""
    table = PaperTable(
        "7", "Mean L0 (changed input values) over successful images under JSMA. Mean ± standard deviation over seeds."
    )
    return _by_network(table, cells, runs, ("jsma",), {"l0": ("L0", 1)})


def _by_network(
    table: PaperTable, cells: pd.DataFrame, runs: pd.DataFrame | None, attacks: tuple[str, ...], figures: dict
) -> PaperTable:
    """A section per network; with `runs` the commands for the cells of the published grid that are missing."""
    cells = cells[cells["attack"].isin(attacks)]
    for keys, group in cells.groupby(["data", "model"]):
        data, model = map(str, keys)
        columns: dict[tuple[str, str], pd.Series] = {}
        for attack in attacks:
            mine = group[group["attack"] == attack]
            for variant in mine["variant"].unique() if len(mine) else [""]:
                part = mine[mine["variant"] == variant].set_index("bits")
                name = attack if mine["variant"].nunique() < 2 else f"{attack} ({variant})"
                for figure, (heading, digits) in figures.items():
                    columns[name, heading] = _figure_column(part, figure, digits)
        frame = pd.DataFrame(columns)
        frame = frame.reindex(_all_bits(frame.index)).fillna(MISSING)
        table.sections[section_title(model, data)] = frame
        if runs is not None:
            table.commands += _missing_commands(group, runs, data, model, attacks)
    return table


def _figure_column(part: pd.DataFrame, figure: str, digits: int) -> pd.Series:
    def text(row: pd.Series) -> str:
        ours = _with_spread(row[figure], row.get(f"{figure}_sd"), digits) if pd.notna(row[figure]) else "–"
        paper = row.get(f"paper_{figure}")
        return f"{ours} ({paper:.{digits}f})" if paper is not None and pd.notna(paper) else ours

    return part.apply(text, axis=1) if len(part) else pd.Series(dtype=object)


def _with_spread(mean: float, spread: float | None, digits: int) -> str:
    return f"{mean:.{digits}f}" + (f" ± {spread:.{digits}f}" if spread is not None and pd.notna(spread) else "")


def _all_bits(found: pd.Index) -> list[str]:
    return sorted({*STUDY_BITS, *found}, key=bits_order)


def counted(sizes: Collection[int]) -> str:
    """
    >>> counted([600, 3000, 1000]), counted([1000, 1000])
    ('600 to 3,000', '1,000')
    """
    return " to ".join(f"{n:,}" for n in dict.fromkeys((min(sizes), max(sizes))))


def bare(rate: float, digits: int = 3) -> str:
    """
    >>> bare(0.36), bare(1.0), bare(0.419, 2)
    ('.360', '1.000', '.42')
    """
    return f"{rate:.{digits}f}".removeprefix("0")


def in_short(rate: float, interval: tuple[float, float]) -> str:
    """
    >>> in_short(0.36, (0.331, 0.39))
    '.360 (.33–.39)'
    """
    low, high = (bare(bound, 2) for bound in interval)
    return f"{bare(rate)} ({low}–{high})"


def bits_title(bits: str) -> str:
    """
    >>> bits_title("2"), bits_title("FP")
    ('2 bit', 'FP')
    """
    return f"{bits} bit" if bits.isdecimal() else bits


def section_title(model: str, data: str, label: str = "") -> str:
    return TITLES.get(model, model) + (f" on {data}" if data else "") + (f" ({label})" if label else "")


def _by_settings(trainings: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Split trainings of one model by what kind of network it is, then by further settings that differ.

    Only those that differ at the same bits; the training seed aside.
    """
    settings = [c for c in trainings.columns if c.startswith("params.") and c not in _REPLICATE]
    return [
        (", ".join(filter(None, (kind, label))), part)
        for kind, alike in _split(trainings, [name for name in _KIND if name in settings])
        for label, part in _split(alike, settings)
    ]


def _split(trainings: pd.DataFrame, settings: list[str]) -> list[tuple[str, pd.DataFrame]]:
    texts = trainings[settings].astype(str)
    free = [c for c in settings if (texts.groupby(trainings["params.bits"])[c].nunique() > 1).any()]
    if not free:
        return [("", trainings)]
    return [
        (", ".join(f"{c.removeprefix('params.')}={value}" for c, value in zip(free, values, strict=True)), part)
        for values, part in trainings.groupby(free, dropna=False)
    ]


def _missing_commands(
    group: pd.DataFrame, runs: pd.DataFrame, data: str, model: str, attacks: tuple[str, ...]
) -> list[str]:
    """Commands for the cells of the published grid that this network lacks."""
    absent: dict[tuple[str, ...], list[str]] = {}
    for bits in STUDY_BITS:
        have = set(group.loc[group["bits"] == bits, "attack"])
        lacking = tuple(name for name in attacks if name not in have)
        if lacking:
            absent.setdefault(lacking, []).append(bits)
    mine = runs[(runs["params.data"] == data) & (runs["params.model"] == model)]
    n, seeds = mine["params.n_requested"].unique(), sorted(mine["params.seed"].unique(), key=int)
    common = {"n": n[0] if len(n) == 1 else _PAPER_GRID["n"], "seed": ",".join(seeds) or _PAPER_GRID["seed"]}
    return [
        _command("attack", mine, {"model": model, "data": data, "bits": ",".join(b), "attack": ",".join(a), **common})
        for a, b in absent.items()
    ]


def _command(pipeline: str, like: pd.DataFrame, axes: dict[str, str]) -> str:
    """The launch that fills cells, under the study and further overrides its neighbours were launched with."""
    more = []
    for name, column in (("experiment", "experiment"), ("study", "study")):
        values = set(like[column]) - {""}
        more += [f"{name}={values.pop()}"] if len(values) == 1 else []
    overrides = set(like["overrides"]) - {""}
    more += shlex.split(overrides.pop()) if len(overrides) == 1 else []
    return " ".join(["python -m", f"pipelines.{pipeline}", "-m", *more, *(f"{k}={v}" for k, v in axes.items())])


def provenance(runs: pd.DataFrame) -> dict[str, Any]:
    """Where a folder of tables comes from: the runs' studies, commits, machines, versions and dates."""
    distinct = {
        name: sorted(set(runs[name]) - {""}) for name in ("study", "commit", "hardware", "versions", "overrides")
    }
    dates = pd.to_datetime(runs["started"], unit="ms", utc=True).dt.strftime("%Y-%m-%d")
    return {"runs": len(runs), "first": dates.min(), "last": dates.max(), **distinct}


def write(table: PaperTable, folder: Path, note: str = "") -> list[Path]:
    """Write the table as `.md`, `.csv`, `.tex` and `.html`, each with `note` as a comment; returns their paths."""
    formats: dict[str, tuple[Callable[[PaperTable], str], str]] = {
        "md": (markdown, "{body}\n<!-- {note} -->\n"),
        "csv": (csv, "# {note}\n{body}"),
        "tex": (latex, "% {note}\n{body}"),
        "html": (html, "{body}<!-- {note} -->\n"),
    }
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for suffix, (render, form) in formats.items():
        path = folder / f"{table.name}.{suffix}"
        path.write_text(form.format(body=render(table), note=note) if note else render(table))
        paths.append(path)
    return paths


def markdown(table: PaperTable) -> str:
    parts = [f"# {table.heading}", table.caption]
    for title, frame in table.sections.items():
        parts += [f"## {title}", flat(frame).to_markdown(disable_numparse=True)]
    if table.commands:
        parts += ["Missing cells are filled by", "\n".join(f"    {command}" for command in table.commands)]
    return "\n\n".join(parts) + "\n"


def csv(table: PaperTable) -> str:
    frames = [flat(frame).assign(network=title) for title, frame in table.sections.items()]
    return pd.concat(frames).set_index("network", append=True).swaplevel().to_csv() if frames else ""


def latex(table: PaperTable) -> str:
    parts = []
    for title, frame in table.sections.items():
        escaped = frame.rename(columns=_tex).map(_tex)
        escaped.columns = escaped.columns.set_names([None] * escaped.columns.nlevels)
        caption = _tex(f"{table.heading}, {title}. {table.caption}")
        parts.append(escaped.to_latex(caption=caption, column_format="l" + "r" * frame.shape[1]))
    return "\n".join(parts)


def html(table: PaperTable) -> str:
    body = [f"<h1>{table.heading}</h1><p>{table.caption}</p>"]
    for title, frame in table.sections.items():
        body += [f"<h2>{title}</h2>", frame.to_html(border=0)]
    if table.commands:
        body += ["<p>Missing cells are filled by</p><pre>", "\n".join(table.commands), "</pre>"]
    head = f'<meta charset="utf-8"><title>{table.heading}</title><style>{STYLE}</style>'
    return f"<!doctype html><html><head>{head}</head><body>{''.join(body)}</body></html>\n"


def flat(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with its column levels joined into one; its index is that of widths unless it has a name."""
    columns = [" ".join(filter(None, c)) if isinstance(c, tuple) else c for c in frame.columns]
    return frame.set_axis(columns, axis=1).rename_axis(str(frame.index.name or "bits"))


def _tex(text: str) -> str:
    for plain, escaped in _TEX.items():
        text = text.replace(plain, escaped)
    return text


def show(table: PaperTable, console: Console) -> None:
    """Print a table: one column per attack, its figures under one another."""
    console.print(f"\n[bold]{table.heading}[/bold]  {table.caption}", highlight=False)
    for title, frame in table.sections.items():
        grid = RichTable(title=title, box=box.SIMPLE_HEAD, title_justify="left")
        grid.add_column("bits", justify="right")
        names = list(dict.fromkeys(c[0] if isinstance(c, tuple) else c for c in frame.columns))
        for name in names:
            grid.add_column(name)
        for bits, row in frame.iterrows():
            grid.add_row(str(bits), *(_stacked(row, name) for name in names))
        console.print(grid)
    for command in table.commands:
        console.print(f"missing: {command}", style="dim", highlight=False, soft_wrap=True)


def _stacked(row: pd.Series, name: str) -> str:
    """The figures of one attack under one another, without their spread, which the files have."""
    mine = row[name]
    if isinstance(mine, str):
        return mine
    if (mine == MISSING).all():
        return MISSING
    short = [_SPREAD.sub("", value) for value in mine]
    return "\n".join(value if i == 0 else f"{mine.index[i]} {value}" for i, value in enumerate(short))


def main(arguments: list[str] | None = None) -> int:
    """Regenerate the tables; the exit status is 1 where there is nothing to make them from."""
    parser = argparse.ArgumentParser(prog="python -m analysis.tables", description=__doc__.split("\n\n")[0])
    parser.add_argument("--study", action="append", default=[], help="only runs of this study (may be repeated)")
    parser.add_argument("--tracking-uri", default=default_uri(), help="MLflow store (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("tables"), help="folder to write to (default: %(default)s)")
    parser.add_argument("--quiet", action="store_true", help="write the files only")
    chosen = parser.parse_args(arguments)
    try:
        attack_runs, train_runs = (load_runs(kind, chosen.tracking_uri, chosen.study) for kind in ("attack", "train"))
    except LookupError as error:
        print(f"error: {error.args[0]}", file=sys.stderr)
        return 1
    if attack_runs.empty and train_runs.empty:
        print(f"error: no complete runs in {chosen.tracking_uri}: launch a sweep first", file=sys.stderr)
        return 1
    cells = cell_table(attack_runs)
    chosen.out.mkdir(parents=True, exist_ok=True)
    cells.to_csv(chosen.out / "cells.csv", index=False, float_format="%.6g")
    tables = [accuracies(train_runs), direct_attacks(cells, attack_runs), saliency_distances(cells, attack_runs)]
    (chosen.out / "provenance.json").write_text(json.dumps(provenance(pd.concat([attack_runs, train_runs])), indent=1))
    console = Console()
    for table in tables:
        if table.sections:
            write(table, chosen.out)
            if not chosen.quiet:
                show(table, console)
    superseded = int(cells["superseded_runs"].sum())
    if superseded:
        console.print(f"{superseded} older runs of the same cells were left out")
    console.print(f"written to {chosen.out.absolute()}", soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
