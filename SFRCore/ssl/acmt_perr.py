"""ACMT by prototype errors: agreement where the nearest class prototype contradicts the student."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from SFRCore.errors import InputError
from SFRCore.ssl.ambiguity import PAPER, AmbiguityConsensus
from SFRCore.ssl.contract import Batch, Progress
from SFRCore.ssl.losses import consistency_mse, entropy, valid_mean
from SFRCore.ssl.tracing import feature_shapes


class PrototypeConsensus(AmbiguityConsensus):
    """Ambiguous is a voxel whose nearest class prototype in the teacher's features has another label.

    Features are those of the last decoder stage but one, averaged over ``passes`` with dropout. Prototypes
    are their averages over the teacher's label, weighted by its probability; a class is out of question
    where it deviates by ``uncertainty`` or more between the passes. The entropy, divided by ln C, of the
    voxels that are not ambiguous is added to the consistency, as a mean over all voxels. Unlike the
    released code, that entropy meets the mask of its own crop, any number of classes has prototypes, and a
    class that the teacher sees nowhere in a crop is no voxel's nearest.
    """

    name = "acmt_perr"
    description = "ACMT, prototype errors: consistency where class prototypes contradict the student"
    source = f"{PAPER}; AC-MT train_ACMT_PErr_3D.py"
    defaults = {"uncertainty": 0.1, "passes": 10}

    def check(self) -> None:
        super().check()
        if self.options["passes"] < 2:
            raise InputError("The method acmt_perr needs at least 2 passes.")
        if len(feature_shapes(self.student, self.context.patch)[1]) < 2:
            raise InputError(
                f"The method acmt_perr cannot be used with the network {self.student.name}, "
                "whose decoder has a single stage.",
                hint="Choose the network vnet, or the method acmt.",
            )

    def ambiguous(self, probabilities: Tensor, batch: Batch, progress: Progress) -> Tensor:
        images, passes = batch.unlabeled_images, self.options["passes"]
        confidence = self.teacher(images).float().softmax(1)
        middle = squares = torch.zeros_like(confidence)
        features: Tensor | None = None
        for number in range(1, passes + 1):
            decoded = self.teacher.decode(self.teacher.encode(images))
            opened = (self.teacher.head(decoded[-1]).float() / 2.0).sigmoid()
            change = opened - middle
            middle = middle + change / number
            squares = squares + change * (opened - middle)
            seen = decoded[-2].float() / passes
            features = seen if features is None else features + seen
        assert features is not None
        certain = (squares / (passes - 1)).sqrt() < self.options["uncertainty"]
        labels = (confidence * certain).argmax(1)
        nearest = nearest_prototypes(features, labels, confidence, batch.unlabeled_valid)
        return nearest != probabilities.argmax(1)

    def consistency(self, student: Tensor, teacher: Tensor, ambiguous: Tensor, valid: Tensor) -> Tensor:
        doubt = entropy(student) / math.log(self.context.classes)
        clear = valid_mean(doubt * ~ambiguous, valid)
        return consistency_mse(student, teacher, ambiguous) + clear


def nearest_prototypes(features: Tensor, labels: Tensor, confidence: Tensor, valid: Tensor) -> Tensor:
    """The class (B, X, Y, Z) whose prototype is nearest to each voxel's features (B, F, x, y, z).

    Prototypes of a crop are averages of its features, upsampled, over the valid voxels with the label
    (B, X, Y, Z), weighted by ``confidence`` (B, C, X, Y, Z); classes without voxels are out of question.
    """
    classes = torch.arange(confidence.shape[1], device=labels.device)[:, None]
    nearest = torch.empty_like(labels)
    with torch.autocast(device_type=features.device.type, enabled=False):
        for index, one in enumerate(features.float()):
            upsampled = functional.interpolate(one[None], size=labels.shape[1:], mode="trilinear")
            points = upsampled[0].flatten(1)
            weight = confidence[index].flatten(1) * (labels[index].flatten() == classes)
            weight = weight * valid[index].flatten()
            mass = weight.sum(1, keepdim=True)
            prototypes = weight @ points.T / (mass + 1e-5)
            # squared distance without the voxel's own norm, which all classes share
            distances = prototypes.square().sum(1, keepdim=True) - 2.0 * prototypes @ points
            distances = distances.masked_fill(mass == 0, math.inf)
            nearest[index] = distances.argmin(0).view(labels.shape[1:])
    return nearest


METHOD = PrototypeConsensus
