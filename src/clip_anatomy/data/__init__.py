"""Every reader of a collection or a data set, with or without masks, labels or groups; the demo world."""
