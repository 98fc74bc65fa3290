"""Engine runs: deterministic invocations of an engine over an append-only log of raw market events."""
