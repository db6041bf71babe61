"""Where teachers come from, and the frozen ensemble that turns waveforms into hidden states."""
