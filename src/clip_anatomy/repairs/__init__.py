"""What answers hang on, and what to silence: studies of a store, the cue, the choice, edits applied, probes."""
