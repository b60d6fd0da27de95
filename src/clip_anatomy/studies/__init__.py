"""Studies of a store: ablation, probes, spurious cues and their repair, the Waterbirds protocol."""
