"""Pure functions over what the towers recorded, one idea of a paper per file."""
