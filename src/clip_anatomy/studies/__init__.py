"""Ablation sweeps, probes, spurious cues and their repair, Waterbirds."""
