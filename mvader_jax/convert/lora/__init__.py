"""LoRA files as others share them, read and written."""
