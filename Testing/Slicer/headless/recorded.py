"""CTK and Slicer widgets made out of the recorded names of Slicer 5.13 (widgets.json), behaviour where
somebody wrote it.

PythonQt shows of a CTK or Slicer class its properties, public slots, invokable methods and signals, and
nothing else: so do these. A property is stored and given back; a slot that has no behaviour here raises
NotImplementedError, so no test can pass by calling something that does nothing. A behaviour for a name
that is not in the record is refused.
"""

import json
import re
from pathlib import Path

from PySide6 import QtCore

from . import qt_rules
from .ui_loader import QUiLoader

qt = qt_rules.install()

RECORD = json.loads((Path(__file__).parent / "widgets.json").read_text(encoding="utf-8"))
TYPES = {
    "bool": (bool, False),
    "int": (int, 0),
    "double": (float, 0.0),
    "QString": (str, ""),
    "QStringList": ("QStringList", []),
}
SIMPLE = {"bool": bool, "int": int, "double": float, "QString": str}
_behaviour = {}
_made = {}


def behaviour(name, defaults=None, **members):
    """Give a recorded class a behaviour: `_build(self)` after construction, `_get_x`/`_set_x` for a property
    x, a method for a slot; `defaults` are first values of properties.
    """
    allowed = publicNames(name) | {"paintEvent", "showEvent"}
    wrong = [member for member in members if not member.startswith("_") and member not in allowed]
    wrong += [part for part in defaults or {} if part not in allowed]
    if wrong:
        raise ValueError(f"{name} of Slicer has no {', '.join(wrong)}")
    _behaviour[name] = (defaults or {}, members)


def publicNames(name):
    """Every name that Python can see of a recorded class, its recorded bases included."""
    names = set()
    while name in RECORD:
        record = RECORD[name]
        names |= set(record.get("properties", {}))
        names |= {
            re.match(r"\w+", signature).group()
            for kind in ("signals", "slots", "invokable")
            for signature in record.get(kind, ())
        }
        name = record["base"]
    return names


def widgetClass(name):
    """The class of a recorded name; made when first asked for."""
    if name not in _made:
        record = RECORD[name]
        base = widgetClass(record["base"]) if record["base"] in RECORD else getattr(qt, record["base"])
        defaults, members = _behaviour.get(name, ({}, {}))
        _made[name] = _declare(name, base, record, defaults, members)
        QUiLoader.customWidgets[name] = _made[name]
    return _made[name]


def emit(widget, signature, *arguments):
    """Emit a recorded signal by its signature, `currentNodeChanged(bool)` for one."""
    for cls in type(widget).__mro__:
        attribute = cls.__dict__.get("_hSignals", {}).get(signature)
        if attribute is not None:
            getattr(widget, attribute).emit(*arguments)
            return
    raise ValueError(f"{widget.className()} has no signal {signature}")


def bare(signature):
    """'f(const QString& path, int n)' as ('f', ['QString', 'int'])."""
    name, inside = re.match(r"(\w+)\((.*)\)$", signature).groups()
    arguments = []
    for argument in filter(None, (part.split("=")[0].strip() for part in inside.split(","))):
        words = re.sub(r"\bconst\b|&", " ", argument).replace("*", "* ").split()
        pointer = any(word.endswith("*") for word in words)
        arguments.append(words[0].rstrip("*") + ("*" if pointer else ""))
    return name, arguments


def _without_behaviour(name, method):
    def refuse(self, *arguments):
        raise NotImplementedError(f"{name}.{method} has no behaviour in the harness")

    return refuse


def _setter(target):
    return lambda self, value: setattr(self, target, value)


def _declare(name, base, record, defaults, members):
    body = {}
    properties = record.get("properties", {})
    for signature in (*record.get("slots", ()), *record.get("invokable", ())):
        method = re.match(r"\w+", signature).group()
        target = method[3:4].lower() + method[4:]
        stores = method.startswith("set") and target in properties
        body.setdefault(method, _setter(target) if stores else _without_behaviour(name, method))
    for values in record.get("enums", {}).values():
        body.update({value: number for number, value in enumerate(values)})
    body.update(members)
    signals = {}
    # `selector.currentNodeChanged` alone means the overload with the node, as in the header's order.
    for signature in sorted(record.get("signals", ()), key=lambda text: "(bool" in text):
        signal, arguments = bare(signature)
        attribute = signal if signal not in signals.values() else f"_h_{signal}{len(signals)}"
        body[attribute] = QtCore.Signal(*(SIMPLE.get(argument, object) for argument in arguments))
        signals[f"{signal}({','.join(arguments)})"] = attribute
    types = dict(getattr(base, "_hPropertyTypes", {}))
    for part, kind in ((part, value) for part, value in properties.items()):
        types[part] = kind
        python, default = TYPES.get(kind, (object, None))
        body[part] = _property(part, python, defaults.get(part, default))
    inherited = {part: value for part, value in defaults.items() if part not in properties}
    build, recorded = members.get("_build"), getattr(base, "_hRecorded", False)

    def __init__(self, parent=None):
        if not recorded:
            self.__dict__["_hValues"] = {}
        base.__init__(self, parent)
        self._hValues.update(inherited)
        if build:
            build(self)

    body.update(
        __init__=__init__,
        __module__=record["from"],
        _hPropertyTypes=types,
        _hSignals=signals,
        _hRecorded=True,
    )
    return type(base)(name, (base,), body)


def _property(name, python, default):
    def getter(self):
        custom = getattr(type(self), "_get_" + name, None)
        value = custom(self) if custom else self._hValues.get(name, default)
        return tuple(value) if isinstance(value, list) else value  # PythonQt gives a QStringList as a tuple

    def setter(self, value):
        self._hValues[name] = value
        custom = getattr(type(self), "_set_" + name, None)
        if custom:
            custom(self, value)

    return QtCore.Property(python, getter, setter)
