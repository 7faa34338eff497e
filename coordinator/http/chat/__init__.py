"""What all dialects of chat share: from a chat to a prompt, and from an answer to a message."""
