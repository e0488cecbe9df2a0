"""Qt's loader of .ui files as Slicer uses it: custom widgets by their real names, and nothing that does not
exist.
"""

from xml.etree import ElementTree

from PySide6 import QtCore, QtUiTools

from . import qt_rules


class QUiLoader(QtUiTools.QUiLoader):
    """Builds custom widgets by their real class name, refuses unknown ones, and makes the file's connections
    itself.
    """

    customWidgets = {}

    def createWidget(self, className, parent=None, name=""):
        cls = self.customWidgets.get(className)
        if cls is None:
            return super().createWidget(className, parent, name)
        widget = cls(parent)
        widget.setObjectName(name)
        return widget

    def load(self, device, parent=None):
        if not device.isOpen():
            device.open(QtCore.QFile.ReadOnly)
        root = ElementTree.fromstring(bytes(device.readAll().data()))
        for node in root.iter("customwidget"):
            if node.findtext("class") not in self.customWidgets:
                raise RuntimeError(
                    f"the .ui file uses {node.findtext('class')}, which the harness does not know"
                )
        connections = root.find("connections")
        if connections is not None:
            root.remove(connections)
        buffer = QtCore.QBuffer()
        buffer.setData(ElementTree.tostring(root))
        buffer.open(QtCore.QIODevice.ReadOnly)
        for node in root.iter("widget"):  # every property in the file must exist on that widget
            cls = self.customWidgets.get(node.get("class"))
            for prop in node.findall("property"):
                if (
                    cls is not None
                    and prop.get("stdset", "1") != "0"
                    and cls.staticMetaObject.indexOfProperty(prop.get("name")) < 0
                ):
                    raise RuntimeError(f"{node.get('class')} has no property {prop.get('name')}")
        qt_rules.loading.append(True)
        try:
            widget = super().load(buffer, parent)
        finally:
            qt_rules.loading.pop()
        if widget is None:
            return None
        for node in connections if connections is not None else ():
            ends = {}
            for end in ("sender", "receiver"):
                name = node.findtext(end)
                ends[end] = (
                    widget if widget.objectName == name else qt_rules.findChild(widget, QtCore.QObject, name)
                )
                if ends[end] is None:
                    raise RuntimeError(f".ui connection names an unknown object {name}")
            qt_rules.connect(ends["sender"], node.findtext("signal"), ends["receiver"], node.findtext("slot"))
        return widget
