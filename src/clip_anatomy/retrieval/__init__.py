"""Pictures and texts found by what some heads see."""
