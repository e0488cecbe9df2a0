"""Names of Slicer, CTK and Qt in the module, held against what the recorded Slicer 5.13 and Qt have."""

import ast
import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
import qt
from headless import recorded

HERE = Path(__file__).resolve().parent
MODULE = HERE.parents[1] / "SFRSegmentation"
FUNCTIONS = json.loads((HERE / "headless" / "functions.json").read_text(encoding="utf-8"))
SOURCES = sorted(MODULE.rglob("*.py"))
FORMS = sorted(MODULE.rglob("*.ui"))
OF_QT_5 = {"exec_"}


def dotted(node):
    """The parts of an attribute chain, "?" for what is no name."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return [node.id if isinstance(node, ast.Name) else "?", *parts[::-1]]


def class_of(name):
    return recorded.widgetClass(name) if name in recorded.RECORD else getattr(qt, name)


def unknown(source, tree, widgets):
    """Complaints about one file: what is not there, and properties that are called like methods."""
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute):
            continue
        parts = dotted(node)
        if len(parts) == 2 and parts[0] == "qt" and not hasattr(qt, parts[1]):
            yield f"{source}:{node.lineno}: qt.{parts[1]}"
        known = FUNCTIONS.get(".".join(parts[:2])) if len(parts) == 3 else None
        if known is not None and parts[2] not in known:
            yield f"{source}:{node.lineno}: {'.'.join(parts)}"
        widget = len(parts) == 2 and parts[0] == "slicer" and re.match("q[MS]", parts[1])
        if widget and parts[1] not in recorded.RECORD:
            yield f"{source}:{node.lineno}: slicer.{parts[1]}"
        if len(parts) >= 3 and parts[-3] == "ui" and parts[-2] in widgets:
            cls = class_of(widgets[parts[-2]])
            if not hasattr(cls, parts[-1]) and parts[-1] not in OF_QT_5:
                yield f"{source}:{node.lineno}: {widgets[parts[-2]]}.{parts[-1]}"
            elif id(node) in called and cls.staticMetaObject.indexOfProperty(parts[-1]) >= 0:
                yield f"{source}:{node.lineno}: {parts[-1]} of {widgets[parts[-2]]} is a property"


@pytest.fixture(scope="module")
def widgets():
    found = {}
    for path in FORMS:
        for widget in ElementTree.parse(path).getroot().iter("widget"):
            found[widget.get("name")] = widget.get("class")
    return found


def test_every_name_is_known(widgets):
    complaints = []
    for path in SOURCES:
        complaints += unknown(path.name, ast.parse(path.read_text(encoding="utf-8")), widgets)
    assert complaints == []


def test_wrong_names_are_found(widgets):
    text = (
        "qt.QPushButon()\nslicer.util.loadVolumes()\nslicer.qMRMLNothing()\n"
        "self.ui.runButton.enable = 1\nself.ui.runButton.text()\n"
    )
    found = list(unknown("text", ast.parse(text), widgets))
    assert sorted(line.split(":")[1] for line in found) == ["1", "2", "3", "4", "5"]


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_forms(path):
    root = ElementTree.parse(path).getroot()
    declared = {node.findtext("class") for node in root.iter("customwidget")}
    connected = {node.findtext("receiver") for node in root.iter("connection")}
    always = {"sizePolicy", "geometry", "minimumSize", "maximumSize"}
    for widget in root.iter("widget"):
        name = widget.get("class")
        assert name in recorded.RECORD or hasattr(qt, name), f"{name} does not exist"
        assert name not in recorded.RECORD or name in declared, f"{name} is not among the customwidgets"
        for part in widget.findall("property"):
            known = class_of(name).staticMetaObject.indexOfProperty(part.get("name")) >= 0
            assert known or part.get("stdset") == "0" or part.get("name") in always, part.get("name")
        if name.startswith("qMRML") and widget.get("name") != root.findtext("class"):
            assert widget.get("name") in connected, f"{widget.get('name')} is never given the scene"
