"""The picture world: emoji, which many hands have drawn, each in a style of its own."""
