"""Carrying tickets out."""
