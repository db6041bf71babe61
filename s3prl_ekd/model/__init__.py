"""The encoder that teachers and student share, prediction heads, and the student."""
