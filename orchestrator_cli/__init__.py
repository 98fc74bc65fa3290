"""The command line and the embedded servers; may use every room, nothing imports it."""
