"""Data sets with masks or labels in the formats they are published in: one small file per data set, one registry."""
