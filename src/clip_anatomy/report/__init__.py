"""Pages, figures and tables (leaves)."""
