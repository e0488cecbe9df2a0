"""The logic as Slicer knows it: every step as a method, and the scene's parameter node."""

from __future__ import annotations

from typing import Any

from slicer.ScriptedLoadableModule import ScriptedLoadableModuleLogic

from .parameters import SFRParameterNode
from .session import Session
from .study_logic import StudyLogic


class SFRSegmentationLogic(ScriptedLoadableModuleLogic, StudyLogic):
    """Every step as a method, with or without the panel; see StudyLogic for what there is."""

    def __init__(self, parent: Any = None) -> None:
        ScriptedLoadableModuleLogic.__init__(self, parent)
        self.session = Session()
        self._parameters: Any = None

    def getParameterNode(self) -> Any:
        """The scene's parameter node, in one wrapper: each observes the node for good."""
        node = super().getParameterNode()
        if self._parameters is None or self._parameters.parameterNode is not node:
            self._parameters = SFRParameterNode(node)
        return self._parameters
