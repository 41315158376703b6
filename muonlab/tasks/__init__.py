"""Models, data and losses: what is trained. A task knows no optimizer; `catalog` finds it by name."""
