"""What the ledger campaign does to a site: kill it, cut its files, time it."""
