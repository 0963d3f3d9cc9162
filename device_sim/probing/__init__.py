"""What a broker supports, announced and tried."""
