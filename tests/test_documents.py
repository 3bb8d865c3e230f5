"""The documents: links, both languages alike, and the page about AMCT true to the package."""

import importlib
import inspect
import re
from pathlib import Path

import pytest

import amct_onnx
from amct_onnx.cli import main
from amct_onnx.formats.amct_json import LAYER_KEYS, SETTINGS

ROOT = Path(amct_onnx.__file__).parents[1]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *ROOT.glob("models/**/*.md")])
CHINESE = {ROOT / "README.zh-CN.md": README, **{page: DOCS / page.name for page in sorted(DOCS.glob("zh/*.md"))}}
MIGRATING = DOCS / "migrating-from-amct.md"
PROTOS = Path(amct_onnx.__file__).parent / "formats" / "proto"

_BLOCK = re.compile(r"^ *```.*?^ *```$", re.M | re.S)
_CODE = re.compile(r"`([^`]+)`")
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def text_of(page):
    return page.read_text(encoding="utf-8")


def prose(page):
    """A page without its blocks of code."""
    return _BLOCK.sub("", text_of(page))


def code_in(text):
    """What stands between backticks."""
    return {" ".join(span.split()) for span in _CODE.findall(text)}


def links(page):
    """The files that a page links to."""
    found = [link.partition("#")[0] for link in _LINK.findall(prose(page)) if "://" not in link]
    return [(page.parent / link).resolve() if link else page for link in found]


def anchors(page):
    """What its headings are called in links, as GitHub does it."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def name_of(page):
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_somewhere(page):
    assert [str(target) for target in links(page) if not target.exists()] == []
    for link in _LINK.findall(prose(page)):
        place, _, anchor = link.partition("#")
        if anchor and "://" not in link:
            assert anchor in anchors((page.parent / place).resolve() if place else page), link


def test_every_page_is_reached_from_the_readme():
    reached, waiting = set(), [README]
    while waiting:
        page = waiting.pop()
        if page not in reached and page.suffix == ".md":
            reached.add(page)
            waiting.extend(links(page))
    assert {page for page in DOCS.rglob("*") if page.is_file()} - reached == set()


def test_the_three_pages_are_there_in_chinese():
    pages = {"README.md", "docs/cli.md", "docs/migrating-from-amct.md"}
    assert {name_of(page) for page in CHINESE.values()} >= pages


@pytest.mark.parametrize(("chinese", "english"), CHINESE.items(), ids=lambda page: name_of(page))
def test_both_languages_hold_the_same(chinese, english):
    assert english in links(chinese)
    assert chinese in links(english)
    assert _BLOCK.findall(text_of(chinese)) == _BLOCK.findall(text_of(english))
    assert code_in(prose(chinese)) ^ code_in(prose(english)) == set()
    rows = {page: [code_in(row) for row in re.findall(r"^\|.*\|$", prose(page), re.M)] for page in (chinese, english)}
    assert rows[chinese] == rows[english]
    for shape in (r"^#+ ", r"^\* "):  # headings, items of lists
        found = [len(re.findall(shape, prose(page), re.M)) for page in (chinese, english)]
        assert found[0] == found[1], shape


def signatures():
    """The signatures on the page, as (name, text)."""
    return re.findall(r"^(\w+)(\(.*\))$", "\n".join(_BLOCK.findall(text_of(MIGRATING))), re.M)


@pytest.mark.parametrize(("name", "text"), signatures(), ids=[name for name, _ in signatures()])
def test_the_signatures_are_those_of_the_package(name, text):
    if "retrain" in name:
        pytest.importorskip("torch")
    found = inspect.signature(getattr(importlib.import_module("amct_onnx"), name))
    bare = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in found.parameters.values()]
    assert str(inspect.Signature(bare)) == text


def fields(schema):
    """The fields of a .proto file."""
    text = re.sub(r"//.*", "", (PROTOS / f"{schema}.proto").read_text(encoding="utf-8"))
    text = re.sub(r"message (AttrProto|PruneNode|PruneRecord) \{.*?\}", "", text, flags=re.S)
    return set(re.findall(r"^\s+(?:optional |required |repeated )?\w+ (\w+) = \d+", text, re.M))


def test_every_field_and_option_of_amct_stands_on_the_page(capsys):
    page = code_in(prose(MIGRATING))
    assert fields("calibration_config_onnx") - page == set()
    outer = {"record", "key", "value"}
    assert fields("scale_offset_record_onnx") - {"scale", "offset"} - outer - page == set()
    assert {*SETTINGS, *LAYER_KEYS} - page == set()
    known = ""
    for command in ("calibration", "convert"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        known += capsys.readouterr().out
    for option in re.findall(r"`--([a-z_]{2,})", text_of(MIGRATING)):
        assert option in ("data_type", "p") or f"--{option} " in known or f"--{option}\n" in known, option
