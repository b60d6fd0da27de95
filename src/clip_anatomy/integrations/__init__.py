"""Doors to other programs: Captum, pytorch-grad-cam, FiftyOne, Parquet, LLaVA. Nothing else in the package needs them (leaves)."""
