"""What the pages say: their links resolve, the commands they show can be given, and they build without a warning."""

import argparse
import importlib
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_module
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
PIPELINES = ("train", "attack", "evaluate", "transfer", "alignment", "sensitivity")
_LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
_FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_ASSIGNMENT = re.compile(r"(export )?[A-Z_]+=")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_relative_link_leads_to_a_file(page):
    made_by_the_build = DOCS / "configuration"
    links = [link for link in _LINK.findall(page.read_text()) if not link.startswith(("http:", "https:", "mailto:"))]
    targets = [(page.parent / link).resolve() for link in links]
    assert [str(t) for t in targets if not t.exists() and made_by_the_build not in t.parents] == []


@pytest.mark.parametrize("name", ["headline", "patch-headline"])
def test_the_readme_shows_the_study_in_short(name: str):
    def rows(path: Path) -> set[str]:
        return {re.sub(" +", " ", line) for line in path.read_text().splitlines() if re.match(r"\| [^|]*\w", line)}

    shown = rows(ROOT / "results" / "tables" / f"{name}.md")
    assert len(shown) > 10
    assert shown <= rows(ROOT / "README.md"), f"copy the tables of results/tables/{name}.md to the README"


def commands() -> Iterator[tuple[str, str]]:
    """(page, command) of every command line shown; continued lines are joined, comments and prompts left out."""
    for page in PAGES:
        text = page.read_text().replace("\\\n", " ")
        for line in text.splitlines():
            indented = line.startswith("    ") or line.startswith(("$ ", "python -m ", "make ", "mlflow "))
            words = line.strip().removeprefix("$ ").partition(" #")[0].strip()
            if indented and re.match(r"(python -m (pipelines|analysis)\.|make |mlflow run|\S+=\S+ python -m)", words):
                yield page.name, " ".join(words.split())


SHOWN = sorted(set(commands()))


def shown(*beginnings: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("command", sorted({c for _, c in SHOWN if c.startswith(beginnings)}))


def test_every_page_s_commands_are_seen():
    assert {"README.md", "tutorial.md", "extend.md", "own_network.md", "defences.md"} <= {page for page, _ in SHOWN}


@shown(*(f"python -m pipelines.{name}" for name in PIPELINES))
def test_what_a_pipeline_is_given_composes(command, monkeypatch):
    monkeypatch.chdir(DOCS / "examples")
    words = shlex.split(command)[2:]
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("-m", action="store_true")
    parser.add_argument("--cfg")
    parser.add_argument("--config-dir", default="conf")
    options, overrides = parser.parse_known_args(words[1:])
    parsed = OverridesParser.create().parse_overrides(overrides)
    jobs = BasicSweeper.split_arguments(parsed, max_batch_size=None)[0]
    assert options.m or len(jobs) == 1 or "experiment=" in command
    with initialize_config_module("conf", version_base="1.3"):
        more = [f"hydra.searchpath=[file://{Path(options.config_dir).absolute()}]"]
        for job in jobs[:: max(1, len(jobs) - 1)]:
            cfg = compose(words[0].rpartition(".")[2], [*job, *more])
            OmegaConf.to_container(cfg, resolve=True)


@shown("python -m analysis.", "python -m pipelines.release", "python -m pipelines.status", "python -m pipelines.sync")
def test_a_tool_has_the_options_it_is_shown_with(command, monkeypatch, capsys):
    words = shlex.split(command)[2:]
    module = importlib.import_module(words[0])
    with pytest.raises(SystemExit) as stopped:
        module.main(["--help"])
    assert stopped.value.code == 0
    known = set(re.findall(r"--?[a-z][\w-]*", capsys.readouterr().out))
    assert {word.partition("=")[0] for word in words[1:] if word.startswith("-")} <= known


@shown("make ")
def test_what_is_made_is_in_the_makefile(command):
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(shlex.split(command)[1:]) <= targets


@shown("mlflow run")
def test_what_mlflow_projects_is_given_are_parameters(command):
    words = shlex.split(command)
    entry_points = yaml.safe_load((ROOT / "MLproject").read_text())["entry_points"]
    parameters = entry_points[words[words.index("-e") + 1]]["parameters"]
    given = {words[i + 1].partition("=")[0] for i, word in enumerate(words) if word == "-P"}
    assert given <= parameters.keys()


def test_the_documentation_builds_without_a_warning(tmp_path):
    build = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going", "--quiet", str(DOCS), str(tmp_path)]
    done = subprocess.run(build, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    reference = (tmp_path / "configuration" / "attack.html").read_text()
    for attack in (ROOT / "conf" / "attack").glob("*.yaml"):
        assert f"attack={attack.stem}" in reference
