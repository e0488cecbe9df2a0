"""What belongs to the scene and is saved with it: which study, and how its results are shown."""

from typing import Annotated

from slicer import vtkMRMLScalarVolumeNode, vtkMRMLSegmentationNode
from slicer.parameterNodeWrapper import WithinRange, parameterNodeWrapper


@parameterNodeWrapper
class SFRParameterNode:
    """``studyFolder`` may not exist on this computer. Preset and settings of a run belong to the study,
    device and folders to the user's settings.
    """

    studyFolder: str = ""
    inputVolume: vtkMRMLScalarVolumeNode
    labelSegmentation: vtkMRMLSegmentationNode
    applyVolume: vtkMRMLScalarVolumeNode
    showDoubt: bool = True
    doubtOpacity: Annotated[float, WithinRange(0.0, 1.0)] = 0.5
    doubtThreshold: Annotated[float, WithinRange(0.0, 1.0)] = 0.1
