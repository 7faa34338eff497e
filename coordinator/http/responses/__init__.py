"""OpenAI's dialect for agents: /v1/responses, of which nothing is stored."""
