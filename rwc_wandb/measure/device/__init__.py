"""What happens on the weights' device, and how the host reads it."""
