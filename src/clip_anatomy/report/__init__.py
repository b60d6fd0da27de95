"""Pages, figures and tables: draws results, computes none (leaves)."""
