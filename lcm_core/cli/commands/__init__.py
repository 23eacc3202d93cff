"""The commands of `lcm-lora`: every module here is one, of its own name, and has a COMMAND."""
