"""Dataset formats: one module each, reading and writing.

Key frames come as `frames.Frame`, whatever file described them; labels come as `OccupancyGrid`.
"""
