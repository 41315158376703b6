"""Reading a report back: its fields, its text and what it refers to."""

import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from html.parser import HTMLParser

from muonlab.analyze.findings import Comparison
from muonlab.report import page
from muonlab.report.text import FORMATS

CREATED = "2026-01-02 03:04 UTC"

NOTHING = ("–", "lost", "not reached", "0", "∞", "−∞")  # what stands for None
VOID = {"meta", "link", "br", "hr", "img", "input", "path", "use"}


@cache
def page_of(make: Callable[[], Comparison]) -> str:
    """The page of a made-up finding, drawn once for all tests that only read it."""
    return page.render(make(), created=CREATED)


class Page(HTMLParser):
    """Elements with `data-field` as (field, value attribute, text), all tags with attributes, and the visible text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.fields: list[tuple[str, str | None, str]] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.bare: list[str] = []  # numbers in numeric cells that name no field
        self._open: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self._open.append((tag, dict(attributes), []))

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        while self._open:
            name, attributes, parts = self._open.pop()
            text = "".join(parts)
            if "data-field" in attributes:
                self.fields.append((attributes["data-field"], attributes.get("value"), text.strip()))
            if name == tag:
                break

    def handle_data(self, data):
        names = [name for name, _, _ in self._open]
        if not {"style", "svg"} & set(names):
            self.text += data
        numeric = any(name == "td" and "n" in (at.get("class") or "").split() for name, at, _ in self._open)
        marked = any("data-field" in at for _, at, _ in self._open)
        if numeric and not marked and re.search(r"\d", data):
            self.bare.append(data.strip())
        for _, _, parts in self._open:
            parts.append(data)


def field(finding: dict, name: str):
    """The value in `finding.to_dict()` that a `data-field` names."""
    value = finding
    for word, index in re.findall(r"\.?([A-Za-z_]\w*)|\[('[^']*'|\"[^\"]*\"|\d+)\]", name):
        if word:
            value = value[word]
        else:
            value = value[int(index)] if index.isdigit() else value[index[1:-1]]
    return value


def spellings(value) -> set[str]:
    """All ways in which a report may write that number."""
    texts = {f"{value:.3g}"} if isinstance(value, float) else set()
    for write in FORMATS.values():
        try:
            texts.add(write(value))
        except (TypeError, ValueError):
            continue
    return texts | {text.replace("x", "×").replace("us", "µs") for text in texts} | {t.replace("-", "−") for t in texts}


def numbers_of(html: str, finding: dict) -> Page:
    """The page, every number of which was found to be a field of the finding, or a product of several."""
    shown = Page(html)
    for name, full, text in shown.fields:
        factors = [field(finding, part) for part in name.split(" * ")]
        value = math.prod(factors) if len(factors) > 1 else factors[0]
        if full is not None:
            assert full == (repr(value) if isinstance(value, int | float) else str(value)), name
            assert text in spellings(value), (name, text, value)
        elif value is None:
            assert text in NOTHING, (name, text)
        elif isinstance(value, str):
            assert text == value
    return shown


def words(html: str) -> str:
    """The visible text in one line."""
    return " ".join(Page(html).text.split())


def svg_texts(svg: str) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


def other_lines(one: str, other: str) -> list[str]:
    """Those of the first that are not the same in the second."""
    return [a for a, b in zip(one.splitlines(), other.splitlines(), strict=True) if a != b]


def drawn_elsewhere(maker: Callable[[], object], module: str) -> bytes:
    """The page by `module` of the finding of `maker`, from another process that hashes otherwise and has no torch."""
    code = f"import sys; from {maker.__module__} import {maker.__name__} as make; from muonlab.report import {module}; "
    code += f"sys.stdout.buffer.write({module}.render(make(), created={CREATED!r}).encode()); "
    code += "assert 'torch' not in sys.modules"
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(sys.path), "LC_ALL": "C"}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True).stdout


def check_self_contained(html: str, most_bytes: int = 1_500_000) -> None:
    """Nothing is asked of the network or of the machine, and nothing runs."""
    assert len(html.encode()) < most_bytes
    assert not re.search(r"https?:|//[\w.-]+\.\w|@import|url\((?!#)|<script|<iframe|<object|<form|file:", html)
    for tag, attributes in Page(html).tags:
        for name in ("src", "href", "xlink:href", "action"):
            assert (attributes.get(name) or "#").startswith(("#", "data:")), (tag, attributes)
        assert not [name for name in attributes if name.startswith("on")]


def check_figures(html: str) -> tuple[int, int]:
    """How many figures, and marks in legends: they have words, headings a scope, no id stands twice or is missing."""
    tags = Page(html).tags
    svgs = [attributes for tag, attributes in tags if tag == "svg"]
    figures = [at for at in svgs if not at["aria-label"].startswith("mark of ")]
    assert all(at["role"] == "img" and len(at["aria-label"]) > 40 for at in figures)
    assert all("scope" in attributes for tag, attributes in tags if tag == "th")
    defined = re.findall(r' id="([^"]+)"', html)
    assert len(defined) == len(set(defined))
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', html))
    assert used and used <= set(defined)
    return len(figures), len(svgs) - len(figures)
