"""From whatever people hand in to the pixels a model takes."""
