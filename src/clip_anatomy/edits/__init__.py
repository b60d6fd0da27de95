"""Parts chosen, replaced, ablated; edited models saved and exported."""
