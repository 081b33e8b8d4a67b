"""Where transforms run."""
