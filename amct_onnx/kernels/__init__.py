"""Numerical kernels: arrays in, arrays out. They know neither graphs nor files."""
