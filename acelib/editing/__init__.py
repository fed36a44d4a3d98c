"""What editors are made of: requests, keys, second moments, target vectors, writes."""
