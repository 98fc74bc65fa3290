"""The web face of the kernel's own services."""
