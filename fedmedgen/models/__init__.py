"""Networks and samplers."""
