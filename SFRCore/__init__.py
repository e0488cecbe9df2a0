"""SFR: semi-supervised segmentation of 3D medical images with a stitched, fine-tuned foundation model."""

from __future__ import annotations

__version__ = "0.1.0"
