"""The documentation quotes the program's own words, and its links lead somewhere."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))


def said(node: ast.AST) -> str:
    """A literal with … for what is filled in, by an f-string or by ``format``."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.sub(r"\{\w*\}", "…", node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(said(part) if isinstance(part, ast.Constant) else "…" for part in node.values)
    return ""


@cache
def messages() -> set[str]:
    found = set()
    for folder in ("SFRCore", "SFRSegmentation"):
        for path in (ROOT / folder).rglob("*.py"):
            found |= {said(node) for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))}
    return found


def quotes() -> list[str]:
    text = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    return [" ".join(quote.split()) for quote in re.findall(r'"([^"]{15,})"', text)]


@pytest.mark.parametrize("quote", quotes())
def test_quoted_messages_are_the_programs_own(quote):
    """Fragments between … stand in this order in one message."""
    parts = [part.strip() for part in quote.split("…")]
    pattern = re.compile("[^.]*".join(map(re.escape, parts)), re.DOTALL)
    like = [message for message in messages() if all(part in message for part in parts)]
    assert any(pattern.search(message) for message in like), quote


def test_the_ten_likeliest_failures_are_there():
    headings = re.findall(
        r"^## (\d+)\. \"", (DOCS / "troubleshooting.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert headings == [str(number) for number in range(1, 11)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    """Pictures of the panel are made by `make screenshots` and may be missing in a checkout."""
    for image, target in re.findall(r"(!?)\[[^\]]*\]\(([^)]+)\)", page.read_text(encoding="utf-8")):
        path, _, anchor = target.partition("#")
        if target.startswith("https://") or (image and path.startswith("images/") and path.endswith(".png")):
            continue
        linked = (page.parent / path).resolve() if path else page
        assert linked.is_file(), target
        headings = re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
        anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
        assert not anchor or anchor in anchors, target


def test_doubt_has_the_colors_that_the_panel_names():
    interface = (ROOT / "SFRSegmentation" / "Resources" / "UI" / "Review.ui").read_text(encoding="utf-8")
    little, much = re.search(r"from (\w+) \(a little\) to (\w+) ", interface).groups()
    tutorial = " ".join((DOCS / "tutorial.md").read_text(encoding="utf-8").split())
    assert f"{little} is a little, {much} is much" in tutorial


def test_buttons_are_called_as_in_the_panel():
    """Words in bold in the first step of the tutorial are the texts of its buttons."""
    interface = (ROOT / "SFRSegmentation" / "Resources" / "UI" / "SetUp.ui").read_text(encoding="utf-8")
    step = (DOCS / "tutorial.md").read_text(encoding="utf-8").split("## 2.")[0]
    for name in re.findall(r"\*\*([A-Z][^*]+)\*\*", step):
        assert f"<string>{name}</string>" in interface, name
