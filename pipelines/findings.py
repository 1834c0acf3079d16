"""What a sweep found, kept with its parent run."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from analysis import figures, sweeps, tables
from pipelines import view
from pipelines.plan import Sweep
from pipelines.tracking import Tracker

_LAUNCHED = "\n### Launched\n\n"
_DESCRIPTION = 5000  # characters; the stores take 8000 in a tag


def attach(tracker: Tracker, sweep: Sweep, run_id: str) -> None:
    """Let the parent run hold the sweep's own tables and figures, and say the adversarial accuracies in words.

    Everything is made from the runs of the sweep's cells, whether they were run now or before.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / sweeps.CELLS).write_text(json.dumps({cell.key: cell.label for cell in sweep.cells}, indent=1))
        tracker.log_folder(run_id, folder)
        found = sweeps.of_sweep(tracker.uri, run_id)
        if found.runs().empty:
            return
        made = found.tables()
        for table in made:
            tables.write(table, folder / "tables")
        if len(found.cells):
            found.cells.to_csv(folder / "tables" / "cells.csv", index=False, float_format="%.6g")
        figures.write(found.figures(), folder / "figures", note=found.title)
        tracker.log_folder(run_id, folder)
    assert found.parent is not None
    tracker.client.set_experiment_tag(tracker.experiment_id, *view.tag(run_id))
    link = f"[in parallel coordinates, and their images]({view.link(tracker.experiment_id, run_id)})"
    launched = found.parent.data.tags.get("mlflow.note.content", "").rpartition(_LAUNCHED)[2]
    text = f"The attacks {link}. Tables and figures are among the artifacts.\n\n{in_short(made)}{_LAUNCHED}{launched}"
    tracker.set_tags(run_id, {"mlflow.note.content": text})


def in_short(made: list[tables.PaperTable]) -> str:
    """The tables as Markdown, of attacks the adversarial accuracies alone, as many as there is room for."""
    parts = []
    for table in made:
        for title, frame in table.sections.items():
            short = frame.xs(tables.ADVERSARIAL_ACCURACY, axis=1, level=1) if frame.columns.nlevels > 1 else frame
            parts.append(f"**{title}**\n\n{short.rename_axis('bits').to_markdown(disable_numparse=True)}\n")
    text = "Adversarial accuracy where nothing else is said; in brackets the paper's.\n"
    for part in parts:
        if len(text) + len(part) < _DESCRIPTION:
            text += f"\n{part}"
    return text
