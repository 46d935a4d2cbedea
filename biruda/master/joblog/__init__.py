"""Logs as people read them: any line of any log at once, when it came, where it says what went wrong, and searches."""
