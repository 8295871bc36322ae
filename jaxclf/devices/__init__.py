"""Which devices and processes share a run, and how they are told to stop."""
