"""Leaves: figures, reports and the command line. Nothing imports them."""
