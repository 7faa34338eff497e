"""From token ids to answers: text, stop strings, logprobs."""
