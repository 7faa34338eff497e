"""What all dialects that answer prompts share: endpoints past FastAPI, submitting, and waiting."""
