"""Launchers: where a training loop runs."""
