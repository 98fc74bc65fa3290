"""What carries commands to robots, behind one small interface: `base` says which."""
