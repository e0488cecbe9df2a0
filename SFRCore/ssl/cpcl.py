"""CPCL: cyclic prototypes, from labeled to unlabeled crops and back."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from SFRCore.ssl.consistency import TaughtMethod
from SFRCore.ssl.contract import Batch, Progress, Step
from SFRCore.ssl.ema import perturb
from SFRCore.ssl.losses import consistency_mse, cross_entropy, segmentation_loss

SHARPNESS = 20.0
NEVER = -1e4
"""Logit of a class that is out of question: finite, as a crop of padding alone has none."""


class CPCL(TaughtMethod):
    """L = (CE + Dice)/2 of the labeled crops + lambda(k) (forward + stability) + 10 lambda(k) backward.

    Prototypes of a crop are, for every class, the mean of features over its voxels of that class, weighted
    with their probability; they label another crop by softmax(20 cos(feature, prototype)). Labeled and
    unlabeled crops go in pairs. *Forward*: prototypes of the labeled crop (true labels) on the unlabeled
    one, mean squared difference to the teacher's probabilities there. *Backward*: prototypes of the unlabeled
    crop (the teacher's labels) on the labeled one, cross-entropy with its labels. *Stability*: mean squared
    difference of the logits, over all crops, of student and teacher, which sees noise. Features are those of
    the last decoder stage but one, enlarged; the student's for labeled crops, the teacher's for unlabeled.
    A class without voxels in a crop has no prototype: it is no voxel's label there, and voxels that have it
    in the other crop count in neither. Dice epsilon 1e-5. Released for 10000 iterations with a polynomial
    learning rate, in place of which the preset's schedule is followed; the weight rises as released, over the
    first 6000 of 10000.

    In the released code features and prototypes carry no gradient, so that neither forward nor backward
    trains anything, and backward takes the softmax twice; a class without voxels has the prototype 0, which
    no voxel is near. Here the student's features keep their gradient (the weights of their mean do not), and
    there is one softmax.
    """

    name = "cpcl"
    description = "CPCL: prototypes of labeled crops label unlabeled ones, and the other way round"
    source = "Xu et al., IEEE JBHI 2022; CPCL train_CPCL_general_3D.py"
    keeps = frozenset({"consistency", "ramp"})
    defaults = {"ramp": (40, 150, 10000), "backward": 10.0}

    def step(self, batch: Batch, progress: Progress) -> Step:
        labeled = len(batch.labels)
        images, valid = batch.images, batch.valid
        decoded = self.student.decode(self.student.encode(images))
        logits = self.student.head(decoded[-1])
        own = _middle(decoded)[:labeled]
        with torch.no_grad():
            noisy = self.teacher(perturb(images))
            decoded = self.teacher.decode(self.teacher.encode(batch.unlabeled_images))
            taught = self.teacher.head(decoded[-1]).float().softmax(1)
            other = _middle(decoded)
        with torch.autocast(device_type=images.device.type, enabled=False):
            size = batch.labels.shape[1:]
            own, other = (
                functional.interpolate(one.float(), size=size, mode="trilinear") for one in (own, other)
            )
            confidence = logits[:labeled].detach().float().softmax(1)
            forward, backward = both_ways(own, other, confidence, taught, batch)
        stability = consistency_mse(logits, noisy, valid)
        supervised = segmentation_loss(logits[:labeled], batch.labels, batch.labeled_valid, 1e-5)
        return self.combine(
            supervised,
            forward + stability + self.options["backward"] * backward,
            progress,
            [logits[labeled:]],
            forward=forward,
            backward=backward,
            stability=stability,
        )


def _middle(decoded: Sequence[Tensor]) -> Tensor:
    """The features before the last ones, which are coarser; the last where there is one stage only."""
    return list(decoded)[-2:][0]


def both_ways(
    own: Tensor, other: Tensor, confidence: Tensor, taught: Tensor, batch: Batch
) -> tuple[Tensor, Tensor]:
    """Forward and backward loss of labeled features, unlabeled ones, and the probabilities of each."""
    guessed = taught.argmax(1)
    labeled, shown = prototypes(own, batch.labels, confidence, batch.labeled_valid)
    unlabeled, found = prototypes(other, guessed, taught, batch.unlabeled_valid)
    predicted = similarities(other, labeled, shown).softmax(1)
    forward = consistency_mse(predicted, taught, batch.unlabeled_valid & _has(shown, guessed))
    valid = batch.labeled_valid & _has(found, batch.labels)
    return forward, cross_entropy(similarities(own, unlabeled, found), batch.labels, valid)


def prototypes(features: Tensor, labels: Tensor, confidence: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Mean features (B, C, F) of every class, weighted with its probability, and which have voxels (B, C).

    Features (B, F, X, Y, Z), labels and valid (B, X, Y, Z), confidence (B, C, X, Y, Z).
    """
    classes = torch.arange(confidence.shape[1], device=labels.device).view(1, -1, 1, 1, 1)
    weights = confidence * ((labels[:, None] == classes) & valid[:, None])
    mass = weights.sum((2, 3, 4))
    return torch.einsum("bfxyz,bcxyz->bcf", features, weights) / (mass[..., None] + 1e-5), mass > 0


def similarities(features: Tensor, prototypes: Tensor, present: Tensor) -> Tensor:
    """20 times the cosine (B, C, X, Y, Z) of features (B, F, X, Y, Z) with prototypes (B, C, F); a class that
    is not ``present`` (B, C) is never the likeliest.
    """
    directions = functional.normalize(features, dim=1, eps=1e-8)
    towards = functional.normalize(prototypes, dim=2, eps=1e-8)
    cosines = torch.einsum("bfxyz,bcf->bcxyz", directions, towards)
    return (SHARPNESS * cosines).masked_fill(~present[:, :, None, None, None], NEVER)


def _has(present: Tensor, labels: Tensor) -> Tensor:
    """Where the class (B, X, Y, Z) is ``present`` (B, C) in the crop of the other kind."""
    return present.gather(1, labels.flatten(1)).view_as(labels)


METHOD = CPCL
