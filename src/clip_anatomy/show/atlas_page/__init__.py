"""The atlas as pages that open from a folder: a map of all heads, a page for each, no server and no network."""
