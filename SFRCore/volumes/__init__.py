"""Volumes: reading and writing them, their geometry, normalisation, crops and augmentation.

Inside SFRCore every array is (X, Y, Z), or (C, X, Y, Z), or (B, C, X, Y, Z): the axes nearest to LPS (left,
posterior, superior), permuted so that Z, the last, is the stacking axis.
"""

from SFRCore.volumes.augmentation import bezier_intensity, random_flip, rot_flip_faithful
from SFRCore.volumes.cache import CachedVolume, VolumeCache
from SFRCore.volumes.crops import Crop, crop_at, random_crop
from SFRCore.volumes.dicom import list_series, read_series
from SFRCore.volumes.frame import Frame, choose_stack_axis
from SFRCore.volumes.geometry import Geometry, VolumeError, same_geometry
from SFRCore.volumes.labels import check_label
from SFRCore.volumes.normalisation import Normalisation
from SFRCore.volumes.preprocessing import Preprocessing
from SFRCore.volumes.reading import ImageInfo, image_info, read_image, read_label, write_volume

__all__ = [
    "CachedVolume",
    "Crop",
    "Frame",
    "Geometry",
    "ImageInfo",
    "Normalisation",
    "Preprocessing",
    "VolumeCache",
    "VolumeError",
    "bezier_intensity",
    "check_label",
    "choose_stack_axis",
    "crop_at",
    "image_info",
    "list_series",
    "random_crop",
    "random_flip",
    "read_image",
    "read_label",
    "read_series",
    "rot_flip_faithful",
    "same_geometry",
    "write_volume",
]
