"""Speed: this code against the plain published procedures."""
