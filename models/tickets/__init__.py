"""Robot command tickets."""
