"""CCT: decoders that see perturbed features agree with the one that does not."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from SFRCore.ssl.consistency import ConsistencyMethod
from SFRCore.ssl.contract import Batch, MethodContext, Progress, Step
from SFRCore.ssl.losses import consistency_mse, segmentation_loss
from SFRCore.ssl.tracing import decoder_names
from SFRCore.students.student import Student


def feature_noise(features: Tensor) -> Tensor:
    """x (1 + n) with n uniform within +-0.3, the same for every crop of the batch."""
    return features * (1.0 + torch.empty_like(features[:1]).uniform_(-0.3, 0.3))


def element_dropout(features: Tensor) -> Tensor:
    """Single elements dropped with probability 0.3, in training and in evaluation."""
    return functional.dropout(features, 0.3)


def attention_dropout(features: Tensor) -> Tensor:
    """The most active voxels dropped: those whose mean over channels reaches U(0.7, 0.9) of its maximum."""
    attention = features.mean(1, keepdim=True)
    share = torch.empty(()).uniform_(0.7, 0.9).item()
    return features * (attention < share * attention.amax((2, 3, 4), keepdim=True))


PERTURBATIONS: tuple[Callable[[Tensor], Tensor], ...] = (feature_noise, element_dropout, attention_dropout)


class CrossConsistency(ConsistencyMethod):
    """L = mean over decoders of (CE + Dice)/2 of the labeled crops + lambda(k) * mean (p - p_i)^2.

    Beside the student's own decoder three further ones, with weights of their own, each see the features
    of every encoder stage perturbed in one way. The second term is the mean over these three on the
    unlabeled crops; gradients flow through both sides. Only the student's own decoder is kept.

    The released code is 2D; here the same in 3D. It runs 30000 iterations with a polynomial learning rate and
    a weight that rises until the end, in place of which the preset's schedule and rise are followed.
    """

    name = "cct"
    description = "CCT: consistency of decoders under perturbed features"
    source = "Ouali et al., CVPR 2020; SSL4MIS train_cross_consistency_training_2D.py"

    def __init__(self, context: MethodContext) -> None:
        super().__init__(context)
        self.decoders = nn.ModuleList(
            _decoder_of(self.new_student(f"decoder {number}"), context.patch)
            for number in range(len(PERTURBATIONS))
        )

    def step(self, batch: Batch, progress: Progress) -> Step:
        labeled = len(batch.labeled_images)
        features = self.student.encode(batch.images)
        outputs = [self.student.head(self.student.decode(features)[-1])]
        for decoder, perturbation in zip(self.decoders, PERTURBATIONS, strict=True):
            assert isinstance(decoder, Student)
            perturbed = [perturbation(stage) for stage in features]
            outputs.append(decoder.head(decoder.decode(perturbed)[-1]))
        supervised = torch.stack(
            [segmentation_loss(one[:labeled], batch.labels, batch.labeled_valid, 1e-5) for one in outputs]
        ).mean()
        main, *others = (one[labeled:].float().softmax(1) for one in outputs)
        consistency = torch.stack(
            [consistency_mse(main, other, batch.unlabeled_valid) for other in others]
        ).mean()
        return self.combine(supervised, consistency, progress, [outputs[0][labeled:]])


def _decoder_of(student: Student, patch: Sequence[int]) -> Student:
    """The student without its encoder: only ``decode`` and ``head`` still work and are trained."""
    used = set(decoder_names(student, patch))
    for child, module in list(student.named_children()):
        names = {f"{child}.{name}" for name, _ in module.named_parameters()}
        if names and not names & used:
            setattr(student, child, nn.Identity())
    for name, parameter in student.named_parameters():
        parameter.requires_grad_(name in used)
    return student


METHOD = CrossConsistency
