"""What all domains stand on; it knows none of them."""
