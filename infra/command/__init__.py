"""What the command makes of its flags: the parser, and the flags that are SGLang's alone."""
