"""Taking a student away: SUPERB submissions, Hugging Face and ONNX models, and its size as the challenge counts it."""
