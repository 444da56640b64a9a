"""The hot operators of the street world: each a plain torch version beside compiled ones of the same signature."""
