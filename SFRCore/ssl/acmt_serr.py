"""ACMT by segmentation errors: agreement where the student's labels are probably wrong."""

from __future__ import annotations

import torch
from torch import Tensor

from SFRCore.ssl.ambiguity import PAPER, AmbiguityConsensus
from SFRCore.ssl.confident_learning import label_errors
from SFRCore.ssl.contract import Batch, Progress


class ErrorConsensus(AmbiguityConsensus):
    """Ambiguous is a voxel whose label by the student is an error by confident learning.

    The teacher's prediction of the plain crops is the other opinion; all crops of the batch are judged
    together. Where the student sees a single class confident learning has nothing to compare: every voxel
    counts then, as where it fails in the released code.
    """

    name = "acmt_serr"
    description = "ACMT, segmentation errors: consistency where confident learning doubts the student"
    source = f"{PAPER}; AC-MT train_ACMT_SErr_3D_cl2.py; Northcutt et al., JAIR 2021"

    def ambiguous(self, probabilities: Tensor, batch: Batch, progress: Progress) -> Tensor:
        valid = batch.unlabeled_valid
        opinion = self.teacher(batch.unlabeled_images).float().softmax(1)
        labels = probabilities.argmax(1)[valid]
        if len(labels.unique()) < 2:
            return valid
        wrong = torch.zeros_like(valid)
        wrong[valid] = label_errors(labels, opinion.movedim(1, -1)[valid])
        return wrong


METHOD = ErrorConsensus
