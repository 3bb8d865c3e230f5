"""AMCT's import path of what its evaluator scripts read their data with."""
