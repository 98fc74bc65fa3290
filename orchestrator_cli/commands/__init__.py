"""The groups of the `orchestrator` command. Each module is light to import: what it needs it loads when it is run."""
