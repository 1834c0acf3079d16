"""The study's report: verdicts first, then tables and figures (`analysis.page`)."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import pandas as pd

from analysis.claims import FAILS, HOLDS, Judgement
from analysis.tables import TITLES

_MARKS = {HOLDS: "✔", FAILS: "✘"}


def verdicts(paper: Sequence[Judgement], ours: Sequence[Judgement]) -> pd.DataFrame:
    """The claims as text, one row each."""
    rows = []
    for theirs, mine in zip(paper, ours, strict=True):
        effect = mine.effect
        counts = [sum(finding.verdict == verdict for finding in mine.findings) for verdict in (HOLDS, FAILS)]
        rows.append(
            {
                "claim": f"{mine.claim.text} ({mine.claim.where})",
                "paper's own table": _verdict(theirs),
                "our runs": _verdict(mine, mine.once_trained),
                "mean effect (95 %)": "–"
                if effect is None
                else "{:+.3f} ({:+.3f} … {:+.3f})".format(effect.value, *effect.interval),
                "for / against / of": f"{counts[0]} / {counts[1]} / {len(mine.claim.contrasts)}",
                "our rule": mine.claim.rule
                or {"all": "every contrast", "most": "most contrasts", "any": "one contrast", "mean": "their mean"}[
                    mine.claim.needs
                ],
            }
        )
    return pd.DataFrame(rows)


def _verdict(judgement: Judgement, once_trained: Collection[str] = ()) -> str:
    if not judgement.findings:
        return "–"

    def footnote(model: str) -> str:  # contrasts that speak of no single model have '' for one
        return "¹" if model in once_trained else ""

    models = [
        f"{TITLES[model]} {_MARKS.get(verdict, '?')}{footnote(model)}" for model, verdict in judgement.by_model.items()
    ]
    partial = [f"{len(judgement.absent)} contrasts without runs"] if judgement.absent else []
    more = ", ".join([*models, *partial])
    whole = f"{_MARKS.get(judgement.verdict, '?')} {judgement.verdict}{footnote('')}"
    return whole + (f" ({more})" if more else "")
