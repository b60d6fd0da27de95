"""Many images: sources, the store on disk, the walk that fills it."""
