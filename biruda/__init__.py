"""biruda: a build farm in one file."""

VERSION = "0.1.0"
