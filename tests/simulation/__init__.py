"""Rules of the kernel under Hypothesis' state machines: any order of acts, against a small model."""
