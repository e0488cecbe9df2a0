"""PythonQt's rules over PySide6: makes its classes look like the PythonQt ones that Slicer's Python code
uses.

install() puts a module `qt` in sys.modules. The PySide6 classes are changed in place, because objects that
Qt itself creates (a header view, a layout, a child found by name) must follow the same rules as those made
by `qt.X()`.
"""

import os
import sys
import tempfile
import types

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
# Enumerators compare equal to int, as in PythonQt. It counts only before PySide6 is imported.
os.environ["PYSIDE6_OPTION_PYTHON_ENUM"] = "2"

import shiboken6  # noqa: E402
from PySide6 import QtCore, QtGui, QtUiTools, QtWidgets  # noqa: E402

PYSIDE_ONLY = {"Slot", "Property", "QMLElement", "ClassInfo", "QtMsgHandler", "SIGNAL", "SLOT"}
CHECKED_TYPES = {
    "QString": str,
    "bool": bool,
    "int": int,
    "double": (int, float),
    "QStringList": (list, tuple),
}

qtMessages = []
"""What Qt itself complains about: unknown slots in a .ui file, timers from another thread."""
slotErrors = []
"""Exceptions that were raised in slots; a test must find this empty."""
_original = {
    "connect": QtCore.QObject.connect,
    "disconnect": QtCore.QObject.disconnect,
    "findChild": QtCore.QObject.findChild,
    "findChildren": QtCore.QObject.findChildren,
}
loading = []
"""Not empty while a .ui file is being loaded."""
_closedModules = {"ctk", "slicer"}


def qobjectClasses():
    seen = []
    for module in (QtCore, QtGui, QtWidgets, QtUiTools):
        for name in dir(module):
            cls = getattr(module, name)
            if isinstance(cls, type) and issubclass(cls, QtCore.QObject) and cls not in seen:
                seen.append(cls)
    return sorted(seen, key=lambda c: len(c.__mro__))  # base classes first


def checkValue(owner, name, typeName, value):
    expected = CHECKED_TYPES.get(typeName)
    if expected is None:
        return
    if typeName == "bool" and type(value) is int and value in (0, 1):
        return
    if not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool):
        raise AttributeError(
            f"Property '{name}' of type '{typeName}' of {owner.className()} does not accept {value!r}"
        )


class _QtProperty(property):
    """On the class itself the C++ function stays reachable: QTimer.singleShot(0, f) next to timer.singleShot
    = True.
    """

    static = None

    def __get__(self, instance, owner=None):
        if instance is None and self.static is not None:
            return self.static
        return property.__get__(self, instance, owner)


def _makeProperty(cls, metaProperty):
    name, typeName = metaProperty.name(), metaProperty.typeName()
    reader = cls.__dict__.get(name)
    if not callable(reader) or isinstance(reader, staticmethod):
        reader = None

    def read(self):
        if not shiboken6.isValid(self):
            raise ValueError(f"Trying to read property '{name}' from a destroyed {cls.__name__} object")
        return reader(self) if reader is not None else QtCore.QObject.property(self, name)

    def write(self, value):
        if not metaProperty.isWritable():
            raise AttributeError(f"Property '{name}' of {cls.__name__} object is not writable")
        checkValue(self, name, typeName, value)
        if not QtCore.QObject.setProperty(self, name, list(value) if isinstance(value, tuple) else value):
            raise AttributeError(f"Property '{name}' of type '{typeName}' does not accept {value!r}")

    result = _QtProperty(read, write)
    result.static = getattr(cls, name, None)
    return result


def isClosed(cls):
    return cls.__module__.split(".")[0] in {"PySide6"} | _closedModules


def _setattr(self, name, value):
    if name.startswith(("_h", "__")) or isinstance(
        value, QtCore.SignalInstance
    ):  # PySide caches bound signals this way
        self.__dict__[name] = value
        return
    if (
        loading and issubclass(type(value), QtCore.QObject) and value.objectName == name
    ):  # PySide's QUiLoader hangs every child on the root widget as an attribute; PythonQt does not
        return
    for cls in type(self).__mro__:
        if name in cls.__dict__:
            descriptor = cls.__dict__[name]
            if isinstance(descriptor, QtCore.Property):
                checkValue(self, name, getattr(type(self), "_hPropertyTypes", {}).get(name), value)
                descriptor.fset(self, value)
                return
            if hasattr(descriptor, "__set__"):
                descriptor.__set__(self, value)
                return
            if isClosed(cls):
                kind = "Signal" if isinstance(descriptor, QtCore.Signal) else "Slot"
                raise AttributeError(
                    f"{kind} '{name}' can not be overwritten on {type(self).__name__} object"
                )
            break
    if name.encode() in [bytes(n.data()) for n in self.dynamicPropertyNames()]:
        self.setProperty(name, value)
        return
    if isClosed(type(self)):
        raise AttributeError(
            f"'{name}' does not exist on {type(self).__name__}, and C++ objects get no new attributes"
        )
    self.__dict__[name] = value


def _getattr(self, name):  # only called when the normal look-up has failed
    dynamic = not name.startswith("_") and shiboken6.isValid(self)
    if dynamic and name.encode() in [bytes(n.data()) for n in self.dynamicPropertyNames()]:
        return self.property(name)
    raise AttributeError(f"{type(self).__name__} has no attribute named '{name}'")


