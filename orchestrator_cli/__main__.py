"""`python -m orchestrator_cli` is the same as `orchestrator`."""

from orchestrator_cli.main import main

main()
