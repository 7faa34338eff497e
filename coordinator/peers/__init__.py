"""The other coordinators: who they are, and what concerns all of them."""
