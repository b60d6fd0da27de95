"""Parts selected and replaced; edited models saved, applied, exported."""
