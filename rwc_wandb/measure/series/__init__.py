"""What was measured so far: in memory, in a file, in a checkpoint, and in a few numbers."""
