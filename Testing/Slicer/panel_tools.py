"""What the tests of the panel share: answers in place of dialogs, small studies, and many-case studies."""

from pathlib import Path

import numpy as np
import SimpleITK as sitk
import slicer


class Answers:
    """Takes the place of Questions: gives the answers it was made with, in order; keeps what was asked."""

    def __init__(self, *answers):
        self.answers, self.asked = list(answers), []

    def _next(self, *words):
        self.asked.append(words)
        assert self.answers, f"nobody expected the question {words}"
        return self.answers.pop(0)

    confirm = text = choose = folder = openFile = saveFile = _next


def cohort(folder, cases=4, size=(24, 20, 12)):
    """Invented volumes and labels: folders images and labels."""
    from SFRCore.synthetic import make_synthetic_cohort

    return make_synthetic_cohort(folder, cases=cases, size=size, seed=7)


def study_of(folder, cases=4, labeled=2):
    """A study of an invented cohort, with its first cases labeled and the last one for testing."""
    from SFRCore.study import Study
    from SFRCore.synthetic import STRUCTURES

    images, labels = cohort(Path(folder) / "cohort", cases)
    study = Study.create(Path(folder) / "study", structures={value: STRUCTURES[value] for value in (1, 2)})
    pairs = list(zip(sorted(images.iterdir()), sorted(labels.iterdir()), strict=True))
    for number, (image, label) in enumerate(pairs):
        if number < labeled:
            study.add(image, label=label)
        elif number == cases - 1:
            study.add(image, reference=label, role="test")
        else:
            study.add(image)
    return study


def loaded_volume(name="scan", shape=(8, 16, 12)):
    """A volume node with a bright box, and a segmentation node of it with the segment "Anterior lobe"."""
    voxels = np.zeros(shape, np.int16)
    voxels[2:6, 4:12, 3:9] = 100
    matrix = np.diag([0.8, 0.9, 2.0, 1.0])
    volume = slicer.util.addVolumeFromArray(voxels, matrix, name)
    segmentation = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", f"{name} drawn")
    segmentation.CreateDefaultDisplayNodes()
    segmentation.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    segment = segmentation.GetSegmentation().AddEmptySegment("a", "Anterior lobe")
    slicer.util.updateSegmentBinaryLabelmapFromArray(
        (voxels > 0).astype(np.uint8), segmentation, segment, volume
    )
    return volume, segmentation


def give_result(study, id, dice=0.8, kind="prediction"):
    """A result of a case as a run would leave it; its label map is the case's grid with a box of the first
    value.
    """
    image = sitk.ReadImage(str(study.image_path(id)))
    voxels = np.zeros(image.GetSize()[::-1], np.uint8)
    voxels[4:8, 6:12, 6:14] = study.values[0]
    label, confidence = sitk.GetImageFromArray(voxels), sitk.GetImageFromArray(np.full_like(voxels, 200))
    label.CopyInformation(image)
    confidence.CopyInformation(image)
    numbers = {
        "mean_confidence": 0.8,
        "expected_dice": dice,
        "expected_dice_by_structure": {str(study.values[0]): dice},
        "volume_ml": {str(study.values[0]): 1.0},
        "slices": [{"index": 5, "mean_confidence": 0.8, "doubt": 0.2}],
        "doubtful_slice": 5,
        "made_by": {"model": "test"},
    }
    return study.write_result(id, kind, label, confidence, numbers)
