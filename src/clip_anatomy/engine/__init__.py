"""Where work runs: one function over many tasks, in this process or on a Ray cluster. Nothing else knows Ray."""
