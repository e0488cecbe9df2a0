"""The foundation model, Segment Anything: its make, its weights, its tuning."""
