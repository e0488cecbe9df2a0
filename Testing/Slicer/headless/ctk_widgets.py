"""What the CTK widgets do that a panel relies on: collapsing, paths, sliders."""

import sys
import types

from . import recorded
from .recorded import behaviour, qt


def _collapse(self, collapsed):
    for child in self.children():
        if child.isWidgetType():
            child.setVisible(not collapsed)
    self.setMaximumHeight(22 if collapsed else 16777215)
    self.contentsCollapsed.emit(collapsed)


def _buildCollapsible(self):
    self.setContentsMargins(0, 24, 0, 0)
    self.setCheckable(True)
    self.setChecked(True)
    self.toggled.connect(lambda on: setattr(self, "collapsed", not on) if self.collapsed == on else None)


def _setCollapsed(self, value):
    _collapse(self, value)
    self.setChecked(not value)


def _paintCollapsible(self, event):
    painter = qt.QPainter(self)
    painter.fillRect(0, 0, self.width, 22, qt.QColor(205, 210, 220))
    painter.drawText(6, 16, ("▸ " if self.collapsed else "▾ ") + self.text)
    painter.end()


def _showCollapsible(self, event):
    if self.collapsed:
        for child in self.children():
            if child.isWidgetType():
                child.setVisible(False)
        self.setMaximumHeight(22)


behaviour(
    "ctkCollapsibleButton",
    {"collapsedHeight": 10, "contentsLineWidth": 1},
    _build=_buildCollapsible,
    _set_collapsed=_setCollapsed,
    paintEvent=_paintCollapsible,
    showEvent=_showCollapsible,
)


def _buildGroup(self):
    self.setCheckable(True)
    self.toggled.connect(lambda on: setattr(self, "collapsed", not on) if self.collapsed == on else None)


def _fold(self, collapsed):
    for child in self.children():
        if child.isWidgetType():
            child.setVisible(not collapsed)
    self.setFlat(collapsed)
    self.setMaximumHeight(20 if collapsed else 16777215)


def _setGroupCollapsed(self, value):
    self.setChecked(not value)
    _fold(self, value)


behaviour(
    "ctkCollapsibleGroupBox",
    _build=_buildGroup,
    _set_collapsed=_setGroupCollapsed,
    showEvent=lambda self, event: _fold(self, True) if self.collapsed else None,
)


def _buildPath(self):
    layout = qt.QHBoxLayout(self)
    layout.setContentsMargins(0, 0, 0, 0)
    self._hEdit, self._hBrowse = qt.QLineEdit(), qt.QToolButton()
    self._hBrowse.text = "..."
    layout.addWidget(self._hEdit)
    layout.addWidget(self._hBrowse)
    self._hEdit.textChanged.connect(self.currentPathChanged.emit)


behaviour(
    "ctkPathLineEdit",
    {"showBrowseButton": True, "showHistoryButton": True},
    _build=_buildPath,
    _get_currentPath=lambda self: self._hEdit.text,
    _set_currentPath=lambda self, value: self._hEdit.setText(value),
    addCurrentPathToHistory=lambda self: None,
)


def _buildSlider(self):
    layout = qt.QHBoxLayout(self)
    layout.setContentsMargins(0, 0, 0, 0)
    self._hSlider, self._hSpin = qt.QSlider(qt.Qt.Horizontal), qt.QDoubleSpinBox()
    self._hSlider.maximum = 1000
    self._hSpin.maximum = 99.0
    layout.addWidget(self._hSlider)
    layout.addWidget(self._hSpin)

    def fromSpin(value):
        low, high = self._hSpin.minimum, self._hSpin.maximum
        self._hSlider.blockSignals(True)
        self._hSlider.value = int(round((value - low) / (high - low) * 1000)) if high > low else 0
        self._hSlider.blockSignals(False)
        self.valueChanged.emit(value)

    def fromSlider(value):
        low, high = self._hSpin.minimum, self._hSpin.maximum
        self._hSpin.setValue(low + value / 1000.0 * (high - low))

    self._hSpin.valueChanged.connect(fromSpin)
    self._hSlider.valueChanged.connect(fromSlider)


def _of_spin(*names):
    members = {}
    for name in names:
        members["_get_" + name] = lambda self, name=name: getattr(self._hSpin, name)
        members["_set_" + name] = lambda self, value, name=name: setattr(self._hSpin, name, value)
    return members


behaviour(
    "ctkSliderWidget",
    {"tracking": True, "spinBoxVisible": True, "pageStep": 10.0},
    _build=_buildSlider,
    setValue=lambda self, value: self._hSpin.setValue(value),
    reset=lambda self: self._hSpin.setValue(self._hSpin.minimum),
    **_of_spin("value", "minimum", "maximum", "singleStep", "decimals", "prefix", "suffix"),
)
behaviour(
    "ctkComboBox",
    _get_currentUserDataAsString=lambda self: str(self.currentData or ""),
    _set_currentUserDataAsString=lambda self, value: self.setCurrentIndex(self.findData(value)),
)


def install():
    """Put the module `ctk`, with all recorded classes of CTK, in sys.modules."""
    ctk = types.ModuleType("ctk", "CTK's widgets as recorded")
    for name, record in recorded.RECORD.items():
        if record["from"] == "ctk":
            setattr(ctk, name, recorded.widgetClass(name))
    sys.modules["ctk"] = ctk
