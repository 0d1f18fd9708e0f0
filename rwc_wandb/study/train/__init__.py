"""One training run: what it is told, how it trains, what it leaves, how it goes on after a kill."""
