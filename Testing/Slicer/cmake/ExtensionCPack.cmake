# Packing needs a build of Slicer.
