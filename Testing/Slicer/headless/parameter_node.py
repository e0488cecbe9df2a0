"""A stand-in for slicer.parameterNodeWrapper: bool, int, float, str, Enum and node references, kept in the
node.

It refuses what the real one refuses: a type without a serializer, a wrong value, an unknown name, a slider
whose type has no bounds, and a widget class that has no connector.
"""

import enum
import types
import typing

import slicer


def _isNodeType(kind):
    return isinstance(kind, type) and issubclass(kind, slicer.vtkMRMLNode)


class WithinRange:
    def __init__(self, minimum, maximum):
        self.minimum, self.maximum = minimum, maximum

    def validate(self, value):
        if not self.minimum <= value <= self.maximum:
            raise ValueError(f"{value} is not within [{self.minimum}, {self.maximum}]")


def parameterNodeWrapper(cls):
    validators = {}
    hints = typing.get_type_hints(cls, include_extras=True)
    fields = {}
    for name, kind in hints.items():
        if typing.get_origin(kind) is typing.Annotated:
            validators[name] = [a for a in typing.get_args(kind)[1:] if isinstance(a, WithinRange)]
            kind = typing.get_args(kind)[0]
        options = [a for a in typing.get_args(kind) if a is not type(None)]
        kind = options[0] if typing.get_origin(kind) in (typing.Union, types.UnionType) else kind
        if not (kind in (bool, int, float, str) or _isNodeType(kind) or issubclass(kind, enum.Enum)):
            raise ValueError(f"no serializer for {name}: {kind}")
        first = None if _isNodeType(kind) else next(iter(kind)) if issubclass(kind, enum.Enum) else kind()
        fields[name] = (kind, getattr(cls, name, first))

    def makeField(name, kind, default):
        def read(self):
            if _isNodeType(kind):
                return self.parameterNode.GetNodeReference(name)
            text = self.parameterNode.GetParameter(name)
            if (
                self.parameterNode.GetParameterCount() == 0
                or text == ""
                and name not in self.parameterNode.GetParameterNames()
            ):
                return default
            return (
                kind[text] if issubclass(kind, enum.Enum) else text == "True" if kind is bool else kind(text)
            )

        def write(self, value):
            if _isNodeType(kind):
                if value is not None and not isinstance(value, kind):
                    raise TypeError(f"{name} needs a {kind.__name__}")
                self.parameterNode.SetNodeReferenceID(name, value.GetID() if value is not None else None)
                return
            if kind is float and type(value) is int:
                value = float(value)
            if type(value) is not kind:
                raise TypeError(f"{name} needs a {kind.__name__}, not {value!r}")
            for validator in validators.get(name, ()):
                validator.validate(value)
            self.parameterNode.SetParameter(name, value.name if isinstance(value, enum.Enum) else str(value))

        return property(read, write)

    def __init__(self, parameterNode, prefix=None):
        object.__setattr__(self, "parameterNode", parameterNode)
        object.__setattr__(self, "_connections", {})
        object.__setattr__(self, "_next", [0])
        for name, (kind, default) in fields.items():
            if not _isNodeType(kind) and name not in parameterNode.GetParameterNames():
                setattr(self, name, default)

    def __setattr__(self, name, value):
        if name not in fields:
            raise AttributeError(f"no parameter {name}")
        object.__setattr__(self, name, value)

    def connectGui(self, gui):
        """As the real one it returns nothing, so that its bindings cannot be undone."""
        widgets = vars(gui).values()
        connectParametersToGui(
            self,
            {w.property("SlicerParameterName"): w for w in widgets if w.property("SlicerParameterName")},
        )

    def connectParametersToGui(self, mapping):
        for name, widget in mapping.items():
            if name not in fields:
                raise ValueError(f"the GUI names an unknown parameter {name}")
            if widget.className() in ("ctkSliderWidget", "QSlider", "QProgressBar"):
                if not validators.get(name):
                    raise RuntimeError(
                        f"{name}: a slider needs a bounded type, Annotated[float, WithinRange(a, b)]"
                    )
                bounds = validators[name][0]
                widget.minimum, widget.maximum = float(bounds.minimum), float(bounds.maximum)
        tag, undo = self._next[0], []
        self._next[0] += 1
        self._connections[tag] = mapping, undo
        for name, widget in mapping.items():
            _writeWidget(widget, getattr(self, name))
            signature = _signature(widget)

            def slot(*_, name=name, widget=widget):
                setattr(self, name, _readWidget(widget, fields[name][0]))

            widget.connect(signature, slot)
            undo.append(lambda w=widget, s=signature, f=slot: w.disconnect(s, f))
        # The real one observes anew for every connection, and goes on doing so when it is undone.
        self.parameterNode.AddObserver("ModifiedEvent", lambda *_: updateGui(self))
        return tag

    def updateGui(self):
        for mapping, _undo in list(self._connections.values()):
            for name, widget in mapping.items():
                _writeWidget(widget, getattr(self, name))

    def disconnectGui(self, tag):
        _mapping, undo = self._connections.pop(tag, ({}, ()))
        for act in undo:
            act()

    for name, (kind, default) in fields.items():
        setattr(cls, name, makeField(name, kind, default))
    cls.__init__, cls.__setattr__ = __init__, __setattr__
    for method in (connectGui, connectParametersToGui, disconnectGui):
        setattr(cls, method.__name__, method)
    for method in ("AddObserver", "RemoveObserver", "Modified", "StartModify", "EndModify"):
        setattr(cls, method, lambda self, *args, method=method: getattr(self.parameterNode, method)(*args))
    return cls


_WIDGETS = {
    "qMRMLNodeComboBox": (
        "currentNodeChanged(vtkMRMLNode*)",
        lambda w: w.currentNode(),
        lambda w, v: w.setCurrentNode(v),
    ),
    "QCheckBox": ("toggled(bool)", lambda w: w.checked, lambda w, v: setattr(w, "checked", v)),
    "QSpinBox": ("valueChanged(int)", lambda w: w.value, lambda w, v: setattr(w, "value", v)),
    "QDoubleSpinBox": ("valueChanged(double)", lambda w: w.value, lambda w, v: setattr(w, "value", v)),
    "ctkSliderWidget": ("valueChanged(double)", lambda w: w.value, lambda w, v: setattr(w, "value", v)),
    "QLineEdit": ("textChanged(QString)", lambda w: w.text, lambda w, v: setattr(w, "text", v)),
    "QComboBox": (
        "currentTextChanged(QString)",
        lambda w: w.currentText,
        lambda w, v: w.setCurrentText(v.name if isinstance(v, enum.Enum) else v),
    ),
    "ctkPathLineEdit": (
        "currentPathChanged(QString)",
        lambda w: w.currentPath,
        lambda w, v: setattr(w, "currentPath", v),
    ),
}


def _signature(widget):
    return _WIDGETS[widget.className()][0]


def _readWidget(widget, kind):
    value = _WIDGETS[widget.className()][1](widget)
    return kind[value] if issubclass(kind, enum.Enum) else value


def _writeWidget(widget, value):
    _WIDGETS[widget.className()][2](widget, value)
