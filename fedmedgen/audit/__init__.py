"""What the generator leaks, measured by attacks at a site; only what cost no patient leaves it."""
