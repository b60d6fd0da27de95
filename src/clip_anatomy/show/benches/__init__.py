"""What `clip-anatomy bench` prints: the list of protocols, the result of one, several methods under one, the table of maps."""
