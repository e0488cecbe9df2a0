"""A Slicer-like environment on a plain machine: real MRML, PySide6 under PythonQt's rules, recorded CTK
widgets.

One environment per process, made by `start()`, in this order: Qt's rules, the `slicer` package of
slicer-core, the CTK and Slicer widgets, the scene with its logics, and the base classes of scripted
modules. What is not written here raises: nothing answers to every name.
"""

import ctypes
import os
import sys

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
os.environ.setdefault("VTK_DEFAULT_OPENGL_WINDOW", "vtkEGLRenderWindow")

_environment = None


def start():
    """The environment of this process; afterwards `qt`, `ctk` and all of `slicer` can be imported."""
    global _environment
    if _environment is None:
        _spareConstants()
        from . import qt_rules

        qt_rules.install()
        import slicer

        from . import ctk_widgets, recorded, scripted, segment_widgets, selectors  # noqa: F401

        ctk_widgets.install()
        for name, record in recorded.RECORD.items():
            if record["from"] == "slicer":
                setattr(slicer, name, recorded.widgetClass(name))
        from .environment import Environment

        _environment = Environment()
        scripted.install()
    return _environment


def _spareConstants():
    """PySide6 6.12 gives away a reference to None with every call that returns nothing, and to True and False
    with its properties; before Python 3.12, where they became immortal, the process dies of it in the end.
    """
    if sys.version_info < (3, 12):
        for value in (None, True, False):
            ctypes.c_ssize_t.from_address(id(value)).value += 1 << 30
