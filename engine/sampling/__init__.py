"""From logits to tokens: penalties, logprobs, and the draw."""
