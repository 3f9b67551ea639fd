"""The engine over HTTP: OpenAI's and DeepSeek's chat API in front of one model."""
