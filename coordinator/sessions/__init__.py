"""Sessions: prompts that go on from earlier turns, known to all coordinators through Redis."""
