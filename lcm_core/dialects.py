"""What a LoRA file can be written in: whose names its modules have, and the precision of its numbers."""

DIALECTS = ("kohya", "peft", "native")
DTYPES = ("float16", "bfloat16", "float32")
