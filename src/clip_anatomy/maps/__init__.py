"""Where in the image: one file for each family of methods, one function in front of them; segment, points, words."""
