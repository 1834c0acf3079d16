"""One page for a sweep: ``python -m analysis.report [--sweep RUN_ID | --study NAME] [--out FILE]``.

The page needs no other file, no server and no network: tables that can be sorted, with the distance to the
paper's values, figures, and the clean, adversarial and difference images of each run.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from html import escape
from pathlib import Path

import pandas as pd
from mlflow import MlflowClient

from analysis import figures, page, sweeps, tables
from analysis.cells import bits_order
from analysis.gallery import gallery
from analysis.page import Markup, Picture, Section
from analysis.store import default_uri
from analysis.sweeps import Found

UI = "http://127.0.0.1:5000"
_CELLS = (
    "One row per cell, attack seeds summed up. Adversarial accuracy is the share of the attacked images that are still"
    " classified correctly, with the 95 % Wilson interval of all images; distances are means over successful images;"
    " gave up are images an attack returned unchanged. Δ is ours minus the paper's value, where data and"
    " hyper-parameters are the paper's."
)
_FORMATS = {
    "images": ",.0f", "seeds": ".0f", "adv. acc.": ".3f", "low": ".3f", "high": ".3f", "paper": ".3f", "Δ": "+.3f",
    "L2": ".3f", "paper L2": ".3f", "Δ L2": "+.3f", "L∞": ".3f", "gave up": ",.0f", "test accuracy": ".2%",
    "seconds": ",.1f",
}  # fmt: skip


def write(found: Found, out: Path, *, ui: str, budget: int) -> None:
    """Write the page; `ui` is where the MLflow UI of the store is, `budget` the room for images in characters."""
    images = gallery(found.attack, found.uri, budget)
    with tempfile.TemporaryDirectory() as name:
        drawn = [Picture(*named) for named in figures.write(found.figures(), Path(name), found.title)]
        sections = [
            Section("Cells", _CELLS, [Markup(_cells(found.cells))] if len(found.cells) else []),
            Section("Against bit width", parts=drawn),
            Section("Tables", parts=found.tables()),
            Section("Images", images.text, [Markup(images.html)] if images.html else []),
            Section("Runs", f"The links lead to the MLflow UI at {ui}.", [Markup(_runs(found, ui))]),
        ]
        sections = [section for section in sections if section.parts]
        text = page.html(found.title, sections, Path(name), _provenance(found), lead=_facts(found, ui))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text)


def _facts(found: Found, ui: str) -> str:
    """Where the runs are, and of a sweep how it was launched, when, and how it ended."""
    facts = {"runs": f"{len(found.runs())} complete, in {escape(found.uri)}"}
    if found.parent is not None:
        info, note = found.parent.info, found.parent.data.tags.get("mlflow.note.content", "")
        commands = [line.strip() for line in note.splitlines() if line.startswith("    python -m")]
        facts = {
            "sweep": f'<a href="{_link(ui, info.experiment_id, info.run_id)}">{info.run_id}</a>, {info.status.lower()}',
            "begun": _time(info.start_time) + (f", ended {_time(info.end_time)}" if info.end_time else ""),
            **({"launched by": f"<code>{escape(commands[0])}</code>"} if commands else {}),
            **facts,
        }
    return f'<dl class="facts">{"".join(f"<dt>{name}</dt><dd>{text}</dd>" for name, text in facts.items())}</dl>'


def _time(milliseconds: int) -> str:
    return f"{pd.Timestamp(milliseconds, unit='ms'):%Y-%m-%d %H:%M} UTC"


def _provenance(found: Found) -> str:
    facts = tables.provenance(found.runs())
    commits = ", ".join(commit[:10] for commit in facts["commit"])
    parts = [
        f"{facts['runs']} runs of {facts['first']} to {facts['last']}",
        *([f"commits {commits}"] if commits else []),
    ]
    return "; ".join([*parts, *("; ".join(facts[name]) for name in ("hardware", "versions"))]) + "."


def _cells(cells: pd.DataFrame) -> str:
    """The cells as a sortable table, beside the paper's values where there are any."""
    columns = {
        **{name: cells[name] for name in ("data", "model", "bits", "attack", "variant")},
        "images": cells["n_total"],
        "seeds": cells["seeds"],
        "adv. acc.": cells["adversarial_accuracy"],
        "low": cells["adversarial_accuracy_low"],
        "high": cells["adversarial_accuracy_high"],
        "paper": cells["paper_adversarial_accuracy"],
        "Δ": cells["adversarial_accuracy"] - cells["paper_adversarial_accuracy"],
        "L2": cells["l2"],
        "paper L2": cells["paper_l2"],
        "Δ L2": cells["l2"] - cells["paper_l2"],
        "L∞": cells["linf"],
        "gave up": cells["gave_up"],
    }
    found = pd.DataFrame(columns)
    unknown = [name for name in ("paper", "Δ", "paper L2", "Δ L2") if found[name].isna().all()]
    the_same = [name for name in ("data", "model") if found[name].nunique() == 1]
    found = found.drop(columns=unknown + the_same)
    return page.sortable(found, _FORMATS, keys={"bits": _bits_ranks(found["bits"])})


