"""What may be asked of the engine: events in, runs and outputs out, its lifecycle."""
