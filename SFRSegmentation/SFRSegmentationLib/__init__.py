"""The panel of SFR Segmentation: one file a step, the bridge to the scene, background jobs, set-up."""
