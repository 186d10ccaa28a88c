"""What `arithmetic="outward"` knows about rounding, and bounds in float64."""
