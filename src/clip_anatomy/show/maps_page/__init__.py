"""Maps as people look at them: overlays, contact sheets, a film over the layers, one page that holds everything."""
