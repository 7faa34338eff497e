"""Chats in no dialect: messages, tools, and how model families write calls and thoughts."""
