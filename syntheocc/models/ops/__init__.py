"""Fused elementwise work of the diffusion networks: a plain reference and a Triton kernel with the same signature."""
