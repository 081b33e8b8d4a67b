"""Scripts behind every figure in the docs."""
