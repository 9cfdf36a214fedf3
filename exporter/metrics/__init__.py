"""What /metrics contains."""
