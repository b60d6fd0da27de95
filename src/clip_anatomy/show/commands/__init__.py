"""The verbs of the command line, one file each. They import nothing heavy at the top, so that `VERB --help` is quick."""
