"""From pictures of any kind to the pixels that a model takes: decode, preprocess, geometry (the patch grid), fetch."""
