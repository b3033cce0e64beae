"""The Hugging Face Hub: download SAEs."""
