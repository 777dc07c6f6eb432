"""What a user asks for: elements with weights, read, tokenised and laid out as a PromptBatch."""
