"""What `orchestrator doctor` looks at: each module one part of the machine, each finding one line of the answer."""
