"""A small regime engine to try the service with: readable rules over one snapshot, no claim to be right about markets.

An engine of your own needs only what `engine.py` has: `run` and `run_with_hysteresis`, whose annotations
lead to dataclasses with these fields. Set ENGINE_MODULE to its module and PYTHONPATH to its folder.
"""
