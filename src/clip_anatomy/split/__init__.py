"""The exact decomposition: parts, tokens, moments, and the frozen LayerNorm behind them; pairs; explain, check."""
