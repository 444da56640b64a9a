"""Operators with several implementations: each folder holds a slow, obvious ``reference.py`` and its fast twins."""
