"""Room 3, what is done: dispatcher, guardian, workers, schedules. No SQL, no Flask."""
