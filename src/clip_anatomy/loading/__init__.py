"""From a name, a file or a live model to a `Clip` that proved itself equal to its host; tokenizers; the bundled model."""
