"""What the kernel's own services have done."""
