"""What single features cost or gain: grammars, logprobs of prompts, hits to the token."""
