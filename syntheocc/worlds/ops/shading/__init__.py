"""Shading of whole images on the CPU in one pass a pixel; `syntheocc.worlds.shading` is its definition in torch."""
