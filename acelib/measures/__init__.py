"""What each chapter of the book measures."""
