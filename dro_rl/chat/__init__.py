"""`dro-rl serve`: a trained pair behind OpenAI's chat completions. docs/serving.md has the JSON."""
