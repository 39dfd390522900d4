"""Data: files fetched and verified, sets drawn from a seed, batches resident on the device."""
