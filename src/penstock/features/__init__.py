"""Feature stores: what was known about a user or a thing at a time, and what is known now."""
