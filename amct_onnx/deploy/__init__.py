"""Deploy models: what ATC takes, checked without ATC."""
