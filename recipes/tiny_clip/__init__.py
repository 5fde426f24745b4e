"""The small CLIP that ships with mmdata, from public-domain clip art to a checkpoint."""
