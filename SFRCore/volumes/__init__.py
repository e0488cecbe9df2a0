"""Volumes: reading and writing them, their geometry, normalisation, crops and augmentation.

Inside SFRCore every array is (X, Y, Z), or (C, X, Y, Z), or (B, C, X, Y, Z): the axes nearest to LPS (left,
posterior, superior), permuted so that Z, the last, is the stacking axis.
"""

from SFRCore.volumes.dicom import list_series, read_series
from SFRCore.volumes.geometry import Geometry, VolumeError, same_geometry
from SFRCore.volumes.labels import check_label
from SFRCore.volumes.reading import ImageInfo, image_info, read_image, read_label, write_volume

__all__ = [
    "Geometry", "ImageInfo", "VolumeError", "check_label", "image_info", "list_series", "read_image",
    "read_label", "read_series", "same_geometry", "write_volume",
]  # fmt: skip
