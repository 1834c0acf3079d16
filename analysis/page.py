"""Tables, figures and sentences in one place, as Markdown and as one HTML file that needs no other."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from pathlib import Path

import pandas as pd

from analysis.tables import STYLE, PaperTable, flat

_LONG = 4  # sections, from which on a page has a table of contents


@dataclass(frozen=True)
class Picture:
    """A figure that lies as NAME.png in the figures folder."""

    name: str
    caption: str


@dataclass(frozen=True)
class Markup:
    """HTML as it is; not for the Markdown form."""

    html: str


@dataclass(frozen=True)
class Section:
    """A heading, some sentences, and what they are about."""

    heading: str
    text: str = ""
    parts: Sequence[PaperTable | Picture | pd.DataFrame | Markup] = ()
    code: Sequence[str] = ()

    @property
    def anchor(self) -> str:
        """As in ``is-the-robustness-real``."""
        return re.sub(r"\W+", "-", self.heading.lower()).strip("-")


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
            elif isinstance(part, pd.DataFrame):
                parts.append(part.to_markdown(index=False, disable_numparse=True))
        if section.code:
            parts.append("\n".join(f"    {line}" for line in section.code))
    return "\n\n".join([*parts, f"<sub>{note}</sub>"]) + "\n"


def html(title: str, sections: Sequence[Section], figures: Path, note: str, lead: str = "") -> str:
    """One HTML file that needs no other; `figures` is the folder the pictures are read from, `lead` HTML."""
    body = [f"<h1>{escape(title)}</h1>{lead}", _contents(sections)]
    for section in sections:
        body.append(f'<h2 id="{section.anchor}">{escape(section.heading)}</h2>')
        body.append(f"<p>{escape(section.text)}</p>" if section.text else "")
        body += [_part(part, figures) for part in section.parts]
        if section.code:
            body.append(f"<pre>{escape(chr(10).join(section.code))}</pre>")
    body.append(f"<footer>{escape(note)}</footer>")
    style, script = ((resources.files("analysis") / f"page.{kind}").read_text() for kind in ("css", "js"))
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}{style}</style>"
    )
    page = f"<head>{head}</head><body>{''.join(body)}<script>{script}</script></body>"
    return f'<!doctype html><html lang="en">{page}</html>\n'


def _contents(sections: Sequence[Section]) -> str:
    """Links to the sections and the tables in them; none on a short page."""
    if len(sections) < _LONG:
        return ""
    items = []
    for section in sections:
        tables = [part for part in section.parts if isinstance(part, PaperTable) and part.heading != section.heading]
        below = "".join(f'<li><a href="#{part.name}">{escape(part.heading)}</a></li>' for part in tables)
        link = f'<a href="#{section.anchor}">{escape(section.heading)}</a>'
        items.append(f"<li>{link}{below and f'<ul>{below}</ul>'}</li>")
    return f'<nav aria-label="Contents"><ul>{"".join(items)}</ul></nav>'


def _part(part: PaperTable | Picture | pd.DataFrame | Markup, figures: Path) -> str:
    if isinstance(part, Markup):
        return part.html
    if isinstance(part, Picture):
        caption = escape(part.caption)
        data = data_uri((figures / f"{part.name}.png").read_bytes())
        return f'<figure><img alt="{caption}" src="{data}"><figcaption>{caption}</figcaption></figure>'
    if isinstance(part, PaperTable):
        tables = [
            f'<h4>{escape(name)}</h4><div class="wide" tabindex="0">{frame.to_html(border=0)}</div>'
            for name, frame in part.sections.items()
        ]
        return f'<h3 id="{part.name}">{escape(part.heading)}</h3><p>{escape(part.caption)}</p>{"".join(tables)}'
    return f'<div class="wide text" tabindex="0">{part.to_html(index=False, border=0)}</div>'


def sortable(
    table: pd.DataFrame,
    formats: Mapping[str, str],
    keys: Mapping[str, Sequence[float]] | None = None,
    links: Mapping[str, Sequence[str]] | None = None,
) -> str:
    """A table whose columns the reader can sort.

    Args:
        table: raw values; NaN is shown as a dash.
        formats: of columns of numbers, as in ``.3f``.
        keys: what columns are sorted by that are sorted neither as numbers nor as text.
        links: where the cells of columns lead.
    """
    keys, links = keys or {}, links or {}
    heads = "".join(f'<th scope="col">{escape(str(name))}</th>' for name in table.columns)
    rows = []
    for place, row in enumerate(table.itertuples(index=False)):
        cells = []
        for name, value in zip(table.columns, row, strict=True):
            number = name in formats
            text = "–" if pd.isna(value) else escape(format(value, formats[name]) if number else str(value))
            if name in links:
                text = f'<a href="{escape(links[name][place])}">{text}</a>'
            key = keys[name][place] if name in keys else value
            sorted_by = f' data-value="{key}"' if number or name in keys else ' class="word"'
            cells.append(f"<td{sorted_by}>{text}</td>")
        rows.append(f"<tr>{''.join(cells)}</tr>")
    body = f"<thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody>"
    return f'<div class="wide" tabindex="0"><table class="sortable">{body}</table></div>'


def data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
