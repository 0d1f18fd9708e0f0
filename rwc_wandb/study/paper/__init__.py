"""What the paper reports and claims, and what runs at hand say to it."""
