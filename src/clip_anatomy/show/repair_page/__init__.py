"""What a repair shows: one screen of text, one figure."""
