"""Multi-task learning on NYUv2: semantic segmentation, depth and surface normals."""
