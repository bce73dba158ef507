"""What a synthetic set is worth."""
