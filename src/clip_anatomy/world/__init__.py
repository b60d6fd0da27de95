"""Synthetic scenes with complete ground truth: what the demo model is trained and measured on."""
