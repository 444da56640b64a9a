"""Perception models: occupancy from images."""
