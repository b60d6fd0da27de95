"""Sanity and faithfulness of maps, metrics, published protocols, bench."""
