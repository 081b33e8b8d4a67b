"""Kills the loop at every point where something durable happens, and looks what is left."""
