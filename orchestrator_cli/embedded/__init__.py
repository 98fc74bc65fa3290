"""Postgres and Valkey from wheels, started by our own launcher: no system users, no opened parent directories."""
