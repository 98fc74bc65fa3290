"""What is done for the engine: runs, its hosts, the subscription and the publishing."""
