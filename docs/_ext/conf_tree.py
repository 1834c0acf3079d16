"""The configuration reference: every file of `conf`, with its first comment, its keys, their values and comments."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

_COMMENT = re.compile(r"\s#\s+(.*)$")
_PIPELINES = "pipelines"
_PACKAGE = "@package "  # where the keys of a file go, if not to its group


@dataclass(frozen=True)
class Key:
    """A key as on the command line, its value as in the file, and the comment behind it."""

    name: str
    value: str
    comment: str


@dataclass(frozen=True)
class Option:
    """One file of the tree.

    Attributes:
        chosen: what is written to choose it, as in ``attack=fgsm``; for a pipeline its name.
        about: the comment at its top.
        builds_on: its defaults list, entry by entry.
    """

    chosen: str
    about: str
    builds_on: list[str]
    keys: list[Key]


def write(tree: Path, folder: Path) -> None:
    """Write an `index.md` and one page per group of the Hydra tree; pages of groups that are gone are removed."""
    groups = sorted({path.parent.relative_to(tree) for path in tree.rglob("*.yaml")} - {Path()})
    pages = {_PIPELINES: page("Pipelines", [read(tree, path) for path in sorted(tree.glob("*.yaml"))])}
    for group in groups:
        options = [read(tree, path) for path in sorted((tree / group).glob("*.yaml"))]
        pages[str(group).replace("/", "-")] = page(str(group), options)
    pages["index"] = _index(list(pages))
    folder.mkdir(exist_ok=True)
    for stale in set(folder.glob("*.md")) - {folder / f"{name}.md" for name in pages}:
        stale.unlink()
    for name, text in pages.items():
        path = folder / f"{name}.md"
        if not path.is_file() or path.read_text() != text:  # so that only what changed is built anew
            path.write_text(text)


def page(title: str, options: list[Option]) -> str:
    """One group as Markdown."""
    return "\n\n".join([f"# {title}", *(_section(option) for option in options)]) + "\n"


def read(tree: Path, path: Path) -> Option:
    """One file of the tree.

    Raises:
        ValueError: it does not begin with a comment that says what it is.
    """
    text = path.read_text()
    head = [line[1:].strip() for line in text.split("\n\n")[0].splitlines() if line.startswith("#")]
    about = [line for line in head if not line.startswith(_PACKAGE)]
    if not about:
        raise ValueError(f"{path} does not begin with a comment that says what it is")
    group = path.parent.relative_to(tree)
    packages = [line.removeprefix(_PACKAGE) for line in head if line.startswith(_PACKAGE)]
    package = packages[0] if packages else ".".join(group.parts)
    prefix = f"{package}." if package not in ("", "_global_") else ""
    keys = [key for key in _keys(yaml.compose(text), prefix, text) if not key.name.startswith(f"{prefix}defaults")]
    chosen = f"{group}={path.stem}" if group != Path() else path.stem
    loaded = yaml.safe_load(text) or {}
    return Option(chosen, " ".join(about), [_entry(entry) for entry in loaded.get("defaults", [])], keys)


def _entry(entry: object) -> str:
    """An entry of a defaults list, as on the command line."""
    if not isinstance(entry, dict):
        return str(entry)
    ((group, choice),) = entry.items()
    return f"{group.removeprefix('override ').lstrip('/')}={'null' if choice is None else choice}"


def _keys(node: yaml.Node | None, prefix: str, text: str) -> Iterator[Key]:
    if not isinstance(node, yaml.MappingNode):
        return
    for key, value in node.value:
        name = f"{prefix}{key.value}"
        if isinstance(value, yaml.MappingNode) and not value.flow_style:
            yield from _keys(value, f"{name}.", text)
            continue
        source = text[value.start_mark.index : value.end_mark.index]
        rest = text[value.end_mark.index :].partition("\n")[0]
        comment = _COMMENT.search(f" {rest}")
        yield Key(name, " ".join(source.split()), comment.group(1) if comment else "")


def _section(option: Option) -> str:
    parts = [f"## {option.chosen}", _escaped(option.about)]
    builds_on = [entry for entry in option.builds_on if entry != "_self_"]
    if builds_on:
        parts.append("Builds on " + ", ".join(f"`{entry}`" for entry in builds_on) + ".")
    if option.keys:
        rows = [f"| `{_cell(key.name)}` | {_code(key.value)} | {_escaped(key.comment)} |" for key in option.keys]
        parts.append("\n".join(["| key | value | |", "|---|---|---|", *rows]))
    return "\n\n".join(parts)


def _cell(text: str) -> str:
    return text.replace("|", r"\|")


def _code(value: str) -> str:
    return f"`{_cell(value)}`" if value else ""


def _escaped(comment: str) -> str:
    """A comment as Markdown that says just that."""
    return re.sub(r"([\\*<>$`|])", r"\\\1", comment)


def _index(groups: list[str]) -> str:
    listed = "\n".join(groups)
    return (
        "# Configuration reference\n\n"
        "Made from the files of `conf` each time this documentation is built: every choice, what it is, and its keys"
        " as they are written on the command line. What is swept over is given as a list: `bits=FP,1,2`.\n\n"
        "    python -m pipelines.attack --cfg job\n\n"
        "prints what a command amounts to, and `--help` what each group can be.\n\n"
        f"```{{toctree}}\n:maxdepth: 2\n\n{listed}\n```\n"
    )
