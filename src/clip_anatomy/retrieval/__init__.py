"""Pictures and texts found by what some heads see: asked ─▶ heads ─▶ space ─▶ exact scan ─▶ ranking, and why."""
