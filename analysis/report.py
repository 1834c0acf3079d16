"""The report: verdicts, tables and figures in one place, as Markdown and as one HTML file."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import pandas as pd

from analysis.claims import FAILS, HOLDS, Judgement
from analysis.tables import STYLE, TITLES, PaperTable, flat

_MARKS = {HOLDS: "✔", FAILS: "✘"}


@dataclass(frozen=True)
class Picture:
    """A figure that lies as NAME.png in the figures folder."""

    name: str
    caption: str


@dataclass(frozen=True)
class Section:
    """A heading, some sentences, and what they are about."""

    heading: str
    text: str = ""
    parts: Sequence[PaperTable | Picture | pd.DataFrame] = ()
    code: Sequence[str] = ()


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
                "our runs": _verdict(mine),
                "mean effect (95 %)": "–"
                if effect is None
                else "{:+.3f} ({:+.3f} … {:+.3f})".format(effect.value, *effect.interval),
                "for / against / of": f"{counts[0]} / {counts[1]} / {len(mine.claim.contrasts)}",
                "our rule": mine.claim.rule
                or {"all": "every contrast", "most": "most contrasts", "mean": "their mean"}[mine.claim.needs],
            }
        )
    return pd.DataFrame(rows)


def _verdict(judgement: Judgement) -> str:
    if not judgement.findings:
        return "–"
    models = [f"{TITLES[model]} {_MARKS.get(verdict, '?')}" for model, verdict in judgement.by_model.items()]
    partial = [f"{len(judgement.absent)} contrasts without runs"] if judgement.absent else []
    more = ", ".join([*models, *partial])
    return f"{_MARKS.get(judgement.verdict, '?')} {judgement.verdict}" + (f" ({more})" if more else "")


def markdown(title: str, sections: Sequence[Section], figures: Path, note: str) -> str:
    """The report in Markdown; `figures` is the folder of the pictures, relative to it."""
    parts = [f"# {title}"]
    for section in sections:
        parts += [f"## {section.heading}", *([section.text] if section.text else [])]
        for part in section.parts:
            if isinstance(part, Picture):
                parts += [f"![{part.name}]({(figures / part.name).as_posix()}.png)", part.caption]
            elif isinstance(part, PaperTable):
                parts += [f"### {part.heading}", part.caption]
                for name, frame in part.sections.items():
                    parts += [f"**{name}**", flat(frame).to_markdown(disable_numparse=True)]
            else:
                parts.append(part.to_markdown(index=False, disable_numparse=True))
        if section.code:
            parts.append("\n".join(f"    {line}" for line in section.code))
    return "\n\n".join([*parts, f"<sub>{note}</sub>"]) + "\n"


def html(title: str, sections: Sequence[Section], figures: Path, note: str) -> str:
    """The report as one HTML file that needs no other; `figures` is the folder the pictures are read from."""
    body = [f"<h1>{escape(title)}</h1>"]
    for section in sections:
        body.append(f"<h2>{escape(section.heading)}</h2><p>{escape(section.text)}</p>")
        for part in section.parts:
            if isinstance(part, Picture):
                data = base64.b64encode((figures / f"{part.name}.png").read_bytes()).decode()
                caption = escape(part.caption)
                body.append(
                    f'<figure><img alt="{caption}" src="data:image/png;base64,{data}">'
                    f"<figcaption>{caption}</figcaption></figure>"
                )
            elif isinstance(part, PaperTable):
                body.append(f"<h3>{escape(part.heading)}</h3><p>{escape(part.caption)}</p>")
                for name, frame in part.sections.items():
                    body.append(f'<h4>{escape(name)}</h4><div class="wide">{frame.to_html(border=0)}</div>')
            else:
                body.append(f'<div class="wide text">{part.to_html(index=False, border=0)}</div>')
        if section.code:
            body.append(f"<pre>{escape(chr(10).join(section.code))}</pre>")
    style = STYLE + (
        "body{max-width:72rem;margin:2rem auto;padding:0 1rem}.wide{overflow-x:auto}img{max-width:100%}"
        "figure{margin:1.5rem 0}figcaption,footer{color:#555;font-size:.9em}"
        ".text td{white-space:normal;text-align:left;vertical-align:top;min-width:7rem}"
    )
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{style}</style>'
    body.append(f"<footer>{escape(note)}</footer>")
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(body)}</body></html>\n'
