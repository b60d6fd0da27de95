"""Images and texts found by what some heads see: query, heads, scan, ranking, patch attribution."""
