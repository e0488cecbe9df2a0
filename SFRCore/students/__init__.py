"""Student networks, their files, and the prediction of whole volumes with them."""

from __future__ import annotations

from SFRCore.students.registry import make_student, student_types
from SFRCore.students.sliding_window import fast_stride, fast_window
from SFRCore.students.store import load_student, save_student
from SFRCore.students.student import Student

__all__ = [
    "Student",
    "fast_stride",
    "fast_window",
    "load_student",
    "make_student",
    "save_student",
    "student_types",
]
