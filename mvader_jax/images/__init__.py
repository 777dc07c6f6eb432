"""Pictures on the host: read safely, preprocessed, written as PNGs, laid out as sheets."""