def _runs(found: Found, ui: str) -> str:
    """One row per run, with a link to it."""
    runs = found.runs()
    studies = {e.name: e.experiment_id for e in MlflowClient(found.uri).search_experiments()}
    kinds = [kind for kind in ("attack", "transfer", "train") for _ in range(len(getattr(found, kind)))]
    wanted = {
        "model": "params.model", "bits": "params.bits", "attack": "params.attack", "seed": "params.seed",
        "adv. acc.": "metrics.adversarial_accuracy", "L2": "metrics.l2", "test accuracy": "metrics.test_accuracy",
        "seconds": "metrics.seconds",
    }  # fmt: skip
    columns = {title: runs[name] for title, name in wanted.items() if name in runs}
    shown = pd.DataFrame({"run": runs["run_id"].str[:8], "kind": kinds, **columns})
    links = [_link(ui, studies[row["study"]], row["run_id"]) for _, row in runs.iterrows()]
    return page.sortable(shown, _FORMATS, keys={"bits": _bits_ranks(shown["bits"])}, links={"run": links})


def _bits_ranks(bits: pd.Series) -> list[float]:
    order = sorted(bits.unique(), key=bits_order)
    return [float(order.index(width)) for width in bits]


def _link(ui: str, experiment: str, run_id: str) -> str:
    return f"{ui.rstrip('/')}/#/experiments/{experiment}/runs/{run_id}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m analysis.report", description=__doc__.split("\n\n")[0])
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--sweep", metavar="RUN_ID", help="the sweep's parent run (default: the sweep begun last)")
    which.add_argument("--study", help="all cells of a study instead of one sweep")
    parser.add_argument("--tracking-uri", default=default_uri(), help="MLflow store (default: %(default)s)")
    parser.add_argument("--ui", help=f"where the links to runs lead (default: the store's server, or {UI})")
    parser.add_argument("--out", type=Path, default=Path("report.html"), help="file to write (default: %(default)s)")
    parser.add_argument(
        "--images", type=float, default=4.0, metavar="MB", help="room for images (default: %(default)s)"
    )
    chosen = parser.parse_args(arguments)
    uri = chosen.tracking_uri
    try:
        found = (
            sweeps.of_study(uri, chosen.study)
            if chosen.study
            else sweeps.of_sweep(uri, chosen.sweep or sweeps.newest_sweep(uri))
        )
    except LookupError as error:
        print(f"error: {error.args[0]}", file=sys.stderr)
        return 1
    if found.runs().empty:
        print(f"error: {found.title} has no complete runs yet", file=sys.stderr)
        return 1
    ui = chosen.ui or (uri if uri.startswith("http") else UI)
    write(found, chosen.out, ui=ui, budget=int(chosen.images * 1e6))
    size = chosen.out.stat().st_size / 1e6
    print(f"{found.title}: {len(found.runs())} runs written to {chosen.out.absolute()} ({size:.1f} MB)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
