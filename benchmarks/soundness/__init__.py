"""Material for both sides of the numerical proof: right networks that must pass, and planted faults that must not."""
