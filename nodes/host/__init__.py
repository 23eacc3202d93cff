"""The only folder that touches what ComfyUI does not promise to keep, a file for each idea."""
