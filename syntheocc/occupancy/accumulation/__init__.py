"""Dense labels from sensors: sweeps put together over a scene, counted in voxels, closed, and masked by visibility."""
