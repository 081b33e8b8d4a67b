"""Serving: an OpenAI-compatible gateway in front of the promoted model version."""
