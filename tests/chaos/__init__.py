"""The service under fire: callers go on while a nemesis breaks things, and a checker says what was broken for good.

`make chaos`, or `python -m tests.chaos --minutes 3 --seed 7`. A seed repeats the plan of faults.
"""
