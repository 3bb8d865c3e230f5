"""What was done and how well: errors of layers and outputs, tables."""
