"""SGLang's dialect: /generate, its body and its answers, and the endpoints beside it."""
