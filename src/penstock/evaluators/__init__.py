"""What runs lm-eval on one model; see ``base.py``."""
