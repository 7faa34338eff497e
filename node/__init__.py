"""What both node kinds share around their schedulers: the loop, its instructions, registration."""
