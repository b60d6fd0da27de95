"""The command line: one file a verb over shared options (leaves)."""
