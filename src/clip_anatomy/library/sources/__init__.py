"""Where pictures come from: folders, lists, tars, Hugging Face datasets, the demo world."""
