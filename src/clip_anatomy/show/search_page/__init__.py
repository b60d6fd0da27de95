"""The result of a search as a page, a contact sheet and a table."""
