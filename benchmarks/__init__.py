"""How fast the service is, each figure a ratio to a baseline measured in the same run."""
