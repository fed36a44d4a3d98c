"""The book: chapters under papermill, the command line, what a terminal shows."""
