"""The chaos harness: a real farm under load, a seeded schedule of faults, and a checker that shares no code with it."""
