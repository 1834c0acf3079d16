"""The generator of the configuration reference."""

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def conf_tree():
    spec = importlib.util.spec_from_file_location("conf_tree", ROOT / "docs" / "_ext" / "conf_tree.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["conf_tree"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    folder = tmp_path / "conf"
    (folder / "attack").mkdir(parents=True)
    (folder / "attack" / "a.yaml").write_text(
        "# An attack\n# in two lines.\ndefaults:\n  - /data: digits\n  - _self_\n\n"
        "name: a\neps: 0.1   # radius | size\ndeep:\n  one: {x: 1, y: [2]}   # a pair\n  two: 'a # b'\n"
    )
    (folder / "base.yaml").write_text("# Everything.\nn: 3\n")
    return folder


def test_a_file_is_read_with_its_keys_values_and_comments(conf_tree, tree):
    option = conf_tree.read(tree, tree / "attack" / "a.yaml")
    assert (option.chosen, option.about, option.builds_on) == (
        "attack=a",
        "An attack in two lines.",
        ["data=digits", "_self_"],
    )
    assert [(key.name, key.value, key.comment) for key in option.keys] == [
        ("attack.name", "a", ""),
        ("attack.eps", "0.1", "radius | size"),
        ("attack.deep.one", "{x: 1, y: [2]}", "a pair"),
        ("attack.deep.two", "'a # b'", ""),
    ]


def test_keys_go_where_the_file_says_they_do(conf_tree, tree):
    (tree / "attack" / "g.yaml").write_text("# @package _global_\n# Sets n.\nn: 4\n")
    (tree / "attack" / "p.yaml").write_text("# @package defence.start\n# Sets n.\nn: 4\n")
    for file, name in (("base.yaml", "n"), ("attack/g.yaml", "n"), ("attack/p.yaml", "defence.start.n")):
        option = conf_tree.read(tree, tree / file)
        assert [key.name for key in option.keys] == [name]
        assert "@" not in option.about


def test_a_file_without_a_comment_is_refused(conf_tree, tree):
    (tree / "base.yaml").write_text("n: 3\n")
    with pytest.raises(ValueError, match="does not begin with a comment"):
        conf_tree.read(tree, tree / "base.yaml")


def test_pages_follow_the_tree(conf_tree, tree, tmp_path):
    conf_tree.write(tree, tmp_path / "pages")
    assert {path.name for path in (tmp_path / "pages").iterdir()} == {"index.md", "pipelines.md", "attack.md"}
    page = (tmp_path / "pages" / "attack.md").read_text()
    assert r"| `attack.eps` | `0.1` | radius \| size |" in page
    (tree / "attack" / "a.yaml").unlink()
    (tree / "attack").rmdir()
    conf_tree.write(tree, tmp_path / "pages")
    assert {path.name for path in (tmp_path / "pages").iterdir()} == {"index.md", "pipelines.md"}


def test_every_file_of_the_project_s_tree_says_what_it_is(conf_tree):
    for path in (ROOT / "conf").rglob("*.yaml"):
        assert conf_tree.read(ROOT / "conf", path).about
