"""Contract engines: what checks rows against the rules of a recipe."""
