"""Grammars as clients write them, translated to what llguidance takes."""
