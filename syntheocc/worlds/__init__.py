"""Worlds made by code: a hand-laid example street now, the procedural world on top of it."""
