"""OpenAI's dialect: /v1/models, /v1/completions and /v1/chat/completions."""
