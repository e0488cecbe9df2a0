"""The study: its folder, its cases, and what a person or a model said about each."""

from SFRCore.study.case import ORIGINS, REVIEWS, ROLES, Case
from SFRCore.study.labels import LabelVersion
from SFRCore.study.results import KINDS, CaseResult
from SFRCore.study.review import ReviewItem
from SFRCore.study.structures import Structure, as_structures, default_color, parse_structures
from SFRCore.study.study import Study
from SFRCore.study.transfer import Relinked

__all__ = [
    "KINDS", "ORIGINS", "REVIEWS", "ROLES", "Case", "CaseResult", "LabelVersion", "Relinked", "ReviewItem",
    "Structure", "Study", "as_structures", "default_color", "parse_structures",
]  # fmt: skip
