"""When a measurement is due, and which steps and loads it must not count."""