def _signalIndex(self, signature):
    normalized = QtCore.QMetaObject.normalizedSignature(signature)
    normalized = normalized.data().decode() if hasattr(normalized, "data") else normalized
    for cls in type(self).__mro__:
        signals = cls.__dict__.get("_hSignals")
        if signals and normalized in signals:
            return getattr(self, signals[normalized]), normalized
    if self.metaObject().indexOfSignal(normalized) < 0:
        # PythonQt prints a message and returns False. A test harness must be louder.
        raise ValueError(f"signal '{signature}' does not exist on {self.className()}")
    return None, normalized


def connect(self, *args):
    if len(args) == 2 and isinstance(args[0], str) and callable(args[1]):
        signal, normalized = _signalIndex(self, args[0])
        if signal is not None:
            return bool(signal.connect(args[1]))
        return bool(_original["connect"](self, "2" + normalized, args[1]))
    if len(args) == 3 and all(isinstance(args[i], str) for i in (0, 2)):
        signal, normalized = _signalIndex(self, args[0])
        slotName = args[2].split("(")[0]
        return connect(self, args[0], getattr(args[1], slotName))
    if args and not isinstance(args[0], str):
        return _original["connect"](*args)  # PySide's own singleShot() comes through here
    raise ValueError("connect(signature, callable) or connect(signature, receiver, slot signature)")


def disconnect(self, *args):
    if len(args) == 2 and isinstance(args[0], str):
        signal, normalized = _signalIndex(self, args[0])
        if signal is not None:
            return bool(signal.disconnect(args[1]))
        return bool(_original["disconnect"](self, "2" + normalized, args[1]))
    raise ValueError("disconnect(signature, callable)")


def _makeGetattribute(original):
    """PySide's own look-up bypasses the class dictionary for `connect` and `disconnect`."""

    def getattribute(self, name):
        if name == "connect":
            return connect.__get__(self)
        if name == "disconnect":
            return disconnect.__get__(self)
        return original(self, name)

    return getattribute


def _isinstance(cls, instance):
    """PythonQt's wrapper classes have no common bases: a QPushButton is not an instance of qt.QWidget."""
    kind = type(instance)
    return kind is cls or (issubclass(kind, cls) and not isClosed(kind))


def _matches(child, kind):
    return child.inherits(kind) if isinstance(kind, str) else issubclass(type(child), kind)


def findChildren(self, kind=QtCore.QObject, name=""):
    return [
        c
        for c in _original["findChildren"](self, QtCore.QObject)
        if _matches(c, kind) and (not name or c.objectName == name)
    ]


def findChild(self, kind=QtCore.QObject, name=""):
    found = findChildren(self, kind, name)
    return found[0] if found else None


def _excepthook(kind, value, trace):
    slotErrors.append(value)
    sys.__excepthook__(kind, value, trace)


def _onQtMessage(kind, context, text):
    # The offscreen platform says so of each window that it cannot raise or size.
    if "propagateSizeHints" not in text and "This plugin does not support" not in text:
        qtMessages.append((kind, text))


def install():
    """The module `qt`; made, and put in sys.modules, by the first call."""
    if "qt" in sys.modules:
        return sys.modules["qt"]
    from .ui_loader import QUiLoader

    QtCore.qInstallMessageHandler(_onQtMessage)
    application = QtWidgets.QApplication.instance() or QtWidgets.QApplication(["Slicer"])
    application.setOrganizationName("HeadlessTests")
    application.setApplicationName("Slicer")
    QtCore.QSettings.setDefaultFormat(QtCore.QSettings.IniFormat)
    QtCore.QSettings.setPath(
        QtCore.QSettings.IniFormat, QtCore.QSettings.UserScope, tempfile.mkdtemp(prefix="settings-")
    )
    for cls in qobjectClasses():
        metaObject = cls.staticMetaObject
        for i in range(metaObject.propertyOffset(), metaObject.propertyCount()):
            setattr(cls, metaObject.property(i).name(), _makeProperty(cls, metaObject.property(i)))
        cls.__setattr__ = _setattr
        cls.__getattribute__ = _makeGetattribute(cls.__getattribute__)
        if "exec" in cls.__dict__ and "exec_" not in cls.__dict__:
            cls.exec_ = cls.__dict__["exec"]
    type(QtCore.QObject).__instancecheck__ = _isinstance
    base = QtCore.QObject
    base.__getattr__ = _getattr
    base.findChild, base.findChildren = findChild, findChildren
    base.name = property(lambda self: self.objectName, lambda self, value: self.setObjectName(value))
    base.className = lambda self: self.metaObject().className()
    base.delete = lambda self: shiboken6.delete(self)
    qt = types.ModuleType("qt", "PythonQt-like view of PySide6")
    for module in (QtCore, QtGui, QtWidgets):
        for name in dir(module):
            if not name.startswith("_") and name not in PYSIDE_ONLY:
                setattr(qt, name, getattr(module, name))
    qt.QUiLoader = QUiLoader
    qt._app = application
    qt._topLevelWidgets = lambda: tuple(application.topLevelWidgets())
    sys.modules["qt"] = qt
    sys.excepthook = _excepthook
    return qt
