"""The paper: its published numbers, and whether they agree with each other."""
