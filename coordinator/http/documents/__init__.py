"""What is told about the HTTP surface: the OpenAPI document, its page, the compatibility table."""
