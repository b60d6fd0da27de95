"""Where in the image: one file per family of methods, one function in front of them."""
