"""Taking a student away: SUPERB submissions, Hugging Face and ONNX models."""
